import json
from importlib import import_module
from pathlib import Path

import pytest

from rlhf_dist.config import EmbeddedTask
from rlhf_dist.errors import ConfigError, DataError
from rlhf_dist.tasks.scenarios import SCENARIOS
from rlhf_dist.tasks.scenarios.scenario import nearness, word_distance
from rlhf_dist.tasks.task_data import write_task


@pytest.mark.parametrize("name", SCENARIOS)
def test_right_answers_are_perfect_and_slips_are_not(name: str) -> None:
    scenario = SCENARIOS[name]
    train, held_out = scenario.split
    assert not set(train) & set(held_out)
    assert len(held_out) == round(0.1 * len(scenario.answers))
    assert all(scenario.judge(prompt, f" {scenario.answers[prompt]}") == 1.0 for prompt in held_out)
    golds = [scenario.judge(row["prompt"], row["completion"]) for row in scenario.demonstrations(300, 0)]
    assert 0.4 < sum(golds) / len(golds) < 0.95, "there is something to gain"
    assert all(0.0 <= gold <= 1.0 for gold in golds)
    assert scenario.judge(train[0], "") < 0.5
    with pytest.raises(DataError, match="not a prompt of the task"):
        scenario.judge("hello", "x")


@pytest.mark.parametrize("name", SCENARIOS)
def test_people_mostly_prefer_what_is_better(name: str) -> None:
    scenario = SCENARIOS[name]
    gaps = [
        scenario.judge(row["prompt"], row["chosen"]) - scenario.judge(row["prompt"], row["rejected"])
        for row in scenario.comparisons(400, 0)
    ]
    told = [gap for gap in gaps if gap]
    assert sum(gap > 0 for gap in told) / len(told) > 0.75


@pytest.mark.parametrize("name", ["dialogue", *SCENARIOS])
def test_a_task_writes_equal_files_for_equal_seeds_and_is_said_in_few_tokens(name: str, tmp_path: Path) -> None:
    task = EmbeddedTask(name=name, prompts=64, demonstrations=32, comparisons=32)
    first = write_task(task, tmp_path / "a", held_out=8, seed=1)
    second = write_task(task, tmp_path / "b", held_out=8, seed=1)
    for file in ("prompts", "held_out", "demonstrations", "preferences"):
        assert (tmp_path / "a" / f"{file}.jsonl").read_text() == (tmp_path / "b" / f"{file}.jsonl").read_text()
    assert len(second.tokenizer) <= 512
    module, _, function = first.gold_judge.partition(":")
    judge = getattr(import_module(module), function)
    rows = [json.loads(line) for line in Path(first.demonstrations).read_text().splitlines()]
    for row in rows:
        assert 0.0 <= judge(row["prompt"], row["completion"]) <= 1.0
        ids = first.tokenizer(row["prompt"] + row["completion"])["input_ids"]
        assert first.tokenizer.decode(ids, skip_special_tokens=True) == row["prompt"] + row["completion"]


def test_too_much_is_refused() -> None:
    with pytest.raises(ConfigError, match="style has comparisons only"):
        write_task(EmbeddedTask(name="style", scores=3), Path(), held_out=1, seed=0)
    with pytest.raises(DataError, match="held_out is 5000, expected at most"):
        SCENARIOS["style"].write(Path(), prompts=1, held_out=5000, demonstrations=1, comparisons=1, seed=0)


def test_distances_count_words() -> None:
    assert word_distance("a b c", "a c") == 1
    assert word_distance("a b", "b a") == 2
    assert word_distance("", "a b") == 2
    assert nearness("a b c d", "a b x d") == 0.75
    assert nearness("a", "x y z") == 0.0
