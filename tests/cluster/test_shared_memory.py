"""Ledgers of real processes that are killed, in a folder of their own."""

import mmap
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rlhf_dist.cluster import shared_memory
from rlhf_dist.cluster.shared_memory import LOOKS, Ledger, sweep

pytestmark = pytest.mark.skipif(not shared_memory.FOLDER.is_dir(), reason="no shared memory with names")

OWNER = """
import mmap, os, sys, time
from pathlib import Path
from rlhf_dist.cluster.shared_memory import Ledger
folder = Path(sys.argv[1])
ledger = Ledger(folder)
segment = folder / "psm_owned"
segment.write_bytes(bytes(4096))
with segment.open("r+b") as file:
    mapped = mmap.mmap(file.fileno(), 0)
ledger.note([os.getpid()])
print(ledger.path.name, flush=True)
time.sleep(600)
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=shared_memory.FOLDER) as made:
        yield Path(made)


@contextmanager
def owner(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that maps a segment of its own and waits to be killed."""
    process = subprocess.Popen([sys.executable, "-c", OWNER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith(f"rlhf_dist-{process.pid}-")
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def mapped(path: Path) -> Iterator[None]:
    """The file is made, and mapped by this process."""
    path.write_bytes(bytes(4096))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0):
        yield


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_segments_of_a_killed_process_are_swept_and_those_of_a_living_one_and_of_nobody_known_stay(
    folder: Path,
) -> None:
    (folder / "psm_of_somebody").write_bytes(b"1")
    with owner(folder) as process:
        before = names(folder)
        assert "psm_owned" in before
        assert sweep(folder) == []
        assert names(folder) == before
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert sweep(folder) == ["psm_owned"]
        assert names(folder) == {"psm_of_somebody"}
        assert sweep(folder) == []


def test_a_name_that_another_took_since_stays(folder: Path) -> None:
    with owner(folder) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        (folder / "psm_other").write_bytes(b"another inode")
        (folder / "psm_other").replace(folder / "psm_owned")
        assert sweep(folder) == []
        assert names(folder) == {"psm_owned"}


def test_a_ledger_of_another_user_is_nobodys_business(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with owner(folder) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        monkeypatch.setattr(os, "getuid", lambda: 12345)
        assert sweep(folder) == []
        assert "psm_owned" in names(folder)


def test_closing_unlinks_what_our_processes_map_and_nothing_else(folder: Path) -> None:
    with mapped(folder / "before"):
        ledger = Ledger(folder)
        (folder / "unmapped").write_bytes(b"1")
        with mapped(folder / "ours"), mapped(folder / "unlinked already"):
            ledger.note([os.getpid()])
            (folder / "unlinked already").unlink()
            ledger.close()
    assert names(folder) == {"before", "unmapped"}


def test_a_segment_may_be_mapped_some_looks_after_it_was_made(folder: Path) -> None:
    ledger = Ledger(folder)
    (folder / "late").write_bytes(bytes(4096))
    for _ in range(LOOKS - 1):
        ledger.note([os.getpid()])
    with mapped(folder / "late"):
        ledger.note([os.getpid()])
    ledger.close()
    assert names(folder) == set()


def test_a_semaphore_gets_its_name_after_it_was_mapped(folder: Path) -> None:
    ledger = Ledger(folder)
    with mapped(folder / "sem.xY1"):
        (folder / "sem.mp-1").hardlink_to(folder / "sem.xY1")
        (folder / "sem.xY1").unlink()
        ledger.note([os.getpid()])
    ledger.close()
    assert names(folder) == set()


def test_processes_are_looked_at_only_while_something_is_new(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(folder)
    (folder / "of_others").write_bytes(b"1")
    for _ in range(LOOKS):
        ledger.note([os.getpid()])
    monkeypatch.setattr(shared_memory, "_mapped_by", lambda *_: pytest.fail("nothing is new"))
    ledger.note([os.getpid()])


def test_a_torn_last_line_and_a_process_that_is_gone_do_no_harm(folder: Path) -> None:
    (folder / "psm_torn").write_bytes(b"1")
    (folder / "rlhf_dist-1-abcdef00.names").write_text(f"{(folder / 'psm_torn').stat().st_ino} psm_to")
    assert sweep(folder) == []
    assert names(folder) == {"psm_torn"}
    ledger = Ledger(folder)
    (folder / "new").write_bytes(b"1")
    ledger.note([2**22 + 1])
