"""What each kind of scorer needs, and scorers of one stage that score whole batches."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_dist.cluster.session import has_gpus
from rlhf_dist.cluster.watch import Watch
from rlhf_dist.config import GOLD, EvaluateConfig, FunctionReward, Reward, RLConfig
from rlhf_dist.errors import ConfigError
from rlhf_dist.scoring.functions import GuardedRule
from rlhf_dist.scoring.reference import ReferenceScorer
from rlhf_dist.scoring.reward import RewardScorer
from rlhf_dist.scoring.worker import ScoringWorker
from rlhf_dist.secrets import Secrets, keep
from rlhf_dist.telemetry.logs import log_dir


class ScorerKind(NamedTuple):
    """A scorer, to be made in a process of its own."""

    scorer: type[Any]
    arguments: dict[str, Any]
    """Without the device."""
    quarantine: int = 0
    """Most samples of an iteration that it may fail to score."""
    secrets: Secrets = Secrets()


def scorer_kinds(
    config: RLConfig | EvaluateConfig, *, policy: str, reference: str | None, teacher: str | None = None
) -> dict[str, ScorerKind]:
    """Every writer that adds columns to finished rows.

    Args:
        config: rewards, rules, temperature and precision.
        policy: folder whose tokens the answers are.
        reference: folder of the reference policy; None: the learner asks the policy itself.
        teacher: folder of the teacher, if there is one.
    """
    shared = {
        "dtype": config.learner.dtype,
        "attention": config.learner.attention,
        "batch_tokens": config.scoring.batch_tokens,
    }
    reward = {
        "rewards": rewards_of(config),
        "safety": config.safety,
        "tokenizer": policy,
        **shared,
    }
    plain = isinstance(config, EvaluateConfig)

    def asks(path: str, writer: str) -> ScorerKind:
        own = {"path": path, "writer": writer, "temperature": config.rollout.temperature, "plain": plain}
        return ScorerKind(ReferenceScorer, {**own, **shared})

    return {
        "reward": ScorerKind(RewardScorer, reward, config.scoring.quarantine, secrets_of(config)),
        **({"reference": asks(reference, "reference")} if reference is not None else {}),
        **({"teacher": asks(teacher, "teacher")} if teacher is not None else {}),
    }


def rewards_of(config: RLConfig | EvaluateConfig) -> tuple[Reward, ...]:
    """The rewards that are added up, and the gold judge as one that is only watched."""
    if config.gold_judge is None:
        return config.reward
    return (*config.reward, FunctionReward(kind="function", name=GOLD, path=config.gold_judge, weight=0.0))


def check_functions(config: RLConfig | EvaluateConfig) -> None:
    """Import every function that scores, and the gold judge, so that a wrong path is known before anything starts.

    Each is imported in a process of its own, as it will be: a module may end the one that imports it.

    Raises:
        ConfigError: names the path, or the environment variable, and the reward or key that has it.
    """
    secrets_of(config)
    for reward in rewards_of(config):
        if reward.kind == "function":
            key = "gold_judge" if reward.name == GOLD and config.gold_judge else f"reward {reward.name}"
            GuardedRule(reward.path, reward.timeout_s, key=key).close()


def secrets_of(config: RLConfig | EvaluateConfig) -> Secrets:
    """Values of the environment variables that remote rewards name, from the environment of this process.

    Scorers, wherever they run, are handed them as an argument: Ray's control plane carries it, behind the cluster's token. A
    `runtime_env` would show them in the dashboard, in Ray's logs and in the job's metadata.

    Raises:
        ConfigError: a variable is not set, or holds what no header may.
    """
    found = Secrets()
    for reward in config.reward:
        for variable, setting in reward.secrets.items() if reward.kind == "remote" else ():
            value = os.environ.get(variable, "").strip()
            if not (value and value.isascii() and value.isprintable()):
                wrong = "holds characters that no header may" if value else "is not set"
                raise ConfigError(
                    f"reward {reward.name}: {setting} is {variable}, and this environment variable {wrong}; expected the secret"
                )
            found[variable] = value
    keep(found)
    return found


@contextmanager
def scoring(name: str, kind: ScorerKind, config: EvaluateConfig, run_dir: Path) -> Iterator[Any]:
    """A started `ScoringWorker` inside the block."""
    import ray

    made: Any = ray.remote(ScoringWorker).options(num_cpus=1, num_gpus=1 if has_gpus() else 0)
    worker = made.remote(name, *kind, threads=config.scoring.threads, log_dir=log_dir(run_dir))
    try:
        Watch().one(
            name, worker.start.remote(), timeout_s=config.timeouts.start, doing="starting and loading its model"
        )
        yield worker
        ray.get(worker.close.remote(), timeout=config.timeouts.call)
    finally:
        ray.kill(worker)
