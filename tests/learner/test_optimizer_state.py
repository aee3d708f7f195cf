"""An optimiser's state in files, with torch's AdamW in DeepSpeed's place; with DeepSpeed: tests/integration/test_ppo_run.py."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

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
    return SimpleNamespace(optimizer=adamw), schedule, module


def go(module: torch.nn.Linear, adamw: torch.optim.Optimizer, schedule: Any, step: int) -> None:
    module(torch.ones(1, module.in_features) * (step + 1)).square().sum().backward()
    adamw.step()
    adamw.zero_grad()
    schedule.step()


def test_training_goes_on_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    engine, schedule, whole = trained(3)
    optimizer_state.save(engine, schedule, tmp_path / "rank-0")
    again, its_schedule, resumed = trained(0)
    optimizer_state.load(again, its_schedule, tmp_path / "rank-0")
    assert its_schedule.get_last_lr() == schedule.get_last_lr()
    for each, module, adamw in ((schedule, whole, engine.optimizer), (its_schedule, resumed, again.optimizer)):
        go(module, adamw, each, 3)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_state_of_another_model_or_number_of_ranks_is_refused(tmp_path: Path) -> None:
    engine, schedule, _ = trained(1)
    optimizer_state.save(engine, schedule, tmp_path / "rank-0")
    with pytest.raises(ModelError, match="the state does not fit"):
        optimizer_state.load(*trained(0, width=4)[:2], tmp_path / "rank-0")
    fewer = SimpleNamespace(optimizer=torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2, 3))]))
    with pytest.raises(ModelError, match="the state does not fit"):
        optimizer_state.load(fewer, schedule, tmp_path / "rank-0")
    with pytest.raises(ModelError, match="no such state; it was saved by another number of learner.ranks"):
        optimizer_state.load(engine, schedule, tmp_path / "rank-1")
