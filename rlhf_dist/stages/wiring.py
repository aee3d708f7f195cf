"""From a config to a running PPO system: where its handles are passed and its settings are taken apart."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from rlhf_dist.cluster import head, pulse
from rlhf_dist.cluster.fleet import Fleet, FleetSize, Service, WorkerKind
from rlhf_dist.cluster.placement import room, shares_cores
from rlhf_dist.cluster.watch import POLL_S
from rlhf_dist.config import RLConfig
from rlhf_dist.learner.frozen_model import FrozenSpec
from rlhf_dist.learner.memory import Memory
from rlhf_dist.learner.model_spec import ModelSpec
from rlhf_dist.learner.starting import GroupPlace, start_group
from rlhf_dist.parts import NoTurns, Parts, Turns
from rlhf_dist.planning.roles import model_folders, sizes_of
from rlhf_dist.planning.sharing import OWN_CARD, SharedCard
from rlhf_dist.records import Prompt
from rlhf_dist.rollout.agreement import probe_tolerance
from rlhf_dist.rollout.spec import engine_spec, environment, sampling_of
from rlhf_dist.rollout.worker import PullSettings, RolloutWorker
from rlhf_dist.scoring.reward_file import read_reward_file
from rlhf_dist.scoring.worker import ScoringWorker
from rlhf_dist.stages.moving_reference import HeldByLearner, HeldByWorkers, Holder, move, reference_at
from rlhf_dist.stages.places import Where
from rlhf_dist.stages.scoring import ScorerKind, scorer_kinds, told_of_rows
from rlhf_dist.stages.turns import SharedDevices, put_to_sleep
from rlhf_dist.steering import State
from rlhf_dist.store.actor import Store
from rlhf_dist.store.experience import ExperienceIndex
from rlhf_dist.store.lent import OF_OWNERS

RENEW_S = 0.2
"""How often scorers look up where the reference moves, or a learner waits for their device."""


@dataclass(frozen=True)
class Begin:
    """Where a run begins: with the config's models, or with a checkpoint's."""

    iteration: int = 0
    policy: str = ""
    critic: str = ""
    state: str = ""
    """Folder of the optimisers' states; empty: they start anew."""
    passed_over: tuple[str, ...] = ()
    """What is wrong with newer checkpoints."""


@contextmanager
def engines(config: RLConfig, where: Where, eos_token_ids: tuple[int, ...]) -> Iterator[Fleet]:
    """The rollout workers inside the block, none started yet. They outlive what is wired inside, since they start slowly.

    Args:
        config: the run's settings.
        where: where they go.
        eos_token_ids: what ends an answer.
    """
    fleet = _rollouts(config, eos_token_ids, where)
    try:
        yield fleet
    finally:
        where.watch.forget()
        fleet.close()


@contextmanager
def wired(
    config: RLConfig,
    where: Where,
    rollouts: Fleet,
    begin: Begin,
    memory: Memory[State],
    prompts: Sequence[Prompt] = (),
) -> Iterator[Parts]:
    """Start every actor that is not there yet, connect them, and begin the workers' loops.

    Args:
        config: the run's settings.
        where: where the actors go.
        rollouts: the rollout workers, those of an earlier wiring or none yet.
        begin: where the run begins.
        memory: of the learner.
        prompts: to train on, of whose rows rewards may be told.
    """
    watch, start_s, ends = where.watch, config.timeouts.start, ExitStack()
    shares = config.cluster.placement == "colocated"
    if where.bundles.settle(timeout_s=start_s) and shares:
        rollouts.start_over()
    folders = model_folders(config)
    if folders["reference"]:
        folders["reference"] = (reference_at(where.run_dir, begin.iteration, folders["reference"][0]),)
    frozen = FrozenSpec.all_of(config, folders)
    asked = {role: folders[role][0] for role in ("reference", "teacher") if role in config.scoring_workers}
    kinds = scorer_kinds(config, policy=config.policy, reference=asked.get("reference"), teacher=asked.get("teacher"))
    kinds["reward"] = told_of_rows(config, kinds["reward"], prompts)
    with ends:
        store = _store(config, where, begin, scorers={role: kind.quarantine for role, kind in kinds.items()})
        ends.callback(head.kill, store)
        ends.callback(watch.forget, "store")
        service = Service(run=lambda worker: worker.run.remote(store), lost=store.release.remote)
        rollouts.serve(service)
        ends.callback(rollouts.serve, None)
        rollouts.open(timeout_s=start_s)
        if shares and where.on_gpus:  # what others take while an engine measures its room, it would count as its own
            put_to_sleep(rollouts, timeout_s=config.timeouts.call, start_s=start_s)
        scorers = {role: _scorers(config, role, kind, where, store) for role, kind in kinds.items()}
        for fleet in scorers.values():
            ends.callback(fleet.close)
            fleet.open(timeout_s=start_s)
        environment = where.torch(config.learner.threads, lends=config.weights.transport == "cuda_ipc")
        lends = OF_OWNERS if config.weights.transport == "sharded_rdt" else {}
        ranks = [{**where.options(place, environment), **lends} for place in where.layout.of("learner")]
        place = GroupPlace(config.learner, ranks, where.run_dir, watch, config.timeouts, config.cluster.interface)
        learner = start_group(place)
        ends.callback(learner.close)
        learner.load(model_specs(config, begin), run_dir=where.run_dir, seed=config.seed, frozen=frozen)
        for fleet in (rollouts, *scorers.values()):
            fleet.wait_for_fewest(timeout_s=start_s)
        learner.plan_weights(
            bucket_bytes=config.weights.bucket_mib * 2**20,
            wire_dtype=config.wire_dtype,
            delta_every=config.weights.delta_every,
            transport=config.weights.transport,
        )
        watch.vigil.guard("store", store.pulse.remote)
        turns: Turns = NoTurns()
        if config.cluster.placement != "disaggregated":
            resting = scorers if where.on_gpus else {}  # on CPUs they are where they would go
            turns = SharedDevices(learner, resting, rollouts if shares else None, config.timeouts.publish, start_s)
        parts = Parts(store, rollouts, scorers, learner, watch, turns, memory)
        if config.algorithm.reference_every is not None:
            holder: Holder = (
                HeldByLearner(learner, frozen["reference"])
                if "reference" in frozen
                else HeldByWorkers(scorers["reference"], kinds["reference"].arguments, start_s)
            )
            moves = partial(move, learner, holder, where.run_dir, mix=config.algorithm.reference_mix)
            parts = replace(parts, move_reference=moves)
        yield parts


def _store(config: RLConfig, where: Where, begin: Begin, *, scorers: dict[str, int]) -> Any:
    import ray

    (place,) = where.layout.of("store")
    kind: Any = ray.remote(Store).options(**where.options(place))
    experience = ExperienceIndex(
        batch_rows=config.batch_rows,
        chunk_rows=config.scored_together,
        max_staleness=config.experience.max_staleness,
        capacity_rows=config.experience.capacity_rows
        or config.experience.max_staleness * config.batch_rows + config.most_rows,
        sharers=config.rollout.workers.max,
        first_iteration=begin.iteration,
        scorers=scorers,
    )
    store = kind.remote(experience, log_dir=where.log_dir)
    where.watch.vigil.guard("store", store.pulse.remote, loading=True)
    return store


def _rollouts(config: RLConfig, eos_token_ids: tuple[int, ...], where: Where) -> Fleet:
    places, rollout = where.layout.of("rollout"), config.rollout
    spec = engine_spec(
        rollout,
        config.policy,
        dtype=config.wire_dtype,
        max_sequence=config.max_sequence,
        seed=config.seed,
        log_dir=where.log_dir,
    )
    spec = replace(spec, attention=config.learner.attention)
    spec.on_cuda["gpu_memory_utilization"] = rollout.gpu_memory_fraction or OWN_CARD * config.cluster.gpu_share
    if config.cluster.placement == "colocated":
        spec.on_cuda["enable_sleep_mode"] = True
        spec = replace(spec, shared=SharedCard.of(config, sizes_of(config)))
    sampling = sampling_of(config.rollout, eos_token_ids, config.policy)
    pulls = PullSettings(probe_tolerance(config), config.timeouts.publish)
    variables = environment(rollout, on_gpu=where.on_gpus, threads=where.threads(rollout.threads))

    def spawn(name: str, slot: int) -> Any:
        place = places[slot] if slot < len(places) else places[0]
        kind = pulse.watched(RolloutWorker).options(
            max_concurrency=3, **{**where.options(place, variables), "name": name}
        )
        return kind.remote(name, spec, sampling, seed=config.seed, pulls=pulls)

    kind = WorkerKind("rollout", spawn, room=lambda: 0 if places[0].bundle is not None else room(places[0]))
    size = FleetSize(rollout.workers.min, rollout.workers.max, rollout.max_restarts, "rollout.max_restarts")
    return Fleet(kind, size, where.watch)


def _scorers(config: RLConfig, role: str, kind: ScorerKind, where: Where, store: Any) -> Fleet:
    places, scoring = where.layout.of(role), config.scoring
    rests = where.on_gpus and config.cluster.placement != "disaggregated"
    poll_s = RENEW_S if config.algorithm.reference_every or rests else POLL_S
    patient = shares_cores(where.layout)  # any pass would take the cores from the engine

    def spawn(name: str, slot: int) -> Any:
        place = places[slot]
        options = {**where.options(place, where.torch(scoring.threads)), "name": name}
        made = pulse.watched(ScoringWorker).options(max_concurrency=2, **options)
        return made.remote(name, *kind, threads=scoring.threads, log_dir=where.log_dir)

    def run(worker: Any) -> Any:
        return worker.run.remote(store, patient, config.timeouts.call, poll_s)

    size = FleetSize(len(places), len(places), scoring.max_restarts, "scoring.max_restarts")
    fleet = Fleet(WorkerKind(role, spawn), size, where.watch)
    fleet.serve(Service(run, store.release.remote))
    return fleet


def model_specs(config: RLConfig, begin: Begin) -> dict[str, ModelSpec]:
    """What the learner trains, and from where: adapters always on the models that they began on, whatever is merged elsewhere."""
    steps, lora = config.rl.iterations * config.rl.epochs * config.rl.mini_batches, config.learner.lora
    policy = ModelSpec(
        config.policy if lora else begin.policy or config.policy,
        "policy",
        config.learner.policy,
        steps,
        temperature=config.rollout.temperature,
        value_head=config.learner.critic == "value_head",
        lora=lora,
        state=os.path.join(begin.state, "policy") if begin.state else "",
    )
    if config.learner.critic != "model":
        return {"policy": policy}
    start = model_folders(config)["critic"][0]
    state = os.path.join(begin.state, "critic") if begin.state else ""
    shift, scale = critic_units(config)
    critic = ModelSpec(
        start if lora else begin.critic or start,
        "value",
        config.learner.value,
        steps,
        shift=shift,
        scale=scale,
        lora=lora,
        state=state,
    )
    return {"policy": policy, "critic": critic}


def critic_units(config: RLConfig) -> tuple[float, float]:
    """Shift and scale by which a critic that starts as the reward model says what the weighted, normalised reward says."""
    source = config.critic_reward
    if config.critic is not None or source is None:
        return 0.0, 1.0
    file = read_reward_file(source.path)
    return (file.first_mean, source.weight / file.std) if source.normalise else (0.0, source.weight)
