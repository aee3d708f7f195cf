"""Checkpoints from which a PPO run goes on: `checkpoints/step-NNNNNN/`, each complete or absent.

    config.json, model.safetensors, tokenizer...   the policy in Hugging Face layout, loadable as it is
    critic/                                        the critic, likewise (absent with a value head)
    learner/<model>/rank-<r>/                      optimiser state and schedule, one folder per rank
    state.json                                     iteration, KL coefficient

All weights are in the learner's precision of storage; optimiser states carry the fp32 master weights. The newest two checkpoints
keep `learner/`; of older ones the policy stays.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from rlhf_dist.checkpoint import complete_or_absent, newest_checkpoint, verify
from rlhf_dist.config import PPOConfig
from rlhf_dist.controller import State
from rlhf_dist.errors import ConfigError
from rlhf_dist.learner.group import LearnerGroup
from rlhf_dist.stages.wiring import Begin

KEPT_LEARNER_STATES = 2
STATE = "state.json"


def save_checkpoint(learner: LearnerGroup, tokenizer: Any, run_dir: Path, state: State, models: list[str]) -> Path:
    """Write a checkpoint of everything that a run needs to go on."""
    checkpoints = run_dir / "checkpoints"
    folder = checkpoints / f"step-{state.iteration:06d}"
    with complete_or_absent(folder) as aside:
        here = aside.absolute()
        learner.save("policy", here)
        tokenizer.save_pretrained(aside)
        if "critic" in models:
            learner.save("critic", here / "critic")
        for model in models:
            learner.save_state(model, here / "learner" / model)
        (aside / STATE).write_text(json.dumps(dataclasses.asdict(state)))
    for old in sorted(checkpoints.glob("step-*/learner"))[:-KEPT_LEARNER_STATES]:
        shutil.rmtree(old)
    return folder


def newest(config: PPOConfig, run_dir: Path) -> tuple[State, Begin]:
    """The newest checkpoint of a run, verified; the beginning where there is none.

    Raises:
        ModelError: a file of it has changed since it was written.
        ConfigError: it is of a run with more iterations than the config asks for.
    """
    found = newest_checkpoint(run_dir)
    if found is None:
        return State(0, config.ppo.kl_coef), Begin()
    folder = found.absolute()
    verify(folder)
    state = State(**json.loads((folder / STATE).read_text()))
    if state.iteration > config.ppo.iterations:
        raise ConfigError(
            f"{folder}: saved after iteration {state.iteration}; ppo.iterations is {config.ppo.iterations}, "
            "expected as many at least"
        )
    critic = folder / "critic"
    return state, Begin(state.iteration, str(folder), str(critic) if critic.is_dir() else "", str(folder / "learner"))
