"""From a config to a running system: the only place where handles are passed and settings are taken apart."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_dist.cluster.placement import Layout, Place, options, reserve, room, shares_cores
from rlhf_dist.cluster.session import namespace_of
from rlhf_dist.cluster.threads import environment_of
from rlhf_dist.cluster.watch import Watch
from rlhf_dist.config import GOLD, FunctionReward, PPOConfig, Reward
from rlhf_dist.controller import Parts
from rlhf_dist.data.examples import ExampleSet
from rlhf_dist.learner.group import GroupPlace, start_group
from rlhf_dist.learner.rank import ModelSpec
from rlhf_dist.planning.memory import ModelSize
from rlhf_dist.planning.roles import model_folders
from rlhf_dist.records import Prompt
from rlhf_dist.rollout.fleet import FleetSize, RolloutFleet
from rlhf_dist.rollout.spec import engine_spec, environment, sampling_of
from rlhf_dist.rollout.worker import RolloutWorker
from rlhf_dist.scoring.reference import ReferenceScorer
from rlhf_dist.scoring.reward import RewardScorer
from rlhf_dist.scoring.reward_file import read_reward_file
from rlhf_dist.scoring.worker import ScoringWorker
from rlhf_dist.store.actor import Store


@dataclass(frozen=True)
class PreparedPPO:
    """Everything that could be checked and read before a process is started."""

    prompts: list[Prompt]
    held_out: list[Prompt]
    tokenizer: Any
    eos_token_ids: tuple[int, ...]
    sizes: dict[str, ModelSize]
    demonstrations: ExampleSet | None = None
    """What PPO-ptx goes on imitating."""


@dataclass(frozen=True)
class Begin:
    """Where a run begins: with the config's models, or with a checkpoint's."""

    iteration: int = 0
    policy: str = ""
    critic: str = ""
    state: str = ""
    """Folder of the optimisers' states; empty: they start anew."""


@contextmanager
def wired(config: PPOConfig, prepared: PreparedPPO, layout: Layout, run_dir: Path, begin: Begin) -> Iterator[Parts]:
    """Start every actor, connect them, and begin the workers' loops."""
    import ray
    from ray.util.placement_group import remove_placement_group

    watch = Watch()
    group = reserve(layout, timeout_s=config.timeouts.start)
    (store_place,) = layout.of("store")
    store = (
        ray.remote(Store)
        .options(**_named(store_place, group, run_dir))
        .remote(
            batch_rows=config.batch_samples,
            max_staleness=config.experience.max_staleness,
            capacity_rows=config.experience.capacity_rows,
            sharers=config.rollout.workers.max,
            first_iteration=begin.iteration,
            log_dir=str(run_dir.absolute() / "logs"),
        )
    )
    rollouts = _fleet(config, prepared, layout, group, store=store, watch=watch, run_dir=run_dir)
    scorers = _scorers(config, layout, group, run_dir)
    try:
        rollouts.open()
        starting = {name: worker.start.remote() for name, worker in scorers.items()}
        ranks = [_named(place, group, run_dir) for place in layout.of("learner")]
        place = GroupPlace(config.learner, ranks, run_dir, watch, config.timeouts, config.cluster.interface)
        specs = model_specs(config, begin)
        learner = start_group(place)
        learner.load(specs, run_dir=run_dir, seed=config.seed)
        watch.wait(starting, timeout_s=config.timeouts.start, doing="starting and loading its model")
        for name, worker in scorers.items():
            watch.add_loop(name, worker.run.remote(store))
        rollouts.wait_for_fewest(timeout_s=config.timeouts.start)
        learner.plan_weights(bucket_bytes=config.weights.bucket_mib * 2**20, wire_dtype=config.wire_dtype)
        yield Parts(store, rollouts, scorers, learner, watch)
    finally:
        watch.forget()
        rollouts.close()
        remove_placement_group(group)  # and with it everybody in it


def _named(place: Place, group: Any, run_dir: Path) -> dict[str, Any]:
    """Ray options of an actor in its place; its name is the run's own, also within a session that other runs share."""
    return {"name": place.name, "namespace": namespace_of(run_dir), **options(place, group)}


def _fleet(
    config: PPOConfig, prepared: PreparedPPO, layout: Layout, group: Any, *, store: Any, watch: Watch, run_dir: Path
) -> RolloutFleet:
    import ray

    places = layout.of("rollout")
    on_gpu = places[0].gpus > 0
    spec = engine_spec(
        config.rollout,
        config.policy,
        dtype=config.wire_dtype,
        max_sequence=config.max_sequence,
        seed=config.seed,
        on_gpu=on_gpu,
        log_dir=str(run_dir.absolute() / "logs"),
    )
    if on_gpu:
        spec.options["enable_sleep_mode"] = config.cluster.placement == "colocated"
    sampling = sampling_of(config.rollout, prepared.eos_token_ids)
    shared = {
        "max_concurrency": 3,
        "runtime_env": {"env_vars": environment(config.rollout, on_gpu=on_gpu)},
    }
    limits = {"probe_tolerance": config.probe_tolerance, "timeout_s": config.timeouts.publish}

    def spawn(name: str, slot: int) -> Any:
        place = places[slot] if slot < len(places) else places[0]
        kind = ray.remote(RolloutWorker).options(**shared, **{**_named(place, group, run_dir), "name": name})
        return kind.remote(name, spec, sampling, seed=config.seed, **limits)

    def spare() -> int:
        return 0 if places[0].bundle is not None else room(places[0])

    size = FleetSize(config.rollout.workers.min, config.rollout.workers.max, config.rollout.max_restarts)
    return RolloutFleet(spawn, spare, store, watch, size)


def _scorers(config: PPOConfig, layout: Layout, group: Any, run_dir: Path) -> dict[str, Any]:
    import ray

    models, scoring = model_folders(config), config.scoring
    shared = {"dtype": config.learner.dtype, "batch_tokens": scoring.batch_tokens}
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "reward": (
            RewardScorer,
            {"rewards": rewards_of(config), "safety": config.safety, "tokenizer": config.policy, **shared},
        ),
        "reference": (
            ReferenceScorer,
            {"path": models["reference"][0], "temperature": config.rollout.temperature, **shared},
        ),
    }

    # Worth a forward pass; or all there will be, where any pass would take the cores from the engine.
    least = sys.maxsize if shares_cores(layout) else scoring.batch_tokens

    def make(place: Place) -> Any:
        scorer, arguments = kinds[place.role]
        env = {} if place.gpus else environment_of(scoring.threads)
        kind = ray.remote(ScoringWorker).options(
            max_concurrency=2, runtime_env={"env_vars": env}, **_named(place, group, run_dir)
        )
        return kind.remote(
            place.name,
            scorer,
            arguments,
            lease_tokens=(least, scoring.batch_tokens),
            threads=scoring.threads,
            timeout_s=config.timeouts.call,
            log_dir=str(run_dir.absolute() / "logs"),
        )

    return {place.name: make(place) for place in (*layout.of("reward"), *layout.of("reference"))}


def rewards_of(config: PPOConfig) -> tuple[Reward, ...]:
    """The rewards that are added up, and the gold judge as one that is only watched."""
    if config.gold_judge is None:
        return config.reward
    return (*config.reward, FunctionReward(kind="function", name=GOLD, path=config.gold_judge, weight=0.0))


def model_specs(config: PPOConfig, begin: Begin) -> dict[str, ModelSpec]:
    """What the learner trains, and from where."""
    steps = config.ppo.iterations * config.ppo.epochs * config.ppo.mini_batches
    head = config.learner.critic == "value_head"
    policy = ModelSpec(
        begin.policy or config.policy,
        "policy",
        config.learner.policy,
        steps,
        temperature=config.rollout.temperature,
        value_head=head,
        state=os.path.join(begin.state, "policy") if begin.state else "",
    )
    if head:
        return {"policy": policy}
    path = begin.critic or model_folders(config)["critic"][0]
    state = os.path.join(begin.state, "critic") if begin.state else ""
    shift, scale = critic_units(config)
    critic = ModelSpec(path, "value", config.learner.value, steps, shift=shift, scale=scale, state=state)
    return {"policy": policy, "critic": critic}


def critic_units(config: PPOConfig) -> tuple[float, float]:
    """Shift and scale by which a critic that starts as the reward model says what the weighted, normalised reward says."""
    source = next((reward for reward in config.reward if reward.kind == "model"), None)
    if config.critic is not None or source is None:
        return 0.0, 1.0
    file = read_reward_file(source.path)
    return (file.first_mean, source.weight / file.std) if source.normalise else (0.0, source.weight)
