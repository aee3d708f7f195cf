"""What other tools hold survives the way there and back, and whatever stands in an export is rows or a sentence."""

import copy
import json
import random
import tempfile
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_dist.errors import DataError
from rlhf_dist.feedback import argilla, label_studio
from rlhf_dist.feedback.exchange import imported
from tests.feedback.exports import ARGILLA, FLAT, LABEL_STUDIO, LEAST

EXPORTS = {"argilla": argilla.records, "label-studio": label_studio.tasks}
TEXT = st.text(min_size=1, max_size=8).filter(str.strip)
CHAT = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "tool"]), "content": st.text()}), min_size=1
)
PEOPLE = st.lists(st.integers(0, 2**64).map(lambda number: str(UUID(int=number))), min_size=1, max_size=3, unique=True)


def back(rows: list[dict[str, Any]], tool: str) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "export.json"
        file.write_text(json.dumps(EXPORTS[tool](rows)))
        return imported(file, tool)


@st.composite
def judged(draw: st.DrawFn, tool: str) -> list[dict[str, Any]]:
    """Rows as the page exports them, with all that a tool can hold, numbered in the order of tasks."""
    rows: list[dict[str, Any]] = []
    number, timed = 0, tool == "label-studio"
    for task in range(1, draw(st.integers(1, 3)) + 1):
        asked = {"prompt": draw(TEXT | CHAT), **({"tools": [{"name": "f"}]} if timed and draw(st.booleans()) else {})}
        kind = draw(st.sampled_from(["comparisons", "rankings", "scores", "comments", "choices"]))
        least = {"comparisons": 2, "rankings": 3}.get(kind, 1)
        most = 5 if kind == "rankings" else least
        texts = draw(st.lists(TEXT, min_size=least, max_size=most, unique_by=lambda text: tuple(text.split())))
        names = {text: draw(st.text(max_size=3)) if timed else "" for text in texts}
        scale = {"scale": [1, 5]} if timed and draw(st.booleans()) else {}
        for person in draw(PEOPLE):
            number += 1
            when = {"created": draw(st.none() | TEXT), "seconds": draw(st.none() | st.floats(0, 1e6))} if timed else {}
            common = {"judgement": number, "task": task, "annotator": person, "created": None, "seconds": None, **when}
            common |= {"comment": draw(TEXT if kind == "comments" else st.none() | TEXT), "gold": None, **asked}
            marks = [mark for at, text in zip("ab", texts, strict=False) for mark in draw(marks_of(at, text))]
            common |= {"marks": marks} if marks and kind != "rankings" else {}
            rows += [{**common, **own} for own in draw(said(kind, texts, names, scale))]
    return rows


@st.composite
def marks_of(draw: st.DrawFn, letter: str, text: str) -> list[dict[str, Any]]:
    start = draw(st.integers(0, len(text) - 1))
    end = draw(st.integers(start + 1, len(text)))
    comment = draw(st.none() | TEXT.filter(lambda text: text != "mark"))
    mark = {"answer": letter, "text": text[start:end], "start": start, "end": end, "comment": comment}
    return [mark] * draw(st.integers(0, 1))


@st.composite
def said(
    draw: st.DrawFn, kind: str, texts: list[str], names: dict[str, str], scale: dict[str, Any]
) -> list[dict[str, Any]]:
    further = [{}, {"criterion": "helpful"}][: draw(st.integers(1, 2))]
    if kind == "comparisons":
        margin, rows = draw(st.integers(0, 3)), []
        a, b = texts
        for criterion in further:
            label = draw(st.sampled_from([0.0, 0.5, 1.0]))
            verdict = {0.0: "b", 0.5: "tie", 1.0: "a"}[label]
            own = {"preference": label, "verdict": verdict, "source_a": names[a], "source_b": names[b], **criterion}
            rows.append({"kind": kind, "a": a, "b": b, "margin": margin if label != 0.5 else 0.0, **own})
        return rows[:1] if margin else rows
    if kind == "rankings":
        best = draw(st.permutations(texts))
        return [{"kind": kind, "answers": best, "sources": [names[text] for text in best]}]
    one = {"kind": kind, "answer": texts[0], "source": names[texts[0]]}
    if kind == "scores":
        return [{**one, "score": draw(st.integers(1, 5)), **(scale if not each else {}), **each} for each in further]
    if kind == "choices":
        del one["source"]
        several = st.lists(TEXT, min_size=2, max_size=3)
        return [{**one, "criterion": "is it safe?", "choice": draw(TEXT | several)}]
    return [one]


@pytest.mark.parametrize("tool", EXPORTS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_rows_come_back_from_a_tool_as_they_went(tool: str, data: st.DataObject) -> None:
    rows = data.draw(judged(tool))
    assert back(rows, tool) == rows


SAMPLES = {"argilla": [*ARGILLA, *FLAT], "label-studio": [*LABEL_STUDIO, *LEAST]}


@pytest.mark.parametrize("tool", SAMPLES)
def test_an_export_survives_import_export_and_import(tool: str, tmp_path: Path) -> None:
    (tmp_path / "e.json").write_text(json.dumps(SAMPLES[tool]))
    rows = imported(tmp_path / "e.json", tool)
    once = back(rows, tool)
    said = ("kind", "prompt", "a", "b", "answer", "answers", "preference", "score", "choice", "comment", "criterion")
    assert [[row.get(name) for name in said] for row in once] == [[row.get(name) for name in said] for row in rows]
    assert back(once, tool) == once


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**400) | st.floats() | st.text(st.characters(codec=None), max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container of a JSON value with each of its keys."""
    keys = list(value) if isinstance(value, dict) else [*range(len(value))] if isinstance(value, list) else []
    return [(value, key) for key in keys] + [place for key in keys for place in places(value[key])]


@pytest.mark.parametrize("tool", SAMPLES)
@given(
    odd=JSON,
    more=JSON,
    seed=st.integers(0, 2**32),
    name=st.sampled_from(["value", "text", "result", "user_id", "ranker"]),
)
@settings(max_examples=150, deadline=None)
def test_whatever_stands_in_an_export_is_rows_or_a_sentence(
    tool: str, odd: Any, more: Any, seed: int, name: str
) -> None:
    records, draws = copy.deepcopy(SAMPLES[tool]), random.Random(seed)
    for value in (odd, more):
        container, key = draws.choice(places(records))
        container[key] = copy.deepcopy(value)
        container, key = draws.choice(places(records))
        if isinstance(container, dict):
            container[name] = copy.deepcopy(value)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "export.json"
        file.write_text(json.dumps(records))
        rows, told = [], str(file)
        try:
            rows = imported(file, tool)
        except DataError as error:
            told = str(error)
        assert told.startswith(str(file))
        json.dumps(rows, ensure_ascii=False, allow_nan=False).encode()
