"""The module that a role makes of a folder; what temperature does to it: tests/stages/test_wiring.py."""

import pytest
import torch

from rlhf_dist.config import Learner, Lora, Optimizer
from rlhf_dist.errors import ConfigError
from rlhf_dist.learner.model_spec import ModelSpec
from rlhf_dist.models import PolicyModel, ValueModel
from tests.models.families import folder_of
from tests.runs import Folders


def spec(folders: Folders, kind: str, **options: object) -> ModelSpec:
    path = folders.policy if kind == "policy" else folders.reward
    return ModelSpec(str(path), kind, Optimizer(), 10, **options)


@pytest.mark.parametrize("kind", ["policy", "value"])
def test_a_module_trains_in_fp32_with_what_its_role_needs(kind: str, folders: Folders) -> None:
    module = spec(folders, kind).build(Learner())
    assert isinstance(module, PolicyModel if kind == "policy" else ValueModel)
    assert module.training
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert all(name.startswith(module.prefix) for name, _ in module.named_parameters())
    assert not module.get_submodule(module.prefix.rstrip(".")).is_gradient_checkpointing


def test_activations_are_computed_anew_where_the_settings_say_so(folders: Folders) -> None:
    module = spec(folders, "policy").build(Learner(gradient_checkpointing=True))
    assert module.lm.is_gradient_checkpointing


def test_a_value_head_starts_at_zero_and_an_ensemble_has_its_heads(folders: Folders) -> None:
    module = spec(folders, "policy", value_head=True).build(Learner())
    assert not module.value_head.weight.detach().any()
    several = ModelSpec(str(folders.policy), "value", Optimizer(), 10, heads=3).build(Learner())
    assert several.classifier.score.out_features == 3
    scaled = spec(folders, "value", shift=2.0, scale=0.5).build(Learner())
    assert (scaled.shift, scaled.scale) == (2.0, 0.5)


@pytest.mark.parametrize("kind", ["policy", "value"])
def test_with_adapters_only_they_and_a_new_head_are_trained(kind: str, folders: Folders) -> None:
    module = spec(folders, kind, lora=Lora(rank=2)).build(Learner())
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert trained
    heads = {name for name in trained if "score" in name}
    assert all("lora_" in name for name in trained - heads)
    assert bool(heads) == (kind == "value")


@pytest.mark.parametrize("kind", ["policy", "value"])
@pytest.mark.parametrize(
    ("family", "targets", "told"),
    [
        ("mistral", ("all-linear",), None),
        ("qwen3_moe", ("all-linear",), None),
        ("mistral", ("nope",), "lora.targets is .*nope"),
        ("gpt2", ("all-linear",), "transposed"),
        ("qwen2_moe", ("all-linear",), "adapters do not reach 4 layers of Qwen2Moe.*experts"),
    ],
)
def test_adapters_are_refused_by_a_config_alone(
    family: str, targets: tuple[str, ...], told: str | None, kind: str
) -> None:
    made = ModelSpec(str(folder_of(family)), kind, Optimizer(), 10, lora=Lora(rank=2, targets=targets))
    if told is None:
        made.check_adapters()
    else:
        with pytest.raises(ConfigError, match=told):
            made.check_adapters()
