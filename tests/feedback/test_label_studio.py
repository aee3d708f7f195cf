"""Each control of Label Studio, as rows of judgements."""

from collections import Counter
from typing import Any

import pytest

from rlhf_dist.errors import DataError
from rlhf_dist.feedback.label_studio import judgements, tasks
from tests.feedback.exports import ITEMS, LEAST, LONG, TEXTS, annotated, result


def read(*made: Any, **told: int) -> list[dict[str, Any]]:
    left_out: Counter[str] = Counter()
    rows = judgements([(f"e: record {number}", record) for number, record in enumerate(made, start=1)], left_out)
    found = {reason.split(",")[0]: count for reason, count in left_out.items() if count}
    assert found == {reason.replace("_", " "): count for reason, count in told.items()}
    return rows


def test_a_pair_has_who_and_when_and_the_texts_beside_it_are_its_comment() -> None:
    side, why = (
        result("pairwise", "pw", "answer1,answer2", selected="right"),
        result("textarea", "why", "answer1", text=["a", "b"]),
    )
    (row,) = read(annotated(TEXTS, side, why, result("number", "margin", "prompt", number=2)))
    assert row == {
        "kind": "comparisons",
        "judgement": 1,
        "task": 1,
        "annotator": "5",
        "created": "2026-03-09T22:16:08.728353Z",
        "seconds": 4.5,
        "comment": "a\nb",
        "gold": None,
        "prompt": "q",
        "a": "x",
        "b": "y",
        "preference": 0.0,
        "verdict": "b",
        "margin": 2.0,
        "source_a": "",
        "source_b": "",
    }


@pytest.mark.parametrize(("choice", "preference"), [("answer1", 1.0), ("Answer 2", 0.0), ("Tie", 0.5)])
def test_a_choice_that_names_an_answer_is_a_preference(choice: str, preference: float) -> None:
    (row,) = read(annotated(TEXTS, result("choices", "best", "answer1", choices=[choice])))
    assert (row["a"], row["b"], row["preference"]) == ("x", "y", preference)


def test_a_ranker_is_an_order_by_numbered_buckets_groups_and_by_named_ones_labels() -> None:
    def ranker(value: object) -> dict[str, Any]:
        return annotated(ITEMS, result("ranker", "order", "items", ranker=value))

    assert [
        row["answers"]
        for row in read(ranker({"order": ["llm_2", "llm_0", "llm_1"]}), ranker(["llm_1", "llm_0", "llm_2"]))
    ] == [
        ["z", "x", "y"],
        ["y", "x", "z"],
    ]
    rows = read(ranker({"rank_10": ["llm_0"], "rank_2": ["llm_1", "llm_2"], "_": []}))
    assert [(row["a"], row["b"], row["preference"]) for row in rows] == [
        ("x", "y", 0.0),
        ("x", "z", 0.0),
        ("y", "z", 0.5),
    ]
    rows = read(ranker({"good": ["llm_1"], "bad": ["llm_0", "llm_2"], "_": []}))
    assert [(row["answer"], row["criterion"], row["choice"]) for row in rows] == [
        ("y", "order", "good"),
        ("x", "order", "bad"),
        ("z", "order", "bad"),
    ]
    read(ranker({"order": ["llm_0", "other"]}), rankings_of_order_that_do_not_name_two_answers_or_more=1)


def test_labels_of_one_answer_are_choices_and_taxonomies_are_paths() -> None:
    topic = result("taxonomy", "topic", "answer", taxonomy=[["A", "B"], ["C"]])
    rows = read(annotated(LONG, result("choices", "safe", "answer", choices=["yes"]), topic))
    assert [(row["kind"], row["criterion"], row["choice"]) for row in rows] == [
        ("choices", "safe", "yes"),
        ("choices", "topic", ["A > B", "C"]),
    ]


def test_a_rating_is_of_the_only_answer_or_of_those_that_several_are_tied_to() -> None:
    (row,) = read(annotated(LONG, result("rating", "stars", "dialogue", rating=0)))
    assert (row["prompt"], row["answer"], row["score"]) == ([{"role": "user", "content": "hi"}], "hello there", 0)
    rated = [result("rating", f"stars{n}", f"answer{n}", rating=n) for n in (1, 2)]
    assert [(row["answer"], row["score"]) for row in read(annotated(TEXTS, *rated))] == [("x", 1), ("y", 2)]
    assert read(annotated(TEXTS, rated[0]), numbers_of_stars1=1) == []


def test_marks_have_their_place_and_a_text_on_one_is_its_comment() -> None:
    marked = result("labels", "bad", "t", start=0, end=5, text="hello", labels=["rude"])
    said = {**result("textarea", "say", "t", start=0, end=5, text=["so rude"]), "id": marked["id"]}
    tagged = {**result("choices", "tag", "t", start=0, end=5, text="hello", choices=["u"]), "id": marked["id"]}
    (row,) = read(
        annotated(LONG, marked, said, tagged, result("rating", "stars", "answer", rating=3)),
        answers_to_tag_about_a_part_of_a_text=1,
    )
    assert row["marks"] == [{"answer": "a", "text": "hello", "start": 0, "end": 5, "comment": "so rude"}]
    elsewhere = result("labels", "bad", "dialogue", start=0, end=2, text="hi", labels=["rude"])
    read(
        annotated(TEXTS, elsewhere, result("pairwise", "pw", "answer1", selected="left")),
        marks_of_texts_that_are_no_answers=1,
    )


def test_what_is_no_judgement_is_left_out_and_counted() -> None:
    relation = {"type": "relation", "from_id": "a", "to_id": "b", "direction": "right"}
    box = result("rectanglelabels", "box", "img", x=1, rectanglelabels=["cat"])
    stars = result("rating", "stars", "answer", rating=3)
    made = annotated(LONG, stars, relation, box, None, {"from_name": "why", "value": None})
    skipped = annotated(LONG, stars, was_cancelled=True)
    rows = read(made, skipped, results_of_the_type_relation=1, results_of_the_type_rectanglelabels=1, skipped_tasks=1)
    assert [row["score"] for row in rows] == [3]


def test_json_min_has_a_record_for_each_annotation_of_a_task() -> None:
    rows = read(*LEAST)
    assert [(row["task"], row["judgement"], row["annotator"], row["created"]) for row in rows] == [
        (1, 1, "5", "t"),
        (1, 2, "6", "t"),
        (2, 3, "5", None),
    ]
    assert [row.get("preference", row.get("score")) for row in rows] == [1.0, 0.0, 3]
    read({**LEAST[2], "tone": "kind"}, texts_of_tone=1)


@pytest.mark.parametrize("who", [{}, {"completed_by": None}, {"completed_by": {"email": None}}])
def test_judgements_by_nobody_have_no_annotator(who: dict[str, Any]) -> None:
    choice = {"from_name": "pw", "value": {"selected": "left"}}
    assert [row["annotator"] for row in read({"data": TEXTS, "annotations": [{**who, "result": [choice]}]})] == [""]


def test_a_tie_and_a_preference_go_out_by_the_same_control() -> None:
    rows = read(*(annotated(TEXTS, result("choices", "pw", "answer1", choices=[each])) for each in ("answer2", "tie")))
    (first, second) = tasks(rows)
    assert [each["annotations"][0]["result"][0]["type"] for each in (first, second)] == ["choices", "choices"]
    assert first["data"] == {"prompt": "q", "response_a": "x", "response_b": "y"}


ODD: dict[str, tuple[Any, str]] = {
    "list": ([], "no 'data'; expected a record"),
    "annotations": ({"data": TEXTS, "annotations": "x"}, "annotations is 'x'; expected a list"),
    "annotation": ({"data": TEXTS, "annotations": ["x"]}, "annotations is .'x'."),
    "result": ({"data": TEXTS, "annotations": [{"result": ["x"]}]}, "result is .'x'."),
    "value": (annotated(TEXTS, {"value": "x"}), "value is .'x'."),
    "rating": (annotated(LONG, result("rating", "stars", "answer", rating="5")), "stars is '5'; expected a number"),
    "choices": (
        annotated(LONG, result("choices", "c", "answer", choices=[1])),
        "c is .1.; expected text, or a list of texts",
    ),
    "labels": (
        annotated(LONG, result("labels", "c", "answer", start="0", labels=["x"])),
        "expected start, end and text of a mark",
    ),
    "fields": (
        annotated({"prompt": "q"}, result("rating", "stars", "answer", rating=5)),
        "fields are .'prompt'.; expected an answer",
    ),
}


@pytest.mark.parametrize("case", ODD)
def test_records_of_another_form_are_named(case: str) -> None:
    made, told = ODD[case]
    with pytest.raises(DataError, match=rf"e: record 1: .*{told}"):
        read(made)


def test_a_task_that_goes_out_does_not_tell_how_it_was_ranked() -> None:
    def shown(*order: str) -> object:
        (task,) = tasks(read(annotated(ITEMS, result("ranker", "order", "items", ranker=list(order)))))
        return task["data"]

    assert shown("llm_2", "llm_0", "llm_1") == shown("llm_0", "llm_1", "llm_2")
