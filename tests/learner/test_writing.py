"""Files of tensors as any reader of safetensors takes them, written in the background, with their digests."""

import threading
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from rlhf_dist.checkpoint import complete_or_absent, verify
from rlhf_dist.errors import StorageError
from rlhf_dist.learner import writing
from rlhf_dist.learner.writing import NAMES, Writer, write_tensors


def tensors() -> dict[str, torch.Tensor]:
    found = {str(dtype): torch.arange(6).view(2, 3).to(dtype) for dtype in NAMES}
    turned = torch.arange(12.0).view(3, 4).t()
    return {**found, "turned": turned, "scalar": torch.tensor(3.5), "none": torch.zeros(0, 4), "ü": torch.ones(1)}


def test_what_is_written_is_read_by_safetensors_and_has_its_digest(tmp_path: Path) -> None:
    with complete_or_absent(tmp_path / "made", lambda _: told) as aside:
        file = aside / "model.safetensors"
        told = {str(file.absolute()): write_tensors(file, tensors())}
    verify(tmp_path / "made")
    found = load_file(tmp_path / "made" / "model.safetensors")
    assert found.keys() == tensors().keys()
    for name, tensor in tensors().items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
    with safe_open(tmp_path / "made" / "model.safetensors", framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_whoever_has_it_written_goes_on_and_waits_for_one_folder_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may, own = threading.Event(), writing.write_tensors

    def when_it_may(file: Path, held: dict[str, torch.Tensor]) -> str:
        assert may.wait(60)
        return own(file, held)

    monkeypatch.setattr(writing, "write_tensors", when_it_may)
    writer = Writer()
    for folder in ("a", "b"):
        writer.write(tmp_path / folder / "x.safetensors", {"x": torch.ones(3)})
    assert not (tmp_path / "a" / "x.safetensors").exists()
    may.set()
    told = writer.written(tmp_path / "b")
    assert [*told] == [str(tmp_path / "b" / "x.safetensors")]
    assert [*writer.written(tmp_path)] == [str(tmp_path / "a" / "x.safetensors")]
    assert writer.written(tmp_path) == {}


def test_what_the_disk_refuses_is_told_to_who_waits_for_it(tmp_path: Path) -> None:
    writer = Writer()
    (tmp_path / "model.safetensors").mkdir()
    writer.write(tmp_path / "model.safetensors", {"x": torch.ones(3)})
    with pytest.raises(StorageError, match="model.safetensors: cannot be written: Is a directory"):
        writer.written(tmp_path)
    assert writer.written(tmp_path) == {}, "once"
