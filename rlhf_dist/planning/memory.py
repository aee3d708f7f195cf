"""How much memory each actor of a run takes, phase by phase, estimated without allocating anything.

Checked against measured peaks by `benchmarks/memory.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_dist.config import RLJob, Rollout
from rlhf_dist.planning.activations import BYTES, head_bytes, looking_bytes
from rlhf_dist.planning.learning import GENERATE, KEPT, LOAD, LearnerWork, Parts, Phases, learner_phases
from rlhf_dist.planning.machine import GIB
from rlhf_dist.planning.processes import ASLEEP_BYTES, GRAPHS_BYTES
from rlhf_dist.planning.sharing import OWN_CARD, SharedCard, engine_share
from rlhf_dist.planning.sizes import ModelSize
from rlhf_dist.store.weights import KEPT_VERSIONS

CPU_ENGINE_COPIES = 1.15
"""vLLM on a CPU packs its linear layers for the processor in the place of what arrived, one layer after the other (measured)."""


def memory(role: str, config: RLJob, sizes: dict[str, ModelSize], *, gpu_bytes: float | None = None) -> Parts:
    """What fills the memory of one actor in the phase in which it is fullest, in bytes; arguments as for `phases`."""
    return max(phases(role, config, sizes, gpu_bytes=gpu_bytes).values(), key=lambda parts: sum(parts.values()))


def phases(role: str, config: RLJob, sizes: dict[str, ModelSize], *, gpu_bytes: float | None = None) -> Phases:
    """What fills the memory of one actor, phase by phase, in bytes.

    Args:
        role: `store`, `rollout`, `reward`, `reference`, `teacher` or `learner`.
        config: the run's config.
        sizes: of `policy`, `reference`, `reward` and `critic`.
        gpu_bytes: a GPU's memory; None: the actor is in a host's.
    """
    colocated = config.cluster.placement == "colocated"
    if role == "learner":
        return learner_phases(work_of(config, sizes, gpus=gpu_bytes is not None), config.learner)
    if role == "store":
        return {KEPT: store_memory(config, sizes["policy"])}
    if role == "rollout":
        full = engine_memory(config, sizes["policy"], gpu_bytes, SharedCard.of(config, sizes).beside)
        sleeps = colocated and gpu_bytes is not None
        # Asleep, too, while learners and scorers are loaded; a version that it pulls comes after these gave way.
        return {GENERATE: full, KEPT: {"asleep": ASLEEP_BYTES} if sleeps else full}
    devices = config.devices_of_scorer(role) if gpu_bytes is not None else 1
    tokens = min(config.scoring.batch_tokens, config.scored_together * config.max_sequence)
    scoring = scorer_parts(sizes[role], role, config.learner.dtype, tokens, devices=devices)
    rests = gpu_bytes is not None and config.cluster.placement != "disaggregated"
    if not rests:
        return {KEPT: {"parameters": scoring["parameters"]}, LOAD: scoring, GENERATE: scoring}
    kept = {"parameters (host)": scoring["parameters"]}  # the copy to which they come and go
    return {KEPT: kept, LOAD: scoring, GENERATE: scoring | kept}


def work_of(config: RLJob, sizes: dict[str, ModelSize], *, gpus: bool) -> LearnerWork:
    """What the learner of an RL run holds and does."""
    learner = config.learner
    critic = (sizes["critic"],) if learner.critic == "model" else ()
    return LearnerWork(
        trained=(sizes["policy"], *critic),
        asked=tuple(sizes[role] for role in config.frozen),
        asked_on_host=config.scoring.frozen_on_host,
        lora=learner.lora is not None,
        bucket_bytes=config.weights.bucket_mib * 2.0**20,
        held_version=_held_version(config, sizes["policy"]),
        checkpoints=config.checkpoint_every > 0,
        masked_row=masked_row(learner.attention, learner.row_tokens or config.max_sequence, gpus=gpus),
        lends=gpus and config.cluster.placement == "colocated",
    )


def _held_version(config: RLJob, policy: ModelSize) -> float:
    """Bytes of versions that a rank holds for engines: a whole one beside it, or its buckets of those that the store names."""
    if config.weights.transport == "store":
        return 0.0
    if config.weights.transport == "sharded_rdt":
        return _kept_versions(config, policy) / config.learner.ranks
    adapted = policy.adapted if config.learner.lora else 0
    return float((policy.parameters + adapted) * BYTES[config.wire_dtype])


def masked_row(attention: str, row_tokens: int, *, gpus: bool) -> int:
    """Tokens of a row under a mask: without kernels for packed samples one is made, as soon as two share a row."""
    return row_tokens if attention in ("sdpa", "eager") or (attention == "auto" and not gpus) else 0


@dataclass(frozen=True)
class Engine:
    """What an engine is asked to do."""

    rollout: Rollout
    dtype: str
    max_sequence: int
    """Tokens of the longest prompt and answer together."""
    samples: int
    """Decoded at once at most."""
    share: float | None = None
    """Of a GPU that it may fill; None: as its settings say, or of one that it has to itself."""


def engine_memory(config: RLJob, policy: ModelSize, gpu_bytes: float | None, beside: float = 0.0) -> Parts:
    """Bytes of one engine of an RL run (of one of its GPUs, under tensor parallelism).

    Args:
        config: the run's config.
        policy: the model's size.
        gpu_bytes: of a GPU's memory; None: it is in a host's.
        beside: bytes that others keep on the GPU while the engine generates.
    """
    samples = min(config.rollout.max_concurrent, config.batch_samples)
    share = engine_share(config, gpu_bytes, beside) if gpu_bytes is not None else None
    engine = Engine(config.rollout, config.wire_dtype, config.max_sequence, samples, share)
    return engine_parts(engine, policy, gpu_bytes)


def engine_parts(engine: Engine, policy: ModelSize, gpu_bytes: float | None) -> Parts:
    """Bytes of one engine.

    vLLM fills with KV cache what it was granted, however little the samples need; less than one sample's it refuses.
    """
    rollout, width = engine.rollout, BYTES[engine.dtype]
    split = rollout.tensor_parallel
    parameters = policy.parameters * width / split
    sample = engine.max_sequence * policy.kv_elements * width / split
    if rollout.engine != "vllm":
        return {"parameters": parameters, "KV cache": sample * engine.samples}
    if gpu_bytes is None:
        return {"parameters": CPU_ENGINE_COPIES * parameters, "KV cache": int(rollout.kv_cache_gib * GIB) / split}
    share = (rollout.gpu_memory_fraction or OWN_CARD) if engine.share is None else engine.share
    granted = share * gpu_bytes - parameters
    graphs = {} if rollout.compile is False else {"CUDA graphs": GRAPHS_BYTES}
    return {"parameters": parameters, "KV cache": max(sample, granted), **graphs}


def scorer_parts(size: ModelSize, role: str, dtype: str, tokens: int, *, devices: int = 1) -> Parts:
    """Bytes of one scoring worker that is asked about so many tokens at once, on each of the devices that it is cut over.

    All weights are cut but the embeddings, which each device has.
    """
    whole = size.vocabulary * size.hidden if size.parameters and devices > 1 else 0
    found = {
        "parameters": float((whole + (size.parameters - whole) / devices) * BYTES[dtype]),
        "activations": looking_bytes(size, dtype, tokens) if size.parameters else 0.0,
    }
    return found | ({"head": head_bytes(size, dtype, tokens, learns=False)} if role != "reward" else {})


def _kept_versions(config: RLJob, policy: ModelSize) -> float:
    """Bytes of the weight versions that somebody may ask for, and of one on its way."""
    versions = KEPT_VERSIONS + 1
    kept = policy.parameters + versions * policy.adapted if config.learner.lora else versions * policy.parameters
    return float(kept) * BYTES[config.wire_dtype]


def store_memory(config: RLJob, policy: ModelSize) -> Parts:
    """Bytes of shared memory that are held at once: weight versions, one of them on its way, and rows of experience.

    Versions that are deltas on an older one stay below that; those that ranks hold are not in it.
    """
    rows = config.experience.max_staleness * config.batch_rows + config.most_rows
    return {
        "weight versions": _kept_versions(config, policy) if config.weights.transport == "store" else 0.0,
        "experience": 12.0 * rows * config.max_sequence,
    }
