"""Each question that Argilla can ask, as rows of judgements."""

from collections import Counter
from typing import Any
from uuid import UUID

import pytest

from rlhf_dist.errors import DataError
from rlhf_dist.feedback.argilla import judgements, records
from tests.feedback.exports import ONE, PAIR, THREE, ranked, responses


def read(*made: Any, **told: int) -> list[dict[str, Any]]:
    left_out: Counter[str] = Counter()
    rows = judgements([(f"e: record {number}", record) for number, record in enumerate(made, start=1)], left_out)
    assert {reason.split(",")[0]: count for reason, count in left_out.items()} == {
        k.replace("_", " "): v for k, v in told.items()
    }
    return rows


def record(fields: dict[str, Any], **said: Any) -> dict[str, Any]:
    return {"fields": fields, "responses": responses(**said)}


@pytest.mark.parametrize(
    ("value", "preference"),
    [
        ("response-1", 1.0),
        ("response-2", 0.0),
        ("Response 2", 0.0),
        ("B", 0.0),
        ("left", 1.0),
        ("A is better", 1.0),
        ("tie", 0.5),
    ],
)
def test_a_label_that_names_an_answer_is_a_preference(value: str, preference: float) -> None:
    (row,) = read(record(PAIR, pick=value))
    assert (row["kind"], row["a"], row["b"], row["preference"]) == ("comparisons", "x", "y", preference)


def test_a_ranking_of_two_is_a_comparison_of_three_a_ranking_and_with_ties_its_pairs() -> None:
    two = ranked(**{"response-1": 2, "response-2": 1})
    ties = [ranked(response1=1, response3=1, response2=2)]
    rows = read(
        record(PAIR, r=two), record(THREE, r=ranked(response1=2, response2=3, response3=1)), record(THREE, r=ties[0])
    )
    assert rows[0]["preference"] == 0.0
    assert rows[1]["answers"] == ["z", "x", "y"]
    assert [(row["a"], row["b"], row["preference"]) for row in rows[2:]] == [
        ("x", "y", 1),
        ("x", "z", 0.5),
        ("y", "z", 0),
    ]
    assert [row["judgement"] for row in rows] == [1, 2, 3, 3, 3]


def test_a_best_of_several_says_nothing_of_the_others() -> None:
    rows = read(record(THREE, best="response2"))
    assert {(row["a"], row["b"], row["preference"]) for row in rows} == {("x", "y", 0.0), ("y", "z", 1.0)}


def test_several_ratings_are_criteria_in_every_record_and_a_single_one_is_the_main_question() -> None:
    rows = read(record(ONE, helpful=5, harmless=1), record(ONE, harmless=2))
    assert [(row["score"], row["criterion"]) for row in rows] == [(5, "helpful"), (1, "harmless"), (2, "harmless")]
    assert "criterion" not in read(record(ONE, helpful=5))[0]


def test_a_question_that_names_an_answer_is_about_it() -> None:
    fields = {"instruction": "q", "generation-0": "x", "generation-1": "y"}
    said = {
        "generation-0-rating": 3,
        "generation-1-rating": 1,
        "rationale_generation-1": "bad",
        "tag-generation-0": ["u", "v"],
    }
    rows = read(record(fields, **said))
    assert [(row["answer"], row.get("score"), row["comment"]) for row in rows] == [
        ("x", 3, None),
        ("y", 1, "bad"),
        ("x", None, None),
    ]
    assert rows[2]["choice"] == ["u", "v"]


def test_a_strength_beside_a_preference_is_its_margin_and_another_number_is_left_out() -> None:
    rows = read(
        record(PAIR, pick="response-1", strength=2), record(PAIR, pick="response-2", speed=2), numbers_of_speed=1
    )
    assert [row["margin"] for row in rows] == [2.0, 0.0]
    read(record(PAIR, pick=["u"], strength=2), margins_without_a_preference=1)


def test_texts_are_comments_of_what_was_said_and_alone_judgements_of_their_own() -> None:
    rows = read(record(PAIR, pick="response-1", why="so"), record(ONE, why="so", more="and so on"))
    assert [(row["kind"], row["comment"]) for row in rows] == [("comparisons", "so"), ("comments", "so\nand so on")]
    assert read(record(PAIR, why="so"), comments_on_several_answers=1) == []


def test_labels_are_told_from_texts_by_coming_again() -> None:
    rows = read(*(record(ONE, tone=tone, say=f"it is {n}") for n, tone in enumerate(["kind", "rude", "kind"] * 3)))
    assert [row["choice"] for row in rows] == ["kind", "rude", "kind"] * 3
    assert [row["comment"] for row in rows] == [f"it is {n}" for n in range(9)]


def test_spans_are_marks_where_they_are_on_an_answer() -> None:
    span = {"label": "rude", "start": 0, "end": 5}
    mark = {"answer": "a", "text": "hello", "start": 0, "end": 5, "comment": "rude"}
    assert read(record(ONE, stars=1, spans=[span]))[0]["marks"] == [mark]
    longer = {**PAIR, "response-2": "yes, hello"}
    (row,) = read(record(longer, pick="response-1", **{"spans-response-2": [span]}))
    assert row["marks"] == [{**mark, "answer": "b", "text": "yes, "}]
    read(record(longer, pick="response-1", spans=[span]), marks_of_texts_that_are_no_answers=1)
    assert read(record(ONE, spans=[span]), marks_without_a_judgement=1) == []


def test_what_people_do_not_stand_by_and_what_is_empty_is_no_judgement() -> None:
    said = [
        {"value": 3, "user_id": user, "status": status}
        for user, status in (("u", "draft"), ("w", "pending"), (None, "submitted"), ("None", None))
    ]
    rows = read(
        {
            "fields": ONE,
            "responses": {"stars": [*said, {"value": 0, "user_id": "v"}, {"value": None}, None], "why": None},
        },
        draft_responses=1,
        pending_responses=1,
    )
    assert [(row["annotator"], row["score"]) for row in rows] == [("", 3), ("", 3), ("v", 0)]


FIELDS = {
    "numbers": {"response1": "x", "response2": "y"},
    "letters": {"response_b": "y", "response_a": "x"},
    "alone": {"b": "y", "a": "x"},
    "any name": {"resposta_modelo_2": "y", "resposta_modelo_1": "x"},
    "ten": {f"answer {n}": text for n, text in ((10, "y"), (9, "x"))},
    "chosen": {"rejected": "y", "chosen": "x"},
    "chat": {"completion_1": [{"role": "assistant", "content": "x"}], "completion_2": "y"},
}


@pytest.mark.parametrize("case", FIELDS)
def test_answers_are_fields_that_differ_by_a_number_or_letter(case: str) -> None:
    first = sorted(FIELDS[case], key=lambda name: str(FIELDS[case][name]))[0]
    (row,) = read(
        record({"prompt": "q", "context": "c", **FIELDS[case]}, pick=first if case != "chat" else "completion_1")
    )
    assert (row["a"], row["b"], row["preference"]) in {("x", "y", 1.0), ("y", "x", 0.0)}


def test_one_usual_answer_goes_before_other_fields_with_numbers() -> None:
    (row,) = read(record({"prompt": "q", "source_1": "u", "source_2": "v", "response": "x"}, stars=3))
    assert row["answer"] == "x"


def test_a_conversation_that_ends_with_the_answer_is_prompt_and_answer() -> None:
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    (row,) = read(record({"chat": chat}, stars=3))
    assert (row["prompt"], row["answer"]) == (chat[:1], "yo")


ODD: dict[str, tuple[dict[str, Any], str]] = {
    "text": ({"fields": PAIR, "responses": {"q": "x"}}, "q is 'x'; expected a list of mappings"),
    "texts": ({"fields": PAIR, "responses": {"q": ["x"]}}, "q is .'x'.; expected a list of mappings"),
    "mapping": (record(PAIR, q={"x": 1}), "q is .'x': 1.; expected text or a number, or a list"),
    "infinite": (record(PAIR, q=float("inf")), "q is inf; expected text or a number"),
    "rank": (record(PAIR, q=[{"value": "response-1", "rank": None}]), "expected a name, and a rank that is a number"),
    "span": (record(ONE, q=[{"start": "0", "end": 1}]), "expected a span with start, end and label"),
    "answers": (
        record({"prompt": "q", "u_1": "x", "u_2": "x", "v_1": "y", "v_2": "x"}, q=1),
        "under one name with numbers, found several such: u_1, v_1",
    ),
    "no answer": (record({"prompt": "q"}, q=1), "fields are .'prompt'.; expected an answer. Known names are"),
    "messages": (record({"prompt": [{"role": 1}], "answer": "x"}, q=1), "prompt has .'role': 1.; expected messages"),
    "columns": ({**PAIR, "q.responses": 3}, "q.responses is 3; expected a list"),
}


@pytest.mark.parametrize("case", ODD)
def test_records_of_another_form_are_named(case: str) -> None:
    made, told = ODD[case]
    with pytest.raises(DataError, match=rf"e: record 1: .*{told}"):
        read(made)


def test_skips_and_gold_questions_are_no_records() -> None:
    (row,) = read(record(ONE, stars=3))
    assert records([{**row, "kind": "skips"}, {**row, "gold": 4}]) == []


def test_people_of_argilla_are_uuids_and_who_has_another_name_keeps_one_of_their_own() -> None:
    (row,) = read(record(ONE, stars=3))
    own = "00000000-0000-4000-8000-000000000001"
    made = records([{**row, "annotator": name, "judgement": n} for n, name in enumerate([own, "ann", "bob", "ann"])])
    users = [each["user_id"] for each in made[0]["responses"]["score"]]
    assert users[0] == own
    assert users[1] == users[3] != users[2]
    assert {str(UUID(user)) for user in users} == {*users}
