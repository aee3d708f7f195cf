"""Models in several files, each of which one rank writes: read as one, by transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf_dist.errors import NumbersError
from rlhf_dist.learner import saving
from rlhf_dist.learner.published import Whole
from rlhf_dist.learner.saving import ModelFiles
from rlhf_dist.learner.writing import Writer
from rlhf_dist.models import load_policy
from tests.learner.test_published import Sharded
from tests.models.families import folder_of


def saved(model: Any, folder: Path, ranks: int, dtype: torch.dtype = torch.float32) -> Sharded:
    gathered = Sharded(model)
    for rank in range(ranks):
        writer = Writer()
        ModelFiles(model, Whole(gathered), dtype).write(folder, writer, rank=rank, ranks=ranks)
        written = writer.written(folder)
        assert {Path(file).exists() for file in written} <= {True}
    return gathered


@pytest.mark.parametrize("family", ["mistral", "mixtral", "minimax_m2", "gemma2"])
@pytest.mark.parametrize("ranks", [1, 3])
def test_files_of_all_ranks_are_one_model(
    family: str, ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "SAVED_BUCKET_BYTES", 40_000)
    model = load_policy(str(folder_of(family)), dtype=torch.float32)
    saved(model, tmp_path, ranks)
    files = sorted(each.name for each in tmp_path.glob("*.safetensors"))
    assert files == [f"model-{number + 1:05d}-of-{len(files):05d}.safetensors" for number in range(len(files))]
    assert len(files) > 2
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert sorted({*index["weight_map"].values()}) == files
    assert index["metadata"]["total_size"] == sum(
        tensor.nbytes for tensor in AutoModelForCausalLM.from_pretrained(tmp_path).state_dict().values()
    ) - (model.get_output_embeddings().weight.nbytes if model.config.tie_word_embeddings else 0)
    again, told = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, output_loading_info=True)
    assert not any(told.values())
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


@pytest.mark.parametrize("family", ["mistral", "gemma2"])
def test_a_small_model_is_one_file_beside_what_transformers_itself_writes(family: str, tmp_path: Path) -> None:
    model = load_policy(str(folder_of(family)), dtype=torch.float32)
    saved(model, tmp_path / "ours", 2)
    model.save_pretrained(tmp_path / "theirs")
    names = {each.name for each in (tmp_path / "theirs").iterdir()}
    assert {each.name for each in (tmp_path / "ours").iterdir()} == names
    for name in ("config.json", "generation_config.json"):
        ours, theirs = (json.loads((tmp_path / folder / name).read_text()) for folder in ("ours", "theirs"))
        assert ours == theirs, name


def test_weights_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    model = load_policy(str(folder_of("mistral")), dtype=torch.float32)
    model.model.norm.weight.data[3] = torch.nan
    with pytest.raises(NumbersError, match=r"saving the weights of MistralForCausalLM.*model.norm.weight"):
        saved(model, tmp_path, 1)
    assert [*tmp_path.iterdir()] == []
