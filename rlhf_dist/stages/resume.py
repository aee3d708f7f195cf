"""Checkpoints from which a PPO run goes on: `checkpoints/step-NNNNNN/`, each complete or absent.

    config.json, model.safetensors, tokenizer...   the policy in Hugging Face layout, loadable as it is
    critic/                                        the critic, likewise (where there is one)
    learner/<model>/rank-<r>/                      optimiser state and schedule, one folder per rank
    state.json                                     iteration, KL coefficient, gold scores so far

All weights are in the learner's precision of storage; optimiser states carry the fp32 master weights. The newest two checkpoints
keep `learner/`; of older ones the policy stays.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf_dist.checkpoint import checkpoints, complete_or_absent, verify
from rlhf_dist.config import PPOConfig
from rlhf_dist.controller import State
from rlhf_dist.errors import ConfigError, ModelError
from rlhf_dist.learner.group import LearnerGroup
from rlhf_dist.models import write_ends
from rlhf_dist.stages.wiring import Begin

KEPT_LEARNER_STATES = 2
"""The newest, and the one before it for when the newest is damaged."""
STATE = "state.json"


def save_checkpoint(
    learner: LearnerGroup, tokenizer: Any, run_dir: Path, state: State, ends: Sequence[int] = ()
) -> Path:
    """Write a checkpoint of everything that a run needs to go on, with the tokens that end the policy's answers."""
    folder = run_dir / "checkpoints" / f"step-{state.iteration:06d}"
    with complete_or_absent(folder) as aside:
        here = aside.absolute()
        learner.save("policy", here)
        tokenizer.save_pretrained(aside)
        if ends:
            write_ends(aside, ends)
        if "critic" in learner.models:
            learner.save("critic", here / "critic")
        for model in learner.models:
            learner.save_state(model, here / "learner" / model)
        (aside / STATE).write_text(json.dumps(dataclasses.asdict(state)))
    for old in checkpoints(run_dir)[KEPT_LEARNER_STATES:]:
        shutil.rmtree(old / "learner")
    return folder


def newest(config: PPOConfig, run_dir: Path) -> tuple[State, Begin]:
    """The newest checkpoint of a run that is as it was written; the beginning where there is none at all.

    Raises:
        ModelError: in every checkpoint a file has changed since it was written; names the newest's.
        ConfigError: it is of a run with more iterations than the config asks for.
    """
    damage: list[ModelError] = []
    for folder in checkpoints(run_dir):
        try:
            verify(folder)
        except ModelError as error:
            damage.append(error)
        else:
            state, begin = _read(config, folder.absolute())
            return state, replace(begin, passed_over=tuple(map(str, damage)))
    if damage:
        raise damage[0]
    return State(0, config.ppo.kl_coef), Begin()


def _read(config: PPOConfig, folder: Path) -> tuple[State, Begin]:
    state = State(**json.loads((folder / STATE).read_text()))
    if state.iteration > config.ppo.iterations:
        raise ConfigError(
            f"{folder}: saved after iteration {state.iteration}; ppo.iterations is {config.ppo.iterations}, "
            "expected as many at least"
        )
    critic = folder / "critic"
    return state, Begin(state.iteration, str(folder), str(critic) if critic.is_dir() else "", str(folder / "learner"))
