import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_dist.config import Feedback
from rlhf_dist.data.feedback import read_feedback
from rlhf_dist.errors import DataError
from rlhf_dist.feedback.exchange import imported, write_rows

ARGILLA = [
    {
        "id": "1",
        "fields": {"instruction": "q", "response-1": "x", "response-2": "y"},
        "responses": {
            "preference": [{"value": "response-2", "user_id": "u1"}, {"value": "response-1", "user_id": "u2"}],
            "why": [{"value": "", "user_id": "u1"}],
        },
    }
]
LABEL_STUDIO = [
    {
        "data": {"prompt": "q", "answer1": "x", "answer2": "y"},
        "annotations": [
            {"completed_by": 5, "result": [{"type": "pairwise", "from_name": "pw", "value": {"selected": "right"}}]},
            {"completed_by": 6, "was_cancelled": True, "result": []},
        ],
    },
    {
        "data": {"prompt": "q", "answer": "x"},
        "annotations": [
            {
                "completed_by": {"email": "a@b.c"},
                "result": [{"type": "rating", "from_name": "stars", "value": {"rating": 4}}],
            }
        ],
    },
    {
        "data": {"prompt": "q", "answer": "x"},
        "annotations": [
            {"completed_by": 5, "result": [{"type": "textarea", "from_name": "say", "value": {"text": ["too long"]}}]}
        ],
    },
]


def written(tmp_path: Path, records: object) -> Path:
    path = tmp_path / "export.json"
    path.write_text(json.dumps(records))
    return path


def test_argilla_records_become_comparisons_that_we_read(tmp_path: Path) -> None:
    rows = imported(written(tmp_path, ARGILLA), "argilla")
    write_rows(tmp_path / "rows.parquet", rows)
    found = read_feedback([Feedback(path=str(tmp_path / "rows.parquet"))])
    assert [(one.answers, one.label, one.annotator) for one in found] == [
        (("x", "y"), 0.0, "u1"),
        (("x", "y"), 1.0, "u2"),
    ]


def test_rankings_go_by_rank_and_remarks_on_a_pair_do_not_hide_its_side(tmp_path: Path) -> None:
    def record(value: object) -> dict[str, object]:
        said = {"best": [{"value": value, "user_id": "u"}], "why": [{"value": "clearer", "user_id": "u"}]}
        return {"fields": {"prompt": "q", "response-1": "x", "response-2": "y"}, "responses": said}

    ranked = [{"value": "response-1", "rank": 2}, {"value": "response-2", "rank": 1}]
    equal = [{**each, "rank": 1} for each in ranked]
    rows = imported(written(tmp_path, [record(ranked), record(equal), record(["response-1", "response-2"])]), "argilla")
    assert [row["preference"] for row in rows] == ["b", "tie", "a"]


def test_label_studio_tasks_become_comparisons_scores_and_comments(tmp_path: Path) -> None:
    pair, score, comment = imported(written(tmp_path, LABEL_STUDIO), "label-studio")
    assert pair == {"prompt": "q", "a": "x", "b": "y", "preference": "b", "annotator": "5"}
    assert (score["score"], score["annotator"]) == (4, "a@b.c")
    assert comment["comment"] == "too long"


BAD = {
    "not a list": ({"a": 1}, "found dict; expected a list of records"),
    "no responses": ([{"fields": {}}], "record 1: no 'responses'"),
    "nobody said anything": ([{"fields": {"prompt": "q"}, "responses": {}}], "no judgements in 1 records"),
    "odd side": (
        [{"fields": {"prompt": "q", "a": "x", "b": "y"}, "responses": {"pick": [{"value": "maybe"}]}}],
        "record 1: pick is 'maybe'; expected a side",
    ),
    "a score of a pair": (
        [{"fields": {"prompt": "q", "a": "x", "b": "y"}, "responses": {"stars": [{"value": 2}]}}],
        "stars is 2, of two answers; expected a score of one",
    ),
    "no prompt": (
        [{"fields": {"a": "x"}, "responses": {"s": [{"value": 3}]}}],
        r"fields are \['a'\]; expected one of prompt",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_not_an_export_is_refused_with_the_record(case: str, tmp_path: Path) -> None:
    records, message = BAD[case]
    with pytest.raises(DataError, match=message):
        imported(written(tmp_path, records), "argilla")
    with pytest.raises(DataError, match="expected .jsonl or .parquet"):
        write_rows(tmp_path / "rows.csv", [])


@pytest.mark.parametrize("who", [{}, {"completed_by": None}, {"completed_by": {"email": None}}])
def test_judgements_by_nobody_have_no_annotator(who: dict[str, Any], tmp_path: Path) -> None:
    choice = {"from_name": "pw", "value": {"selected": "left"}}
    record = {"data": {"prompt": "p", "a": "x", "b": "y"}, "annotations": [{**who, "result": [choice]}]}
    assert [row["annotator"] for row in imported(written(tmp_path, [record]), "label-studio")] == [""]
    response = {"value": "a", "user_id": None}
    record = {"fields": {"prompt": "p", "a": "x", "b": "y"}, "responses": {"q": [response]}}
    assert [row["annotator"] for row in imported(written(tmp_path, [record]), "argilla")] == [""]


PAIR = {"prompt": "q", "response_a": "x", "response_b": "y"}
LEFT = {"value": "response_a", "user_id": "1"}
RANKED = [{"value": "response_a", "rank": None}, {"value": "response_b", "rank": 1}]
ODD: dict[str, tuple[str, object, str]] = {
    "text": ("argilla", {"fields": PAIR, "responses": {"q": "x"}}, "q is 'x'; expected a list of mappings"),
    "texts": ("argilla", {"fields": PAIR, "responses": {"q": ["x"]}}, "q is .'x'.; expected a list of mappings"),
    "mapping": ("argilla", {"fields": PAIR, "responses": {"q": {"value": 1}}}, "q is .*; expected a list of mappings"),
    "value": ("argilla", {"fields": PAIR, "responses": {"q": [{"value": {"x": 1}}]}}, "expected text or a number"),
    "rank": ("argilla", {"fields": PAIR, "responses": {"q": [{"value": RANKED}]}}, "a rank that is a number"),
    "annotations": ("label-studio", {"data": PAIR, "annotations": "x"}, "annotations is 'x'"),
    "annotation": ("label-studio", {"data": PAIR, "annotations": ["x"]}, "annotations is .'x'."),
    "result": ("label-studio", {"data": PAIR, "annotations": [{"result": ["x"]}]}, "result is .'x'."),
    "result's value": ("label-studio", {"data": PAIR, "annotations": [{"result": [{"value": "x"}]}]}, "value is .'x'."),
}


@pytest.mark.parametrize("case", ODD)
def test_records_of_another_form_are_named(case: str, tmp_path: Path) -> None:
    tool, record, told = ODD[case]
    file = tmp_path / "e.json"
    file.write_text(json.dumps([record]))
    with pytest.raises(DataError, match=rf"e.json: record 1: .*{told}"):
        imported(file, tool)


def test_an_export_with_a_byte_order_mark_is_read_and_one_nested_deep_is_named(tmp_path: Path) -> None:
    file = tmp_path / "e.json"
    given = [{"fields": PAIR, "responses": {"q": [LEFT], "r": None}}]
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(given).encode())
    assert len(imported(file, "argilla")) == 1
    file.write_text("[" * 100_000)
    with pytest.raises(DataError, match="e.json: not a readable JSON file"):
        imported(file, "argilla")


def test_what_an_annotator_does_not_stand_by_is_no_judgement_and_a_rating_of_0_is_one(tmp_path: Path) -> None:
    file = tmp_path / "e.json"
    states = [{**LEFT, "status": status} for status in ("discarded", "draft", "submitted")]
    file.write_text(json.dumps([{"fields": PAIR, "responses": {"q": states}}]))
    assert len(imported(file, "argilla")) == 1
    rated = {"data": {"prompt": "q", "answer": "x"}, "annotations": [{"result": [{"value": {"rating": 0}}]}]}
    file.write_text(json.dumps([rated]))
    (row,) = imported(file, "label-studio")
    assert (row["score"], row["annotator"]) == (0, "")
