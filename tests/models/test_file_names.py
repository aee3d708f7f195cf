"""Weights under the names of their files, there and back, and saved as they were trained."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GenerationConfig

from rlhf_dist.errors import ModelError, WeightError
from rlhf_dist.learner.published import Whole, collected
from rlhf_dist.learner.saving import check_can_be_saved, save_model
from rlhf_dist.models.file_names import in_file, persistent_buffers, take_over, units_of
from tests.learner.test_published import Sharded
from tests.models.families import folder_of

EXPERTS = ("qwen2_moe", "mixtral", "deepseek_v3", "glm4_moe", "granitemoe", "gpt_oss", "minimax_m2", "ernie4_5_moe")
OTHERS = ("mistral", "gpt_neox", "gpt2", "bamba", "deepseek_v2", "gemma4_text")
BUFFERS = ("deepseek_v3", "glm4_moe", "minimax_m2", "gemma4_text")
"""Families whose files hold more than parameters: router biases, scalars of layers."""


def model_of(family: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder_of(family), dtype=torch.float32).eval()


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: each.detach() for name, each in model.named_parameters()} | persistent_buffers(model)


def shapes_in(family: str) -> dict[str, list[int]]:
    return {name: list(each.shape) for name, each in load_file(folder_of(family) / "model.safetensors").items()}


@pytest.mark.parametrize("family", [*EXPERTS, *OTHERS])
def test_units_name_and_shape_what_the_file_holds(family: str) -> None:
    model = model_of(family)
    own = weights_of(model)
    units = units_of(model, [(name, each.shape) for name, each in own.items()])
    assert {name: list(shape) for unit in units for name, shape in unit.files} == shapes_in(family)
    assert sorted(name for unit in units for name in unit.own) == sorted(own)
    assert sum(unit.numel for unit in units) == sum(each.numel() for each in own.values())
    found = load_file(folder_of(family) / "model.safetensors")
    for unit in units:
        for name, tensor in in_file(model, {each: own[each] for each in unit.own}).items():
            assert torch.equal(tensor, found[name]), name


@pytest.mark.parametrize("family", [*EXPERTS, *OTHERS])
def test_a_model_takes_over_what_another_publishes(family: str) -> None:
    model = model_of(family)
    found = load_file(folder_of(family) / "model.safetensors")
    with torch.no_grad():
        for each in weights_of(model).values():
            each.zero_()
    take_over(model, found)
    expected = weights_of(model_of(family))
    assert all(torch.equal(each, expected[name]) for name, each in weights_of(model).items())


def test_weights_that_do_not_fit_are_named() -> None:
    model, found = model_of("mixtral"), load_file(folder_of("mixtral") / "model.safetensors")
    name = next(each for each in found if "experts" in each)
    with pytest.raises(WeightError, match=rf"1 names differ, e.g. {name}"):
        take_over(model, {each: tensor for each, tensor in found.items() if each != name})
    with pytest.raises(WeightError, match=rf"{name} has the shape \[3\]; the model's is"):
        take_over(model, found | {name: torch.zeros(3)})


@pytest.mark.parametrize("family", BUFFERS)
def test_what_is_saved_is_what_was_trained_buffers_in_their_own_dtype(family: str, tmp_path: Path) -> None:
    model = model_of(family)
    buffers = persistent_buffers(model)
    assert buffers
    weights = Whole(Sharded(model))
    names = [name for name, _ in weights.shapes()]
    save_model(model, collected(weights, names, dtype=torch.bfloat16, keep=True), tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert {name: list(each.shape) for name, each in saved.items()} == shapes_in(family)
    read = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    for name, buffer in persistent_buffers(read).items():
        assert torch.equal(buffer, buffers[name]), name
    for name, parameter in read.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name).bfloat16().float()), name


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ({"temperature": 0.6, "top_p": 0.9, "eos_token_id": 2}, {"do_sample": True, "temperature": 0.6}),
        ({"do_sample": False, "top_k": 5, "eos_token_id": [2, 7]}, {"eos_token_id": [2, 7]}),
        ({"typical_p": 0.3, "pad_token_id": 0}, {"pad_token_id": 0}),
        ({"num_beams": 1, "early_stopping": True, "length_penalty": 2.0, "eos_token_id": 3}, {"eos_token_id": 3}),
    ],
)
def test_a_generation_config_that_cannot_be_written_is_repaired_before_training(
    written: dict[str, Any], kept: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(folder_of("mistral"), tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(written))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="GenerationConfig is invalid"):
        model.generation_config.save_pretrained(tmp_path)
    check_can_be_saved(model)
    assert "generation_config.json repaired" in caplog.text
    save_model(model, model.state_dict(), tmp_path / "saved")
    read = GenerationConfig.from_pretrained(tmp_path / "saved").to_dict()
    assert kept.items() <= read.items()


def test_what_would_be_lost_is_refused_before_training() -> None:
    model = model_of("mistral")
    model.register_buffer("beside", torch.zeros(3))
    with pytest.raises(
        ModelError, match=r"1 of Mistral.* weights would not be saved .* beside: \[3\] instead of nothing"
    ):
        check_can_be_saved(model)
    short = model_of("mistral")
    del short.model.layers[1]
    with pytest.raises(ModelError, match=r"model.layers.1\..*: nothing instead of"):
        check_can_be_saved(short)
    odd = model_of("mistral")
    odd.config.rope_parameters = {"rope_type": object()}
    with pytest.raises(ModelError, match="config cannot be written again"):
        check_can_be_saved(odd)
