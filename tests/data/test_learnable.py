"""Of a file with everything that people said, what is learnt from is read, and what is left out is said."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from rlhf_dist.config import Feedback
from rlhf_dist.data.feedback import Judged, read_feedback
from rlhf_dist.data.learnable import KINDS
from rlhf_dist.errors import DataError
from rlhf_dist.feedback.aggregate import aggregate
from rlhf_dist.feedback.exchange import write_rows

ASKED = [{"role": "user", "content": "q"}]
COMMON = {"judgement": 1, "task": 1, "annotator": "ann", "created": "2026-11-28T03:00:00Z", "seconds": 2.5}
COMMON |= {"comment": None, "gold": None, "prompt": ASKED}
PAIR = {**COMMON, "kind": "comparisons", "a": "x", "b": "y", "preference": 1, "verdict": "a", "margin": 0.5}
SCORE = {**COMMON, "kind": "scores", "answer": "x", "score": 4, "scale": [1, 5], "source": ""}
EVERYTHING: list[dict[str, Any]] = [
    PAIR,
    {**PAIR, "preference": 0, "criterion": "safe"},
    {**COMMON, "kind": "rankings", "answers": ["x", "y", "z"], "sources": ["", "", ""], "shown": [2, 0, 1]},
    SCORE,
    {**SCORE, "score": 1, "criterion": "kind"},
    {**SCORE, "gold": 5},
    {**COMMON, "kind": "comments", "answer": "x", "comment": "so so", "source": ""},
    {**COMMON, "kind": "choices", "answer": "x", "criterion": "safe", "choice": "yes"},
    {**COMMON, "kind": "skips", "a": "x", "b": "y", "comment": "both cut off"},
]


def read(folder: Path, *rows: object, suffix: str = "jsonl", kinds: Any = KINDS, **settings: Any) -> list[Judged]:
    write_rows(folder / f"f.{suffix}", rows)  # type: ignore[arg-type]
    return read_feedback([Feedback(path=str(folder / f"f.{suffix}"), **settings)], kinds=kinds)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_each_row_is_read_by_its_kind_and_the_rest_is_said(
    suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = read(tmp_path, *EVERYTHING, suffix=suffix)
    assert [(one.kind, one.answers) for one in found] == [
        ("comparisons", ("x", "y")),
        ("rankings", ("x", "y", "z")),
        ("scores", ("x",)),
        ("comments", ("x",)),
    ]
    assert [one.label for one in found[:3]] == [1.0, 1.0, 0.75], "a row's own scale goes before the file's"
    assert {repr(one.prompt) for one in found} == {repr(ASKED)}
    left = "1 of gold questions, 1 choices, 1 skips, 2 of criteria safe, kind"
    assert caplog.messages == [f"{tmp_path}/f.{suffix}: left out: {left}"]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"kinds": ("comparisons",)}, "1 rankings, 2 scores, 1 comments"),
        ({"kind": "rankings"}, "2 comparisons, 2 scores, 1 comments"),
        ({"criterion": "safe"}, "4 of the main question, 1 of criteria kind"),
    ],
)
def test_an_explicit_kind_a_stages_kinds_and_a_criterion_choose_rows(
    settings: dict[str, Any], told: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        (one,) = read(tmp_path, *EVERYTHING, **settings)
    assert one.label == (0.0 if "criterion" in settings else 1.0)
    assert told in caplog.text


def test_judgements_of_different_criteria_are_never_averaged(tmp_path: Path) -> None:
    rows = [
        {**SCORE, "score": score, "criterion": name, "annotator": who}
        for who in "ab"
        for name, score in (("u", 1), ("v", 5))
    ]
    write_rows(tmp_path / "f.jsonl", rows)
    file = Feedback(path=str(tmp_path / "f.jsonl"), source="page")
    judged = read_feedback([file.model_copy(update={"criterion": name}) for name in "uv"])
    assert {(one.source, one.label) for one in aggregate(judged, "soft").judged} == {("page, u", 0.0), ("page, v", 1.0)}


NOTHING: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "criteria": (
        {**PAIR, "criterion": "safe"},
        {},
        "1 of criteria safe; expected .* of the main question. Set criterion: one of safe",
    ),
    "main": (
        PAIR,
        {"criterion": "safe"},
        "1 of the main question; expected .* of the criterion 'safe'. Set criterion: null",
    ),
    "kind": (
        PAIR,
        {"kind": "scores"},
        "1 comparisons; expected scores of the main question. Set kind: auto, or comparisons",
    ),
    "gold": ({**PAIR, "gold": "a"}, {}, "1 of gold questions; expected"),
    "skips": (EVERYTHING[8], {}, "1 skips; expected"),
    "judge": (
        EVERYTHING[6],
        {"kinds": KINDS[:3]},
        "1 comments; expected comparisons or rankings or scores .* Set comment_judge",
    ),
    "DPO": (SCORE, {"kinds": ("comparisons",)}, "1 scores; expected comparisons of the main question$"),
}


@pytest.mark.parametrize("case", NOTHING)
def test_a_file_with_nothing_to_learn_from_is_refused_with_what_it_has(case: str, tmp_path: Path) -> None:
    row, settings, told = NOTHING[case]
    with pytest.raises(DataError, match=f"f.jsonl: nothing to learn from: {told}"):
        read(tmp_path, row, **settings)


def test_a_kind_of_another_meaning_is_named_unless_the_file_has_one(tmp_path: Path) -> None:
    row = {"kind": "maths", "prompt": "q", "chosen": "x", "rejected": "y"}
    with pytest.raises(DataError, match=r"f.jsonl:1: kind is 'maths'; expected one of comparisons, .* set `kind`"):
        read(tmp_path, row)
    assert len(read(tmp_path, row, kind="comparisons")) == len(read(tmp_path, {**row, "kind": None})) == 1


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


TRL: dict[str, tuple[dict[str, Any], Any]] = {
    "preference": ({"prompt": "q", "chosen": "x", "rejected": "y"}, "q"),
    "conversational": ({"prompt": ASKED, "chosen": chat("x"), "rejected": chat("y")}, ASKED),
    "implicit prompt": ({"chosen": ASKED + chat("x"), "rejected": ASKED + chat("y")}, ASKED),
    "unpaired": ({"prompt": "q", "completion": "x", "label": True}, "q"),
    "unpaired conversational": ({"prompt": ASKED, "completion": chat("x"), "label": False}, ASKED),
}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("form", TRL)
def test_trls_forms_are_read_as_they_are(form: str, suffix: str, tmp_path: Path) -> None:
    row, prompt = TRL[form]
    (one,) = read(tmp_path, row, suffix=suffix)
    pair = "chosen" in row
    assert (one.kind, one.prompt, one.answers) == (
        "comparisons" if pair else "scores",
        prompt,
        ("x", "y") if pair else ("x",),
    )
    assert one.label == float(row.get("label", True))


def test_texts_that_look_like_messages_stay_texts_where_the_prompt_is_one(tmp_path: Path) -> None:
    said = json.dumps(ASKED)
    (one,) = read(tmp_path, {"prompt": "write a chat", "chosen": said, "rejected": "y"})
    assert one.answers == (said, "y")
