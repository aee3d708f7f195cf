"""Models without weights: the same checks, buffers and draws as of a model that is read whole, and weights group by group."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from rlhf_dist.config import Learner, Optimizer
from rlhf_dist.errors import ModelError
from rlhf_dist.learner.filling import fill
from rlhf_dist.learner.model_spec import ModelSpec
from rlhf_dist.models import PolicyModel, load_policy, load_value_model
from rlhf_dist.models.hollow import is_hollow, own_names
from rlhf_dist.models.stored import FileWeights
from tests.models.families import folder_of
from tests.models.test_wrapped import SHAPE

FAMILIES = ["mistral", "gemma2", "gemma3_text", "gpt_neox", "opt", "bloom", "xglm", "falcon_h1", "zaya", "minimax_m2"]
MERGED = ["mixtral", "qwen3_moe", "deepseek_v3"]
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 1e4},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32},
}


def hollow_of(path: Path | str, **options: Any) -> Any:
    return load_policy(str(path), dtype=torch.float32, hollow=True, **options)


def check_buffers(hollow: Any, plain: Any) -> None:
    ours, theirs = dict(hollow.named_buffers()), dict(plain.named_buffers())
    assert ours.keys() == theirs.keys()
    for name, buffer in theirs.items():
        assert ours[name].dtype == buffer.dtype, name
        assert torch.equal(ours[name], buffer), name


@pytest.mark.parametrize("family", [*FAMILIES, *MERGED])
def test_buffers_are_those_of_a_model_read_whole_and_weights_too_a_group_at_a_time(family: str) -> None:
    plain, hollow = load_policy(str(folder_of(family)), dtype=torch.float32), hollow_of(folder_of(family))
    check_buffers(hollow, plain)
    expected = dict(plain.named_parameters(remove_duplicate=False))
    shapes = {name: parameter.shape for name, parameter in hollow.named_parameters(remove_duplicate=False)}
    assert shapes == {name: parameter.shape for name, parameter in expected.items()}
    assert all(map(is_hollow, hollow.parameters()))
    assert sum(parameter.untyped_storage().nbytes() for parameter in hollow.parameters()) < 1024
    weights, found = FileWeights(hollow, str(folder_of(family)), own_names(hollow)), {}
    for group in weights.groups(expected):
        read = weights.read(group)
        assert {name: tensor.shape for name, tensor in read.items()} == weights.told(group)
        found |= read
    merged = any(len(group) > 1 for group in weights.groups(expected))
    assert merged == (family in MERGED or family == "minimax_m2")
    for name, tensor in found.items():
        if name in expected:
            assert torch.equal(tensor, expected[name]), name
    assert {*dict(plain.named_parameters())} <= {*found}, "all of them, whatever their files call them"


@pytest.mark.parametrize("rope", ROPES)
def test_rotary_frequencies_keep_their_digits_in_bf16(rope: str, tmp_path: Path) -> None:
    LlamaForCausalLM(LlamaConfig(**SHAPE, rope_parameters=ROPES[rope])).save_pretrained(tmp_path)
    module = ModelSpec(str(tmp_path), "policy", Optimizer(), 10).build(Learner(precision="bf16", zero_stage=2))
    fill(module, torch.bfloat16, share=None)
    assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}
    check_buffers(module.inner, load_policy(str(tmp_path), dtype=torch.float32))


def test_a_new_head_is_drawn_as_in_a_model_read_whole_and_nothing_else_is() -> None:
    both = []
    for hollow in (False, True):
        torch.manual_seed(5)
        path = str(folder_of("mistral"))
        both.append(load_value_model(path, dtype=torch.float32, heads=3, new_head=True, hollow=hollow))
        both.append(torch.rand(3))
    plain, after, hollow, after_hollow = both
    assert torch.equal(plain.score.weight, hollow.score.weight)
    assert torch.equal(after, after_hollow), "whoever draws next draws the same"
    assert {name for name, each in hollow.named_parameters() if not is_hollow(each)} == {"score.weight"}


@pytest.mark.parametrize("equal", [True, False])
def test_two_tensors_that_the_config_calls_one_are_tied_if_they_are(equal: bool, tmp_path: Path) -> None:
    LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True)).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    found = load_file(file)
    found["lm_head.weight"] = found["model.embed_tokens.weight"].clone() + (not equal)
    save_file(found, file, metadata={"format": "pt"})
    for model in (load_policy(str(tmp_path), dtype=torch.float32), hollow_of(tmp_path)):
        assert (model.lm_head.weight is model.model.embed_tokens.weight) == equal


Change = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
WRONG: dict[str, Change] = {
    "not in the file, e.g. model.norm": lambda found: {k: v for k, v in found.items() if k != "model.norm.weight"},
    "has the shape .3. in the file": lambda found: {**found, "model.norm.weight": torch.zeros(3)},
    "has lm_head.bias": lambda found: {**found, "lm_head.bias": torch.zeros(3)},
    "hold NaN or infinity, e.g. model.norm": lambda found: {**found, "model.norm.weight": torch.full((64,), torch.nan)},
}


@pytest.mark.parametrize("told", WRONG)
def test_what_is_refused_whole_is_refused_hollow(told: str, tmp_path: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(folder_of("mistral"))
    plain.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file(WRONG[told](load_file(file)), file, metadata={"format": "pt"})
    for hollow in (False, True):
        with pytest.raises(ModelError, match=told):
            fill(PolicyModel(load_policy(str(tmp_path), dtype=torch.float32, hollow=hollow)), torch.float32, share=None)


@pytest.mark.parametrize("family", ["mistral", "mixtral"])
def test_shared_out_one_group_of_weights_is_whole_at_a_time(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModelSpec(str(folder_of(family)), "policy", Optimizer(), 10).build(Learner(ranks=2, zero_stage=3))
    shapes, most = {name: each.shape for name, each in module.named_parameters()}, 0
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", lambda found, src: None)

    def share(parameter: Any) -> None:
        nonlocal most
        whole = [each for each in module.parameters() if not is_hollow(each) and not hasattr(each, "ds_id")]
        most = max(most, len(whole))
        parameter.ds_id, parameter.ds_shape = 0, parameter.shape
        parameter.data = torch.empty(0)

    fill(module, torch.float32, share=share)
    assert most == 1
    assert {name: each.ds_shape for name, each in module.named_parameters()} == shapes
