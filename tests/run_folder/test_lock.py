"""The lock on a run's folder, between real processes."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rlhf_dist.errors import EnvironmentProblem
from rlhf_dist.run_folder.lock import LOCK, is_held, locked


@contextmanager
def another_process(folder: Path, meanwhile: str = "") -> Iterator[subprocess.Popen[str]]:
    """One that holds the lock until it is killed."""
    code = f"""
        import subprocess, sys, time
        from pathlib import Path
        from rlhf_dist.run_folder.lock import locked
        with locked(Path({str(folder)!r})):
            {meanwhile}
            print("held", flush=True)
            time.sleep(600)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def refused(folder: Path) -> str:
    with pytest.raises(EnvironmentProblem) as told:  # noqa: SIM117
        with locked(folder):
            pytest.fail("two have it")
    return str(told.value)


def test_one_process_works_in_a_folder_and_others_are_told_who_and_since_when(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with another_process(run) as process:
        told = refused(run)
        assert f"process {process.pid} on {os.uname().nodename}, since 20" in told
        assert "\n" not in told
        assert is_held(run)
        (tmp_path / "link").symlink_to(run)
        assert refused(tmp_path / "link" / ".") == told, "however it is spelt"
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not is_held(run)
        with locked(run):
            assert is_held(run)


def test_children_of_a_killed_process_do_not_keep_its_lock(tmp_path: Path) -> None:
    child = "print(subprocess.Popen(['sleep', '600'], close_fds=False).pid, file=open('child', 'w'), flush=True)"
    with another_process(tmp_path, f"import os; os.chdir({str(tmp_path)!r}); {child}") as process:
        assert is_held(tmp_path)
        process.kill()
        process.wait()
        number = int((tmp_path / "child").read_text())
        try:
            os.kill(number, 0)
            with locked(tmp_path):
                pass
        finally:
            os.kill(number, signal.SIGKILL)


def test_stages_of_a_run_share_its_lock_and_blocks_of_one_process_are_within_each_other(tmp_path: Path) -> None:
    run, stage = tmp_path / "run", tmp_path / "run" / "stages" / "sft"
    with locked(run), locked(stage), locked(run):
        assert is_held(stage)
        stage.mkdir(parents=True)
    assert not is_held(run)
    (run / "config.yaml").write_text("")
    with another_process(run):
        assert "works in this folder" in refused(stage)
    with another_process(stage):
        assert "works in this folder" in refused(run)
    other = tmp_path / "stages" / "mine"
    with locked(other):
        assert (other / LOCK).exists(), "a folder called stages that no run has"


def test_a_lock_whose_file_was_deleted_meanwhile_is_not_taken_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlhf_dist.run_folder import lock as room

    real, deleted = room._locks, []

    def delete_first(handle: int, how: int) -> bool:
        if not deleted:
            (tmp_path / LOCK).unlink()
            deleted.append(handle)
        return real(handle, how)

    monkeypatch.setattr(room, "_locks", delete_first)
    with locked(tmp_path):
        assert (tmp_path / LOCK).exists()
        monkeypatch.undo()
        assert is_held(tmp_path)


def test_nothing_stays_of_a_lock_but_what_was_there(tmp_path: Path) -> None:
    with locked(tmp_path):
        (tmp_path / "kept").write_text("x")
    assert [each.name for each in tmp_path.iterdir()] == ["kept"]
