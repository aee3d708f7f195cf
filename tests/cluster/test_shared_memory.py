"""Ledgers of real processes that are killed, in a folder of their own."""

import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rlhf_dist.cluster import shared_memory
from rlhf_dist.cluster.shared_memory import LOOKS, Ledger, sweep

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
    tmp_path: Path,
) -> None:
    (tmp_path / "psm_of_somebody").write_bytes(b"1")
    with owner(tmp_path) as process:
        before = names(tmp_path)
        assert "psm_owned" in before
        assert sweep(tmp_path) == []
        assert names(tmp_path) == before
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert sweep(tmp_path) == ["psm_owned"]
        assert names(tmp_path) == {"psm_of_somebody"}
        assert sweep(tmp_path) == []


def test_a_name_that_another_took_since_stays(tmp_path: Path) -> None:
    with owner(tmp_path) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        (tmp_path / "psm_other").write_bytes(b"another inode")
        (tmp_path / "psm_other").replace(tmp_path / "psm_owned")
        assert sweep(tmp_path) == []
        assert names(tmp_path) == {"psm_owned"}


def test_a_ledger_of_another_user_is_nobodys_business(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with owner(tmp_path) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        monkeypatch.setattr(os, "getuid", lambda: 12345)
        assert sweep(tmp_path) == []
        assert "psm_owned" in names(tmp_path)


def test_closing_unlinks_what_our_processes_map_and_nothing_else(tmp_path: Path) -> None:
    with mapped(tmp_path / "before"):
        ledger = Ledger(tmp_path)
        (tmp_path / "unmapped").write_bytes(b"1")
        with mapped(tmp_path / "ours"), mapped(tmp_path / "unlinked already"):
            ledger.note([os.getpid()])
            (tmp_path / "unlinked already").unlink()
            ledger.close()
    assert names(tmp_path) == {"before", "unmapped"}


def test_a_segment_may_be_mapped_some_looks_after_it_was_made(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    (tmp_path / "late").write_bytes(bytes(4096))
    for _ in range(LOOKS - 1):
        ledger.note([os.getpid()])
    with mapped(tmp_path / "late"):
        ledger.note([os.getpid()])
    ledger.close()
    assert names(tmp_path) == set()


def test_processes_are_looked_at_only_while_something_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(tmp_path)
    (tmp_path / "of_others").write_bytes(b"1")
    for _ in range(LOOKS):
        ledger.note([os.getpid()])
    monkeypatch.setattr(shared_memory, "_mapped_by", lambda *_: pytest.fail("nothing is new"))
    ledger.note([os.getpid()])


def test_a_torn_last_line_and_a_process_that_is_gone_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "psm_torn").write_bytes(b"1")
    (tmp_path / "rlhf_dist-1-abcdef00.names").write_text(f"{(tmp_path / 'psm_torn').stat().st_ino} psm_to")
    assert sweep(tmp_path) == []
    assert names(tmp_path) == {"psm_torn"}
    ledger = Ledger(tmp_path)
    (tmp_path / "new").write_bytes(b"1")
    ledger.note([2**22 + 1])
