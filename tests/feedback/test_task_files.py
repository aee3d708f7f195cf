"""Gold questions: read from comparisons, and met now and then."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_dist.errors import DataError
from rlhf_dist.feedback.task_files import TaskRow, read_gold, read_tasks, spread


def test_gold_questions_know_the_chosen_side_and_show_it_on_both(tmp_path: Path) -> None:
    file = tmp_path / "gold.jsonl"
    file.write_text(
        "".join(json.dumps({"prompt": f"p{n}", "chosen": "yes", "rejected": "no"}) + "\n" for n in range(40))
    )
    rows = read_gold(str(file), seed=0)
    assert all({"a": row.a, "b": row.b}[str(row.gold)] == "yes" for row in rows)
    assert 8 < sum(row.gold == "a" for row in rows) < 32
    assert read_gold(str(file), seed=0) == rows
    file.write_text('{"prompt": "p", "chosen": "yes"}\n')
    with pytest.raises(DataError, match=r"gold.jsonl:1: rejected is None; expected text"):
        read_gold(str(file), seed=0)


@given(st.integers(0, 12), st.integers(0, 60))
def test_gold_questions_are_spread_evenly_and_nothing_is_lost(gold: int, tasks: int) -> None:
    known = [TaskRow("comparison", f"g{n}", "a", "b", gold="a") for n in range(gold)]
    others = [TaskRow("comparison", f"t{n}", "a", "b") for n in range(tasks)]
    rows = spread(known, others)
    assert [row for row in rows if row.gold] == known
    assert [row for row in rows if not row.gold] == others
    places = [place for place, row in enumerate(rows) if row.gold]
    gaps = {after - before for before, after in pairwise(places)}
    assert len(gaps) <= 2
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_tasks_that_cannot_be_are_named_and_null_sources_are_none(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    for row, told in (
        ({"prompt": "q", "a": "x", "b": "x"}, "two answers look the same, but for white space"),
        ({"prompt": "q", "a": "x", "b": "x\n"}, "two answers look the same, but for white space"),
        ({"prompt": "q", "a": "caf\u00e9", "b": "cafe\u0301\u200b"}, "two answers look the same, but for white space"),
        ({"prompt": "q", "a": "x", "b": "y", "prompt_source": "[" * 100_000}, "prompt_source is "),
    ):
        file.write_text(json.dumps(row) + "\n")
        with pytest.raises(DataError, match=f"t.jsonl:1: {told}"):
            read_tasks(str(file))
    file.write_text(json.dumps({"kind": "score", "prompt": "q", "a": "x", "source_a": None, "gold": 4.0}) + "\n")
    (task,) = read_tasks(str(file))
    assert (task.source_a, task.gold) == ("", "4")
