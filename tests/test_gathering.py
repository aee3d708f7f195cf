"""How an iteration gets its samples, with a store that answers at once."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from rlhf_dist import gathering
from rlhf_dist.config import RLConfig
from rlhf_dist.data.prompts import PromptSampler
from rlhf_dist.errors import DataError
from rlhf_dist.gathering import gather
from rlhf_dist.records import GREEDY, Prompt, PromptTask, RowKey, Sample
from rlhf_dist.stages import reference_values as values
from rlhf_dist.store.experience import RowView
from rlhf_dist.store.row import rollout_batch
from rlhf_dist.store.schema import written_by

PROMPTS = [Prompt(n, (1, 2 + n), f"p{n}") for n in range(12)]


def score_of(key: RowKey) -> float:
    """Prompts of even numbers are always right; the greedy answer scores 0.75."""
    if key.sample_index == GREEDY:
        return 0.75
    return 1.0 if key.prompt_id % 2 == 0 else float(key.sample_index % 2)


class World:
    """Store and watch in one."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[PromptTask], bool]] = []
        self.lost: set[RowKey] = set()
        self.rollouts = SimpleNamespace(states=dict)

    @property
    def store(self) -> Any:
        return SimpleNamespace(
            submit=SimpleNamespace(remote=lambda tasks, further: self.asked.append((list(tasks), further))),
            take=SimpleNamespace(remote=lambda *_: "take"),
            consume=SimpleNamespace(remote=lambda *_: "consume"),
        )

    watch = property(lambda self: self)

    def one(self, name: str, ref: Any, *, timeout_s: float, doing: str) -> Any:
        if ref != "take":
            return None
        keys = [key for task in self.asked[-1][0] for key in task.row_keys()]
        return [RowView(key, 4, {}) for key in sorted(keys) if key not in self.lost]


def read(parts: Any, rows: list[RowView], *, timeout_s: float) -> pa.RecordBatch:
    samples = [Sample(row.key, (1, 2), (3, 4), (-0.5, -0.5), "stop", ((0, 2),)) for row in rows]
    rollout, fields = rollout_batch(samples), written_by("reward")
    scores = [score_of(row.key) for row in rows]
    parts_of = {"score": scores, "score_parts": [[("r", score)] for score in scores]}
    columns = [pa.array(parts_of[field.name], field.type) for field in fields]
    return pa.RecordBatch.from_arrays([*rollout.columns, *columns], names=[*rollout.schema.names, *fields.names])


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(gathering, "read", read)
    monkeypatch.setattr(values, "read", read)
    return World()


def config(samples: int = 2, **algorithm: Any) -> RLConfig:
    return RLConfig.model_validate(
        {
            "policy": "a",
            "reward": "b",
            "prompts": {"path": "p"},
            "rl": {"iterations": 2, "prompts_per_iteration": 4},
            "rollout": {"samples_per_prompt": samples},
            "algorithm": algorithm,
        }
    )


def sampler(settings: RLConfig) -> PromptSampler:
    greedy = settings.algorithm.baseline == "greedy"
    samples = settings.rollout.samples_per_prompt
    return PromptSampler(PROMPTS, batch=4, samples=samples, seed=0, greedy=greedy)


def test_prompts_that_teach_nothing_are_replaced_until_there_are_enough(world: World) -> None:
    settings = config(method="dapo")
    found = gather(world, sampler(settings), 0, settings)  # type: ignore[arg-type]
    prompts = [row.key.prompt_id for row in found.rows]
    assert all(prompt % 2 for prompt in prompts)
    assert len({*prompts}) == 4
    assert [row.key for row in found.rows] == sorted(row.key for row in found.rows)
    assert [further for _, further in world.asked] == [False] + [True] * (len(world.asked) - 1)
    ids = [task.prompt_id for tasks, _ in world.asked for task in tasks]
    assert len(ids) == len({*ids}), "no prompt twice in an iteration, whose rows have names of their own"
    assert found.facts["filter/rounds"] == len(world.asked) > 1
    assert found.facts["filter/share_kept"] == pytest.approx(sum(prompt % 2 for prompt in ids) / len(ids))
    assert found.facts["filter/prompts"] == 4
    assert 0.5 < found.facts["filter/score_before/mean"] < 1


def test_rounds_are_bounded_and_where_nothing_teaches_the_first_are_learnt_from(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(method="dapo", filter_rounds=2)
    few = gather(world, sampler(settings), 0, settings)  # type: ignore[arg-type]
    assert len(world.asked) <= 2
    assert few.facts["filter/prompts"] <= 4
    monkeypatch.setattr(__name__ + ".score_of", lambda key: 1.0)
    nothing = gather(World(), sampler(settings), 0, settings)  # type: ignore[arg-type]
    assert len(nothing.rows) == 8
    assert nothing.facts["filter/share_kept"] == 0


def test_greedy_answers_are_a_baseline_and_not_learnt_from(world: World) -> None:
    settings = config(method="remax")
    tasks = sampler(settings).batch(0)
    assert [key.sample_index for key in tasks[0].row_keys()] == [GREEDY, 0, 1]
    world.lost.add(RowKey(0, tasks[0].prompt_id, GREEDY))
    found = gather(world, sampler(settings), 0, settings)  # type: ignore[arg-type]
    assert {row.key.sample_index for row in found.rows} == {0, 1}
    assert found.given == {task.prompt_id: 0.75 for task in tasks[1:]}
    assert {row.key.prompt_id for row in found.rows} == found.given.keys(), "a prompt without its baseline is left out"
    assert found.facts == {"critic/greedy_score/mean": 0.75}
    assert settings.batch_rows == 12
    assert settings.batch_samples == 8


def test_v_star_is_made_once_of_every_prompt_and_read_again(world: World, tmp_path: Path) -> None:
    settings = config(method="a_star", tau=0.5, reference_samples=4)
    prompts = sampler(settings)
    made = values.reference_values(world, prompts, settings, tmp_path, iteration=0)  # type: ignore[arg-type]
    assert made is not None
    assert made.keys() == {task.prompt_id for number in range(2) for task in prompts.batch(number)}
    assert {len(task.row_keys()) for tasks, _ in world.asked for task in tasks} == {4}
    assert all(further for _, further in world.asked)
    always, half = (next(v for k, v in made.items() if k % 2 == odd) for odd in (0, 1))
    assert always == pytest.approx(1.0)
    assert half == pytest.approx(0.5 * math.log((1 + math.exp(2)) / 2))
    again = World()
    assert values.reference_values(again, prompts, settings, tmp_path, iteration=1) == made  # type: ignore[arg-type]
    assert again.asked == []
    with pytest.raises(DataError, match=r"reference_values.json: missing; a run goes on with the V\*"):
        values.reference_values(again, prompts, settings, tmp_path / "none", iteration=1)  # type: ignore[arg-type]
    assert values.reference_values(again, prompts, config(), tmp_path, iteration=0) is None  # type: ignore[arg-type]
