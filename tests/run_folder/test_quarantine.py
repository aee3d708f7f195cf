import json
from pathlib import Path

import pytest

from rlhf_dist.records import Failure, RowKey
from rlhf_dist.run_folder import quarantine
from rlhf_dist.run_folder.quarantine import Quarantine, warning

WHY = Failure("r", "rules:f raised", "Hi", "line\nline")


def told(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "quarantine.jsonl").read_text().splitlines()]


def test_a_run_without_failures_has_no_such_file(tmp_path: Path) -> None:
    made = Quarantine(tmp_path)
    made.rewind(0)
    made.add({})
    assert [*tmp_path.iterdir()] == []


def test_each_failure_is_a_line_with_its_cause_and_a_resumed_run_tells_its_iterations_again(tmp_path: Path) -> None:
    made = Quarantine(tmp_path)
    for iteration in range(3):
        made.add({RowKey(iteration, 5, 1): WHY})
    assert told(tmp_path)[1] == {"iteration": 1, "prompt_id": 5, "sample_index": 1, **WHY._asdict()}
    with (tmp_path / "quarantine.jsonl").open("a") as file:
        file.write('{"half')
    again = Quarantine(tmp_path)
    again.rewind(1)
    again.add({RowKey(1, 6, 0): WHY})
    assert [(row["iteration"], row["prompt_id"]) for row in told(tmp_path)] == [(0, 5), (1, 6)]


def test_so_many_are_told_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine, "MOST", 3)
    made = Quarantine(tmp_path)
    for iteration in range(3):
        made.add({RowKey(iteration, 5, n): WHY for n in range(2)})
    assert len(told(tmp_path)) == 3


def test_the_screen_is_told_in_one_line() -> None:
    text = warning({RowKey(3, 5, 1): WHY, RowKey(3, 6, 0): WHY}, 1)
    assert text == (
        "iteration 4: not trained on for lack of a score: 2 of its samples, nor 1 whose prompts have too few left; answer 1 to "
        "prompt 5: reward r: rules:f raised (quarantine.jsonl)"
    )
