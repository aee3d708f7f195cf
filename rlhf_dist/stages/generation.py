"""Generators of one stage: several processes of one fixed policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from rlhf_dist.cluster import pulse
from rlhf_dist.cluster.fleet import Fleet, FleetSize, WorkerKind
from rlhf_dist.cluster.placement import slots_of, threads_of
from rlhf_dist.cluster.session import cores_per_gpu, has_gpus
from rlhf_dist.cluster.watch import watch_of
from rlhf_dist.config import Learner, Rollout, Timeouts
from rlhf_dist.models import eos_token_ids
from rlhf_dist.records import Prompt, PromptTask
from rlhf_dist.rollout.generator import Generator, answers
from rlhf_dist.rollout.spec import engine_spec, environment, sampling_of
from rlhf_dist.telemetry.logs import log_dir


def answers_to(
    prompts: Sequence[Prompt], generators: Fleet, timeouts: Timeouts, *, samples: int = 1, first_sample: int = 0
) -> pa.RecordBatch:
    """Answers to each prompt, ordered by the prompts' ids and sample (`store.schema.ROLLOUT`).

    Args:
        prompts: what to answer, at least one; ids must differ.
        generators: who answers.
        timeouts: how long to wait.
        samples: answers per prompt.
        first_sample: number of the first, for other answers than those of an earlier call.
    """
    tasks = [PromptTask(0, prompt.id, prompt.tokens, samples, first_sample) for prompt in prompts]
    return answers(generators, tasks, timeout_s=timeouts.batch)


@contextmanager
def generating(
    model: str,
    rollout: Rollout,
    timeouts: Timeouts,
    run_dir: Path,
    *,
    learner: Learner,
    max_sequence: int,
    seed: int,
) -> Iterator[Fleet]:
    """Engines of a folder's model inside the block.

    Args:
        model: Hugging Face folder or name.
        rollout: how to generate; `workers.min` engines.
        timeouts: how long to wait.
        run_dir: where log files go.
        learner: whose precision and attention kernels they take.
        max_sequence: longest prompt and answer, in tokens.
        seed: of the samples.
    """
    on_gpu, cores, parallel = has_gpus(), cores_per_gpu(), rollout.tensor_parallel
    threads = threads_of(cores, 1) if on_gpu else rollout.threads
    spec = engine_spec(
        rollout,
        model,
        dtype=learner.dtype,
        max_sequence=max_sequence,
        seed=seed,
        log_dir=log_dir(run_dir),
    )
    kind = pulse.watched(Generator).options(
        num_cpus=slots_of(cores, parallel) if on_gpu else 1,
        num_gpus=parallel if on_gpu else 0,
        max_concurrency=2,
        runtime_env={"env_vars": environment(rollout, on_gpu=on_gpu, threads=threads)},
    )
    sampling = sampling_of(rollout, eos_token_ids(model), model)
    fixed = dataclasses.replace(spec, fixed=True, attention=learner.attention)
    size = FleetSize(rollout.workers.min, rollout.workers.min, rollout.max_restarts, "rollout.max_restarts")
    fleet = Fleet(
        WorkerKind("generator", lambda name, _: kind.remote(name, fixed, sampling, seed=seed)), size, watch_of(timeouts)
    )
    try:
        fleet.open(timeout_s=timeouts.start)
        fleet.wait_for_fewest(timeout_s=timeouts.start)
        yield fleet
    finally:
        fleet.watch.forget()
        fleet.close()
