"""An optimiser's state in files, with torch's AdamW in DeepSpeed's place; with DeepSpeed: tests/integration/test_rl_run.py."""

from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies
from safetensors.torch import load_file, save_file

from rlhf_dist.errors import ModelError
from rlhf_dist.learner import optimizer_state


def trained(steps: int, *, width: int = 3) -> tuple[Any, Any, torch.nn.Linear]:
    """An engine after some steps, its schedule, and its module."""
    torch.manual_seed(0)
    module = torch.nn.Linear(width, 2)
    adamw = torch.optim.AdamW(module.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(adamw, lambda step: 1 / (1 + step))
    for step in range(steps):
        go(module, adamw, schedule, step)
    return SimpleNamespace(optimizer=adamw, module=module), schedule, module


def go(module: torch.nn.Linear, adamw: torch.optim.Optimizer, schedule: Any, step: int) -> None:
    module(torch.ones(1, module.in_features) * (step + 1)).square().sum().backward()
    adamw.step()
    adamw.zero_grad()
    schedule.step()


def test_training_goes_on_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    engine, schedule, whole = trained(3)
    optimizer_state.save(engine, schedule, tmp_path / "rank-0")
    again, its_schedule, resumed = trained(0)
    optimizer_state.load(again, its_schedule, tmp_path)
    assert its_schedule.get_last_lr() == schedule.get_last_lr()
    for each, module, adamw in ((schedule, whole, engine.optimizer), (its_schedule, resumed, again.optimizer)):
        go(module, adamw, each, 3)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_state_of_another_model_or_of_none_is_refused(tmp_path: Path) -> None:
    engine, schedule, _ = trained(1)
    optimizer_state.save(engine, schedule, tmp_path / "rank-0")
    for width in (2, 4):
        with pytest.raises(
            ModelError, match=rf"the state has 6 elements of weight, expected {2 * width}; it is of another"
        ):
            optimizer_state.load(*trained(0, width=width)[:2], tmp_path)
    fewer, _, module = trained(0)
    module.bias = None
    with pytest.raises(ModelError, match=r"the state has 2 elements of bias, expected 0; it is of another model"):
        optimizer_state.load(fewer, schedule, tmp_path)
    with pytest.raises(ModelError, match=r"elsewhere: no state of an optimiser that this version reads"):
        optimizer_state.load(engine, schedule, tmp_path / "elsewhere")


def test_what_every_rank_has_whole_is_written_once_and_read_from_all(tmp_path: Path) -> None:
    engine, schedule, module = trained(3)
    for rank in range(3):
        optimizer_state.save(engine, schedule, tmp_path / f"rank-{rank}", share=(rank, 3))
    files = [load_file(tmp_path / f"rank-{rank}" / optimizer_state.PIECES) for rank in range(3)]
    keys = [key for file in files for key in file]
    assert len(keys) == len(set(keys)) == 8, "a bias and a weight, of each four things"
    again, its_schedule, resumed = trained(0)
    optimizer_state.load(again, its_schedule, tmp_path)
    for one, other in zip(module.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_parameter_that_never_had_a_gradient_has_weights_only(tmp_path: Path) -> None:
    engine, schedule, module = trained(2)
    engine.optimizer.state.pop(module.bias)
    optimizer_state.save(engine, schedule, tmp_path / "rank-0")
    again, its_schedule, resumed = trained(0)
    optimizer_state.load(again, its_schedule, tmp_path)
    assert torch.equal(resumed.bias, module.bias)
    assert not again.optimizer.state[resumed.bias]
    assert again.optimizer.state[resumed.weight]["step"] == 2


def test_steps_are_counted_where_the_parameter_is_as_fused_adamw_demands(tmp_path: Path) -> None:
    engine, schedule, _ = trained(2)
    optimizer_state.save(engine, schedule, tmp_path / "rank-0")
    module = torch.nn.Linear(3, 2, device="meta")
    adamw = torch.optim.AdamW(module.parameters())
    its_schedule = torch.optim.lr_scheduler.LambdaLR(adamw, lambda step: 1.0)
    optimizer_state.load(SimpleNamespace(optimizer=adamw, module=module), its_schedule, tmp_path)
    assert {value.device.type for state in adamw.state.values() for value in state.values()} == {"meta"}


@given(data=strategies.data(), length=strategies.integers(1, 40))
@settings(max_examples=50, deadline=None)
def test_any_part_is_read_from_however_it_was_cut(data: strategies.DataObject, length: int) -> None:
    cuts = sorted(data.draw(strategies.sets(strategies.integers(1, max(1, length - 1)), max_size=5)) | {0, length})
    start = data.draw(strategies.integers(0, length - 1))
    stop = data.draw(strategies.integers(start + 1, length))
    whole = torch.arange(float(length))
    with TemporaryDirectory() as folder, ExitStack() as files:
        for rank, (one, other) in enumerate(pairwise(cuts)):
            (Path(folder) / f"rank-{rank}").mkdir()
            part = {f"{one}/weight/a.b": whole[one:other].clone()}
            save_file(part, Path(folder) / f"rank-{rank}" / optimizer_state.PIECES)
        saved = optimizer_state._Saved(Path(folder), files)
        found = saved.read(optimizer_state.Piece("a.b", start, stop - start, 0, 0), "weight")
    assert torch.equal(found, whole[start:stop])
