"""Asking a fleet of generators: what comes back is in order, whoever answered what."""

from typing import Any

import pyarrow as pa

from rlhf_dist.records import Prompt, PromptTask, RowKey, Sample
from rlhf_dist.rollout import generator
from rlhf_dist.rollout.held_out import EVALUATION, held_out_answers
from rlhf_dist.store.row import rollout_batch, rows_of
from rlhf_dist.store.schema import keys_of


class Worker:
    """Answers at once; `remote` gives the answer itself."""

    def __init__(self, name: int) -> None:
        self.name = name

    def __getattr__(self, method: str) -> Any:
        return type("Method", (), {"remote": staticmethod(getattr(self, f"_{method}"))})

    def _generate(self, tasks: list[PromptTask]) -> pa.RecordBatch:
        keys = [key for task in tasks for key in task.row_keys()]
        return rollout_batch(
            [Sample(key, (1,), (key.prompt_id, key.sample_index), (-0.5, -0.5), "stop", ()) for key in keys]
        )

    def _rate(self, prompts: list[list[int]], choices: list[int]) -> list[list[float]]:
        return [[float(sum(prompt)), float(len(choices))] for prompt in prompts]


class Fleet:
    kind = type("Kind", (), {"name": "generator"})

    def __init__(self, workers: int) -> None:
        self.ready = {f"generator-{n}": Worker(n) for n in range(workers)}
        self.watch = self

    def until(self, condition: Any, *, timeout_s: float) -> bool:
        return condition()

    def one(self, name: str, ref: Any, *, timeout_s: float, doing: str) -> Any:
        assert 0 <= timeout_s <= 5
        return ref


def test_answers_are_in_the_order_of_prompts_and_samples_whatever_the_number_of_workers() -> None:
    tasks = [PromptTask(0, prompt, (1,), 2) for prompt in (5, 1, 9, 3)]
    expected = [RowKey(0, prompt, sample) for prompt in (1, 3, 5, 9) for sample in (0, 1)]
    for workers in (1, 2, 3, 7):
        found = generator.answers(Fleet(workers), tasks, timeout_s=5)
        assert keys_of(found) == expected
        assert [row.answer.tolist() for row in rows_of(found)] == [
            [key.prompt_id, key.sample_index] for key in expected
        ]
    assert generator.answers(Fleet(2), [], timeout_s=5) is None


def test_ratings_are_in_the_order_of_the_prompts() -> None:
    prompts = [[n] for n in range(7)]
    for workers in (1, 3):
        assert generator.ratings(Fleet(workers), prompts, [4, 5], timeout_s=5) == [[float(n), 2.0] for n in range(7)]


def test_held_out_answers_are_seeded_alike_before_and_after_training() -> None:
    found = held_out_answers(Fleet(2), [Prompt(3, (1,), "c"), Prompt(1, (1,), "a")], timeout_s=5)
    assert keys_of(found) == [RowKey(EVALUATION, 1, 0), RowKey(EVALUATION, 3, 0)]
    assert held_out_answers(Fleet(2), [], timeout_s=5) is None
