"""Checkpoints that are written while the run goes on: complete or absent, one at a time."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf_dist.checkpoint import DIGESTS, verify
from rlhf_dist.errors import ModelError, StorageError
from rlhf_dist.stages.behind import Behind


class Learner:
    """A group whose ranks have written when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Path, Callable[[dict[str, str]], None]]] = []

    def when_written(self, folder: Path, done: Callable[[dict[str, str]], None]) -> None:
        self.waiting.append((folder, done))

    def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.end({})

    def end(self, digests: dict[str, str]) -> None:
        folder, done = self.waiting.pop(0)
        done({str(folder / name): digest for name, digest in digests.items()})


def behind() -> tuple[Any, Learner]:
    learner: Any = Learner()
    return Behind(learner), learner


def fill(folder: Path) -> None:
    (folder / "state.json").write_text("{}")


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def test_a_checkpoint_takes_its_name_when_all_is_written_and_not_before(tmp_path: Path) -> None:
    saving, learner = behind()
    then: list[list[str]] = []
    with saving:
        saving.write(tmp_path / "step-1", fill, lambda: then.append(names(tmp_path)))
        assert names(tmp_path) == [".step-1.partial"]
        (tmp_path / ".step-1.partial" / "model.safetensors").write_text("weights")
        learner.end({"model.safetensors": "told, not made by reading it"})
        assert names(tmp_path) == ["step-1"]
        assert then == [["step-1"]], "what is older goes when it is there"
    digests = json.loads((tmp_path / "step-1" / DIGESTS).read_text())
    assert digests["model.safetensors"] == "told, not made by reading it"
    assert digests["state.json"].startswith("xxh3-128 ")
    with pytest.raises(ModelError, match="model.safetensors: missing or changed"):
        verify(tmp_path / "step-1")


def test_the_next_checkpoint_and_the_end_wait_for_the_one_on_its_way(tmp_path: Path) -> None:
    saving, learner = behind()
    with saving:
        saving.write(tmp_path / "step-1", fill, lambda: None)
        saving.write(tmp_path / "step-2", fill, lambda: None)
        assert names(tmp_path) == [".step-2.partial", "step-1"]
        assert len(learner.waiting) == 1
    assert names(tmp_path) == ["step-1", "step-2"]
    verify(tmp_path / "step-2")


@pytest.mark.parametrize("error", [StorageError("no space left"), KeyboardInterrupt(), OSError(28, "elsewhere")])
def test_whatever_fails_meanwhile_leaves_nothing_of_it_and_is_told_as_it_is(
    error: BaseException, tmp_path: Path
) -> None:
    saving, _ = behind()
    saving.write(tmp_path / "step-1", fill, lambda: None)
    saving.finish()

    def goes_on() -> None:
        with saving:
            saving.write(tmp_path / "step-2", fill, lambda: None)
            raise error

    with pytest.raises(type(error)) as told:
        goes_on()
    assert told.value is error
    assert names(tmp_path) == ["step-1"]


def test_a_disk_that_is_full_while_copying_leaves_nothing_either(tmp_path: Path) -> None:
    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    saving, _ = behind()
    with pytest.raises(StorageError, match="step-1: cannot be written: No space left"), saving:
        saving.write(tmp_path / "step-1", full, lambda: None)
    assert names(tmp_path) == []
