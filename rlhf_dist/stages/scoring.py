"""What each kind of scorer needs, and scorers of one stage that score whole batches."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_dist.cluster.allocator import growing
from rlhf_dist.cluster.placement import slots_of, threads_of
from rlhf_dist.cluster.session import cores_per_gpu, has_gpus
from rlhf_dist.cluster.threads import environment_of
from rlhf_dist.cluster.watch import Watch
from rlhf_dist.config import GOLD, EvaluateConfig, FunctionReward, Reward, RLConfig
from rlhf_dist.config.rewards import devices_of_scorer
from rlhf_dist.errors import ConfigError
from rlhf_dist.records import Prompt
from rlhf_dist.scoring.functions import GuardedRule
from rlhf_dist.scoring.reference import ReferenceScorer
from rlhf_dist.scoring.reward import RewardScorer
from rlhf_dist.scoring.signatures import Asks
from rlhf_dist.scoring.told import told_of
from rlhf_dist.scoring.worker import ScoringWorker
from rlhf_dist.secrets import Secrets, keep
from rlhf_dist.telemetry.logs import log_dir

JUDGE = "gold_judge"
"""The setting, as messages have it."""


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
    scoring = config.scoring
    shared = {
        "dtype": config.learner.dtype,
        "attention": config.learner.attention,
        "batch_tokens": scoring.batch_tokens,
        "processes": scoring.tensor_parallel,
    }
    reward = {
        "rewards": rewards_of(config),
        "safety": config.safety,
        "tokenizer": policy,
        **shared,
        "processes": devices_of_scorer("reward", config.reward, scoring.tensor_parallel),
    }
    plain = isinstance(config, EvaluateConfig)

    def asks(path: str, writer: str) -> ScorerKind:
        own = {"path": path, "writer": writer, "temperature": config.rollout.temperature, "plain": plain}
        return ScorerKind(ReferenceScorer, {**own, **shared})

    return {
        "reward": ScorerKind(RewardScorer, reward, scoring.quarantine, secrets_of(config)),
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
    _asks_of(config)


def check_columns(
    config: RLConfig | EvaluateConfig, path: str | None, prompts: Sequence[Prompt], *, judge_only: bool = False
) -> None:
    """See that every column that a function cannot do without is there.

    Args:
        config: rewards and gold judge.
        path: the file, for the message.
        prompts: its rows; a column that any of them has is there, and None in the others.
        judge_only: whether only the gold judge sees these rows.

    Raises:
        ConfigError: names function, parameter, and the columns that there are.
    """
    asks = {key: each for key, each in _asks_of(config).items() if key[0] == JUDGE or not judge_only}
    if not prompts or not any(each.needed for each in asks.values()):
        return
    there = sorted({name for prompt in prompts if prompt.columns for name in json.loads(prompt.columns)})
    for (key, function), each in asks.items():
        if missing := each.missing(there):
            known = ", ".join(there) or "none beside the prompt"
            raise ConfigError(
                f"{key} is {function!r}, whose parameter {missing[0]!r} no column of {path} provides: its columns are "
                f"{known}; expected one of that name, or prompts.columns.{missing[0]}, or a default value"
            )


def told_of_rows(config: RLConfig | EvaluateConfig, kind: ScorerKind, prompts: Sequence[Prompt]) -> ScorerKind:
    """A reward scorer that is told of prompts' rows, if any reward asks for that and there is something to tell."""
    import ray

    asked = any(reward.kind == "remote" for reward in config.reward) or any(
        each.rows for each in _asks_of(config).values()
    )
    if not asked or not any(prompt.columns or prompt.source for prompt in prompts):
        return kind
    return kind._replace(arguments={**kind.arguments, "told": ray.put(told_of(prompts))})


def _asks_of(config: RLConfig | EvaluateConfig) -> dict[tuple[str, str], Asks]:
    """What functions ask for, by the key and path of each."""
    found = {}
    for reward in rewards_of(config):
        if reward.kind == "function":
            key = JUDGE if reward.name == GOLD and config.gold_judge else f"reward {reward.name}"
            found[key, reward.path] = _asks(key, reward.path, reward.timeout_s)
    return found


@cache
def _asks(key: str, path: str, timeout_s: float) -> Asks:
    """Cached, since to import a function takes a process and its seconds."""
    with closing(GuardedRule(path, timeout_s, key=key)) as rule:
        return rule.asks


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

    devices, cores, on_gpus = kind.arguments["processes"], cores_per_gpu(), has_gpus()
    threads = threads_of(cores, 1) if on_gpus else config.scoring.threads
    made: Any = ray.remote(ScoringWorker).options(
        num_cpus=slots_of(cores, devices) if on_gpus else 1,
        num_gpus=devices if on_gpus else 0,
        runtime_env={"env_vars": environment_of(threads) | (growing() if on_gpus else {})},
    )
    worker = made.remote(name, *kind, threads=config.scoring.threads, log_dir=log_dir(run_dir))
    try:
        Watch().one(
            name, worker.start.remote(), timeout_s=config.timeouts.start, doing="starting and loading its model"
        )
        yield worker
        ray.get(worker.close.remote(), timeout=config.timeouts.call)
    finally:
        ray.kill(worker)
