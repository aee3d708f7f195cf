"""Checkpoints from which an RL run goes on: `checkpoints/step-NNNNNN/`, each complete or absent.

    config.json, model*.safetensors, tokenizer...  the policy in Hugging Face layout, loadable as it is
    critic/                                        the critic, likewise (where there is one)
    learner/<model>/rank-<r>/                      optimiser state and schedule, one folder per rank
    state.json                                     iteration, KL coefficient, gold scores so far
    run.yaml                                       the settings that the run then had

A checkpoint takes its name when every rank has written its part, which it copied when the checkpoint began (`stages.behind`). All
weights are in the learner's precision of storage; optimiser states carry the fp32 master weights. The newest checkpoints
stay whole, of older ones the best policies do, as `checkpoints_kept` says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf_dist.checkpoint import checkpoints, prune, steps, verify
from rlhf_dist.config import RLConfig, dump, load
from rlhf_dist.errors import ConfigError, ModelError
from rlhf_dist.files import as_exact_json, read_as, readable_rows
from rlhf_dist.learner.optimizer_state import check_readable
from rlhf_dist.models import write_ends
from rlhf_dist.run_folder.names import CONFIG, METRICS
from rlhf_dist.stages.behind import Behind
from rlhf_dist.stages.changes import changes, check_changes
from rlhf_dist.stages.moving_reference import prune as prune_references
from rlhf_dist.stages.wiring import Begin
from rlhf_dist.steering import State

STATE, SETTINGS = "state.json", "run.yaml"


def save_checkpoint(
    behind: Behind, tokenizer: Any, run_dir: Path, state: State, config: RLConfig, *, ends: Sequence[int] = ()
) -> None:
    """Write a checkpoint of everything that a run needs to go on, with the tokens that end the policy's answers.

    What the ranks hold is copied now; they write it while the run goes on.
    """
    learner, iteration = behind.learner, state.iteration

    def fill(aside: Path) -> None:
        here = aside.absolute()
        learner.save("policy", here)
        tokenizer.save_pretrained(aside)
        if ends:
            write_ends(aside, ends)
        if "critic" in learner.models:
            learner.save("critic", here / "critic")
        for model in learner.models:
            learner.save_state(model, here / "learner" / model)
        (aside / STATE).write_text(as_exact_json(dataclasses.asdict(state), STATE))
        (aside / SETTINGS).write_text(dump(config))

    def tidy() -> None:
        kept = config.checkpoints_kept
        values = _measured(run_dir, kept.by) if kept.best else {}
        prune(run_dir, iteration, last=kept.last, best=kept.best, values=values)
        prune_references(run_dir, steps(run_dir))

    behind.write(run_dir / "checkpoints" / f"step-{iteration:06d}", fill, tidy)


def _measured(run_dir: Path, metric: str) -> dict[int, float]:
    """A metric by the iterations that were done after it was measured, as metrics.jsonl has it."""
    rows, _ = readable_rows(run_dir / METRICS)
    return {int(row["iteration"]) + 1: row[metric] for row in rows if isinstance(row.get(metric), (int, float))}


def check_settings(config: RLConfig, run_dir: Path) -> None:
    """Refuse what cannot be gone on from, before anything is written into a run's folder or started.

    Raises:
        UserError: see `newest`.
    """
    newest(config, run_dir)


def told_of_resume(config: RLConfig, run_dir: Path, begin: Begin) -> list[str]:
    """What people should know about going on with a run: from where, what is damaged, what has changed; a sentence each."""
    if not begin.policy:
        rows, _ = readable_rows(run_dir / METRICS)
        lost = f", and what {len(rows)} iterations recorded is thrown away" if rows else ""
        return [f"{run_dir}/checkpoints: no checkpoint to go on from, so PPO starts from the beginning{lost}"]
    folder = Path(begin.policy)
    told = [f"{damage}; going on from {folder.name}, the newest that is whole" for damage in begin.passed_over]
    changed = [f"{key} {old!r} -> {new!r}" for key, old, new in changes(_settings(folder), config) if key != "run_dir"]
    return [*told, *([f"settings that changed since {folder.name}: {', '.join(changed)}"] if changed else [])]


def newest(config: RLConfig, run_dir: Path) -> tuple[State, Begin]:
    """The newest checkpoint of a run that is as it was written; the beginning where there is none at all.

    Raises:
        ModelError: in every checkpoint a file has changed since it was written; names the newest's.
        DataError: its state is not what this version writes.
        ConfigError: it is of a run with more iterations than the config asks for, or with settings that a run keeps.
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
    return State.start(config.algorithm), Begin()


def _read(config: RLConfig, folder: Path) -> tuple[State, Begin]:
    state = read_as(State, folder / STATE)
    if state.iteration > config.rl.iterations:
        raise ConfigError(
            f"{folder}: saved after iteration {state.iteration}; rl.iterations is {config.rl.iterations}, "
            "expected as many at least"
        )
    check_readable(folder / "learner")
    before = _settings(folder)
    check_changes(before, config, where=str(folder))
    if config.algorithm.kl_target is None or config.algorithm.kl_coef != before.algorithm.kl_coef:
        state.kl_coef = config.algorithm.kl_coef  # fixed, or set anew; else it goes on from where it adapted to
    if config.algorithm.entropy_target is None or config.algorithm.entropy_coef != before.algorithm.entropy_coef:
        state.entropy_coef = config.algorithm.entropy_coef
    critic = folder / "critic"
    return state, Begin(state.iteration, str(folder), str(critic) if critic.is_dir() else "", str(folder / "learner"))


def _settings(folder: Path) -> RLConfig:
    """What a checkpoint was made with; earlier versions kept it in the run folder only."""
    own = folder / SETTINGS
    return load(RLConfig, own if own.exists() else folder.parent.parent / CONFIG)
