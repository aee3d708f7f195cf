"""Generators of one stage: several processes of one fixed policy, and what they are asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from rlhf_dist.cluster.session import has_gpus
from rlhf_dist.cluster.watch import Watch
from rlhf_dist.config import Rollout, Timeouts
from rlhf_dist.models import eos_token_ids
from rlhf_dist.records import Prompt, PromptTask
from rlhf_dist.rollout.generator import Generator
from rlhf_dist.rollout.spec import engine_spec, environment, sampling_of


class Generators:
    """Started generators of one model; `generating` makes and stops them."""

    def __init__(self, workers: dict[str, Any], timeouts: Timeouts) -> None:
        """Take over started actors, by name."""
        self._workers, self._timeouts, self._watch = workers, timeouts, Watch()

    def answers(self, prompts: Sequence[Prompt], *, samples: int = 1, first_sample: int = 0) -> pa.RecordBatch:
        """Answers to each prompt, ordered by the prompts' ids and sample (`store.schema.ROLLOUT`).

        Args:
            prompts: what to answer; ids must differ.
            samples: answers per prompt.
            first_sample: number of the first, for other answers than those of an earlier call.
        """
        tasks = [PromptTask(0, prompt.id, prompt.tokens, samples, first_sample) for prompt in prompts]
        found = self._ask("generate", tasks, doing="answering prompts")
        return (
            pa.Table.from_batches(found)
            .sort_by([("prompt_id", "ascending"), ("sample_index", "ascending")])
            .combine_chunks()
            .to_batches()[0]
        )

    def rate(self, prompts: Sequence[Sequence[int]], choices: Sequence[int]) -> list[list[float]]:
        """For each prompt, how likely each of some tokens is to come next; see `TransformersEngine.rate`."""
        found = self._ask("rate", prompts, choices, doing="rating")
        rated: list[list[float]] = [[] for _ in prompts]
        for number, part in enumerate(found):
            rated[number :: len(self._workers)] = part
        return rated

    def _ask(self, method: str, items: Sequence[Any], *rest: Any, doing: str) -> list[Any]:
        """Deal items out to the workers; their results, in the workers' order."""
        names = [*self._workers][: max(1, len(items))]
        calls = {
            name: getattr(self._workers[name], method).remote(items[number :: len(self._workers)], *rest)
            for number, name in enumerate(names)
        }
        return [*self._watch.wait(calls, timeout_s=self._timeouts.batch, doing=doing).values()]


@contextmanager
def generating(
    model: str, rollout: Rollout, timeouts: Timeouts, run_dir: Path, *, max_sequence: int, dtype: str, seed: int
) -> Iterator[Generators]:
    """Engines of a folder's model inside the block.

    Args:
        model: Hugging Face folder or name.
        rollout: how to generate; `workers.min` engines.
        timeouts: how long to wait.
        run_dir: where log files go.
        max_sequence: longest prompt and answer, in tokens.
        dtype: torch's name of the dtype to generate in.
        seed: of the samples.
    """
    import ray

    on_gpu = has_gpus()
    spec = engine_spec(
        rollout,
        model,
        dtype=dtype,
        max_sequence=max_sequence,
        seed=seed,
        on_gpu=on_gpu,
        log_dir=str(run_dir.absolute() / "logs"),
    )
    kind: Any = ray.remote(Generator).options(
        num_cpus=1,
        num_gpus=rollout.tensor_parallel if on_gpu else 0,
        max_concurrency=2,
        runtime_env={"env_vars": environment(rollout, on_gpu=on_gpu)},
    )
    sampling = sampling_of(rollout, eos_token_ids(model))
    workers = {
        f"generator-{number}": kind.remote(
            f"generator-{number}", dataclasses.replace(spec, fixed=True), sampling, seed=seed
        )
        for number in range(rollout.workers.min)
    }
    try:
        starting = {name: worker.start.remote() for name, worker in workers.items()}
        Watch().wait(starting, timeout_s=timeouts.start, doing="starting and loading its model")
        yield Generators(workers, timeouts)
    finally:
        for worker in workers.values():
            ray.kill(worker)
