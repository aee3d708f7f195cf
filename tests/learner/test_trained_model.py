"""DeepSpeed itself, every ZeRO stage, as the only rank; several ranks: tests/integration/test_learner_parity.py."""

import math
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_dist.config import Learner, Lora, Optimizer
from rlhf_dist.data.examples import example_table
from rlhf_dist.imports import import_deepspeed
from rlhf_dist.learner import optimizer_state
from rlhf_dist.learner.adapters import adapt
from rlhf_dist.learner.example_batch import ExampleBatch
from rlhf_dist.learner.freeing import let_go
from rlhf_dist.learner.frozen_model import FrozenModel, FrozenSpec
from rlhf_dist.learner.host_states import LEAST, HostStates
from rlhf_dist.learner.optimizer_state import PIECES
from rlhf_dist.learner.rank import LearnerRank
from rlhf_dist.learner.trained_model import TrainedModel
from rlhf_dist.models import PackedBatch, PolicyModel, pack
from rlhf_dist.planning.zero_buffers import zero_buffers
from tests.learner.test_policy_update import SHAPE

STAGES = [(0, "float32"), (1, "float32"), (2, "float32"), (3, "float32")]
STAGES += [(1, "bfloat16"), (2, "bfloat16"), (3, "bfloat16")]
HALVES = [stage for stage in STAGES if stage[1] == "bfloat16"]
MICROS = 400
ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1", "DS_ACCELERATOR": "cpu"}


@pytest.fixture(scope="module", autouse=True)
def _alone() -> Iterator[None]:
    """A process group of this process, which needs no port."""
    with pytest.MonkeyPatch.context() as patched:
        for name, value in ALONE.items():
            patched.setenv(name, value)
        import_deepspeed()
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
        deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
        yield
        deepspeed.comm.comm.destroy_process_group()
        deepspeed.comm.comm.cdb = None


def policy() -> PolicyModel:
    torch.manual_seed(0)
    return PolicyModel(LlamaForCausalLM(LlamaConfig(**SHAPE)), value_head=True)


def trained(
    stage: tuple[int, str], module: PolicyModel | None = None, *, steps: int = 8, **options: Any
) -> TrainedModel:
    settings = Optimizer(**{"lr": 1e-2, "warmup": 0.25, "max_grad_norm": 1e9, **options})
    learner = Learner(zero_stage=stage[0], precision="bf16" if stage[1] == "bfloat16" else "fp32")
    return TrainedModel(module or policy(), settings, learner, total_steps=steps)


def batch() -> PackedBatch:
    tokens = np.random.default_rng(0).integers(1, 61, size=12).astype(np.int32)
    return pack([tokens], [range(11)], [[0]])


def loss_of(outputs: Any) -> torch.Tensor:
    log_probs, _, values = outputs
    total: torch.Tensor = (values - 1.0).square().sum() - log_probs.sum()
    return total


def weights(model: TrainedModel) -> dict[str, torch.Tensor]:
    """The module's own, with which it computes."""
    import deepspeed

    with deepspeed.zero.GatheredParameters([*model.module.parameters()], enabled=model.zero_stage == 3):
        return {name: each.detach().clone() for name, each in model.module.named_parameters()}


def go(model: TrainedModel) -> dict[str, float]:
    model.backward(loss_of(model(batch())))
    told = model.step()
    assert told is not None
    return told


@pytest.mark.parametrize("stage", STAGES)
def test_the_first_step_learns_at_the_rate_that_is_told(stage: tuple[int, str]) -> None:
    model = trained(stage)
    before = weights(model)["value_head.weight"]
    told = go(model)
    after = weights(model)["value_head.weight"]
    # AdamW's first step is the learning rate, whatever the gradient's size.
    assert (after - before).abs().max().item() == pytest.approx(told["lr"], rel=1e-2)
    assert told["lr"] == pytest.approx(1e-2 / 3)
    assert [go(model)["lr"] for _ in range(2)] == pytest.approx([2e-2 / 3, 1e-2])
    model.free()


def test_after_steps_that_were_skipped_the_schedule_is_where_they_would_have_brought_it(tmp_path: Path) -> None:
    model = trained((2, "float32"), warmup=0.0, schedule="linear")
    go(model)
    model.skip(3)
    assert [go(model)["lr"] for _ in range(2)] == pytest.approx([0.5e-2, 0.375e-2])
    model.save_state(tmp_path / "rank-0")
    model.free()
    again = trained((2, "float32"), warmup=0.0, schedule="linear")
    again.load_state(tmp_path)
    assert go(again)["lr"] == pytest.approx(0.25e-2)
    again.free()


@pytest.mark.parametrize("stage", STAGES)
def test_a_loaded_state_is_in_the_modules_weights_before_the_first_step(stage: tuple[int, str], tmp_path: Path) -> None:
    model = trained(stage)
    for _ in range(3):
        go(model)
    model.save_state(tmp_path / "rank-0")
    saved = weights(model)
    assert saved["value_head.weight"].abs().max() > 0
    again = trained(stage)
    again.load_state(tmp_path)
    for name, found in weights(again).items():
        assert torch.equal(found, saved[name]), name
    with torch.no_grad():
        assert torch.equal(again(batch())[2], model(batch())[2]), "values"
    assert go(again) == go(model)
    for name, found in weights(again).items():
        assert torch.equal(found, weights(model)[name]), name
    model.free()
    again.free()


def test_settings_of_a_resumed_run_are_those_that_it_is_given_now(tmp_path: Path) -> None:
    model = trained((2, "float32"))
    go(model)
    model.save_state(tmp_path / "rank-0")
    model.free()
    given = {"lr": 1e-4, "schedule": "linear", "betas": (0.5, 0.6), "weight_decay": 0.3, "warmup": 0.0}
    again = trained((2, "float32"), steps=5, **given)
    again.load_state(tmp_path)
    assert [go(again)["lr"] for _ in range(4)] == pytest.approx([0.8e-4, 0.6e-4, 0.4e-4, 0.2e-4])
    group = again.engine.optimizer.param_groups[0]
    assert (group["betas"], group["weight_decay"]) == ((0.5, 0.6), 0.3)
    again.free()


def adapted_policy() -> PolicyModel:
    torch.manual_seed(0)
    lm = LlamaForCausalLM(LlamaConfig(**SHAPE))
    adapt(lm, Lora(rank=2))
    lm.gradient_checkpointing_enable({"use_reentrant": False})
    return PolicyModel(lm, value_head=True).train()


@pytest.mark.parametrize("stage", STAGES)
def test_a_policy_with_adapters_is_its_own_reference_between_its_steps_and_goes_on_from_its_base(
    stage: tuple[int, str], tmp_path: Path
) -> None:
    model, undisturbed = (trained(stage, adapted_policy(), lr=1e-1) for _ in range(2))
    with torch.no_grad():
        start = model(batch())[0]
    for _ in range(3):
        with torch.no_grad(), model.without_adapters():
            assert torch.equal(model(batch())[0], start), "the base is frozen"
        assert go(model) == go(undisturbed)
    with torch.no_grad():
        own = model(batch())[0]
    assert (own - start).abs().max() > 1e-3
    model.save_state(tmp_path / "rank-0")
    kept = sum(tensor.numel() for key, tensor in load_file(tmp_path / "rank-0" / PIECES).items() if "/weight/" in key)
    assert kept == sum(shape.numel() for name, shape in model.shapes() if ".lora_" in name) + SHAPE["hidden_size"]
    again = trained(stage, adapted_policy(), lr=1e-1)
    again.load_state(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(batch())[0], own)
    assert go(again) == go(model)
    for each in (model, undisturbed, again):
        each.free()


@pytest.mark.parametrize("stage", HALVES)
def test_gradients_in_bf16_add_up_in_fp32(stage: tuple[int, str]) -> None:
    plain, model = policy(), trained(stage)
    dtypes = {name: each.dtype for name, each in model.module.named_parameters()}
    for name, each in plain.named_parameters():
        each.data = each.data.to(dtypes[name])
    (loss_of(plain(batch())) / MICROS).backward()
    each = [parameter.grad for parameter in plain.parameters()]
    summed = [torch.zeros_like(gradient) for gradient in each]
    for _ in range(MICROS):
        model.backward(loss_of(model(batch())) / MICROS)
        for total, gradient in zip(summed, each, strict=True):
            total += gradient
    expected, halves = MICROS * _norm(each), _norm(summed)
    told = model.step()
    assert told is not None
    assert told["grad_norm"] == pytest.approx(expected, rel=1e-4)
    assert abs(halves - expected) > 0.05 * expected, "in bf16 they would not"
    model.free()


def _norm(gradients: Any) -> float:
    return float(torch.sqrt(sum(each.float().square().sum() for each in gradients)))


@pytest.mark.parametrize("stage", STAGES)
def test_float_buffers_keep_their_numbers(stage: tuple[int, str]) -> None:
    module = policy()
    before = {name: each.clone() for name, each in module.named_buffers()}
    assert any("inv_freq" in name for name in before)
    model = trained(stage, module)
    for name, each in model.module.named_buffers():
        assert each.dtype == before[name].dtype
        assert torch.equal(each, before[name]), name
    model.free()


@pytest.mark.parametrize("stage", STAGES)
def test_no_step_is_taken_on_a_gradient_that_is_no_number(stage: tuple[int, str], tmp_path: Path) -> None:
    model, other = trained(stage), trained(stage)
    for each in (model, other):
        go(each)
    model.save_state(tmp_path / "before")
    before = weights(model)
    model.backward(loss_of(model(batch())))
    model.backward(loss_of(model(batch())) * math.inf)
    assert model.step() is None
    other.skip(1)
    model.save_state(tmp_path / "after")
    for name, found in weights(model).items():
        assert torch.equal(found, before[name]), name
    kept, left = (load_file(tmp_path / which / PIECES) for which in ("before", "after"))
    assert any("exp_avg" in key for key in kept)
    assert kept.keys() == left.keys()
    assert all(torch.equal(kept[key], left[key]) for key in kept), "master weights and moments"
    assert model.steps == other.steps == 2
    assert [go(model) for _ in range(2)] == [go(other) for _ in range(2)], (
        "no gradient was left over; the schedule went on"
    )
    for name, found in weights(model).items():
        assert torch.equal(found, weights(other)[name]), name
    model.free()
    other.free()


def test_an_infinite_loss_with_a_finite_gradient_is_noticed() -> None:
    model = trained((0, "float32"))
    model.backward(loss_of(model(batch())) + math.inf)
    assert model.step() is None
    model.free()


class Several(LearnerRank):
    """The only rank of a group, in this process."""

    def __init__(self, model: TrainedModel) -> None:
        super().__init__(0, 1, Learner(ranks=1))
        self.models["model"] = model


def nan_loss(model: TrainedModel, examples: ExampleBatch) -> tuple[torch.Tensor, dict[str, float]]:
    log_probs = model(examples.packed)[0]
    return -log_probs.sum() * examples.targets["weight"].sum(), {"entropy": 1.0}


@pytest.mark.parametrize("stage", [(0, "float32"), (3, "bfloat16")])
def test_a_supervised_step_names_the_examples_that_are_not_finite(stage: tuple[int, str]) -> None:
    model = trained(stage)
    rank, before = Several(model), weights(model)
    tokens = [np.arange(1 + n, 9 + n).astype(np.int32) for n in range(4)]
    table = example_table(tokens, [range(7)] * 4, {"weight": [1.0, 1.0, math.nan, 1.0]})
    facts, found = rank.train_step("model", table, [[[0], [1]], [[2], [3]]], nan_loss, 28.0, draws=0)
    assert [(each.step, each.what, each.samples) for each in found if not each.vague] == [(1, "the loss is nan", (2,))]
    assert all(torch.equal(each, before[name]) for name, each in weights(model).items())
    facts, found = rank.train_step("model", table, [[[0], [1]], [[3]]], nan_loss, 21.0, draws=1)
    assert (found, model.steps) == ([], 2)
    assert math.isfinite(facts["loss"])
    assert not torch.equal(weights(model)["value_head.weight"], before["value_head.weight"]) or facts["grad_norm"] > 0
    model.free()


@pytest.mark.parametrize("stage", STAGES)
def test_a_model_that_makes_room_for_another_is_gone_with_its_states(stage: tuple[int, str]) -> None:
    model = trained(stage)
    rank = Several(model)
    for _ in range(2):
        go(model)
    left = [weakref.ref(each) for each in (model.engine, model.module, model.engine.optimizer)]
    left += [weakref.ref(parameter) for parameter in model.module.parameters()]
    del model
    let_go(rank.models)
    assert not rank.models
    assert not [each() for each in left if each() is not None]


def test_a_model_that_is_only_asked_is_gone_once_another_takes_its_name(tmp_path: Path) -> None:
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(tmp_path)
    rank = LearnerRank(0, 1, Learner(ranks=1, zero_stage=2))
    spec = FrozenSpec(str(tmp_path), 1.0)
    rank.renew("reference", spec)
    rank.frozen["reference"](batch())
    left = [weakref.ref(each) for each in (rank.frozen["reference"], rank.frozen["reference"].engine.module)]
    rank.renew("reference", spec)
    assert not [each() for each in left if each() is not None]
    let_go(rank.frozen)


@pytest.mark.parametrize(
    ("before", "after"), [(STAGES[n], STAGES[(n + step) % len(STAGES)]) for step in (1, 3) for n in range(len(STAGES))]
)
def test_a_state_goes_on_in_any_layout_and_precision(
    before: tuple[int, str], after: tuple[int, str], tmp_path: Path
) -> None:
    model = trained(before)
    for _ in range(3):
        go(model)
    model.save_state(tmp_path / "one" / "rank-0")
    again = trained(after)
    again.load_state(tmp_path / "one")
    again.save_state(tmp_path / "other" / "rank-0")
    one, other = (load_file(tmp_path / name / "rank-0" / PIECES) for name in ("one", "other"))
    assert one.keys() == other.keys()
    assert {key.split("/")[1] for key in one} == {"weight", "step", "exp_avg", "exp_avg_sq"}
    for key, value in one.items():
        assert torch.equal(value, other[key]), key
    assert again.steps == 3
    model.free()
    again.free()


@pytest.mark.parametrize("stage", STAGES)
def test_states_that_were_away_between_steps_are_the_same_to_the_bit(stage: tuple[int, str]) -> None:
    staying, leaving = trained(stage), trained(stage)
    parameters = sum(each.numel() for each in policy().parameters())
    for _ in range(3):
        assert go(leaving) == go(staying)
        away = leaving.states.leave()
        # Moments and, but in stage 0, masters.
        assert away > (8 if stage == (0, "float32") else 12) * 0.95 * parameters
        assert leaving.states.leave() == away, "once"
        held = [each.untyped_storage().nbytes() for each in optimizer_state.held(leaving.engine).values()]
        own = parameters * 4 if stage[0] == 0 else 0
        assert sum(held) < own + 2 * LEAST * len(held), "what is held is not here"
        for name, found in weights(leaving).items():
            assert torch.equal(found, weights(staying)[name]), f"{name} is published while the states are away"
        leaving.states.come_back()
        leaving.states.come_back()
    for name, value in staying.state().items():
        assert torch.equal(leaving.state()[name], value), name
    staying.free()
    leaving.free()


def test_pinned_memory_is_made_once_whatever_comes_between(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HostStates, "_on_card", True)
    monkeypatch.setattr("torch.cuda.synchronize", lambda: None)
    model, made = trained((2, "float32")), list[int]()
    monkeypatch.setattr("rlhf_dist.learner.host_states.pinned", lambda own: made.append(own.nbytes) or own.clone())
    storages = model.states._storages
    for number in range(3):
        extra = [torch.ones(LEAST + 8).untyped_storage()] if number else []  # before all others: gradients, say
        monkeypatch.setattr(model.states, "_storages", lambda extra=extra: [*extra, *storages()])
        model.states.leave()
        model.states.come_back()
        if number < 2:
            assert made.count((LEAST + 8) * 4) == number
            before = len(made)
    assert len(made) == before
    model.free()


def test_a_frozen_model_that_was_away_says_the_same(tmp_path: Path) -> None:
    policy().get_submodule(policy().prefix.rstrip(".")).save_pretrained(tmp_path)
    given = {"zero_optimization": {"stage3_prefetch_bucket_size": 77}}
    model = FrozenModel(FrozenSpec(str(tmp_path), temperature=1.0), Learner(zero_stage=2, deepspeed=given))
    assert model.engine._config.zero_config.prefetch_bucket_size == 77
    assert (
        model.engine._config.zero_config.max_live_parameters
        == zero_buffers(SHAPE["hidden_size"], 3)["stage3_max_live_parameters"]
    )
    before, parameters = model(batch()), sum(each.ds_numel for each in model.engine.module.parameters())
    for _ in range(2):
        assert model.states.leave() == model.states.leave() > 4 * 0.95 * parameters
        assert sum(each.ds_tensor.untyped_storage().nbytes() for each in model.engine.module.parameters()) < LEAST * 99
        model.states.come_back()
        assert torch.equal(model(batch()), before)
    model.free()
