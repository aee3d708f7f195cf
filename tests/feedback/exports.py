"""Records as other tools export them, of every question that they can ask about texts."""

from typing import Any

PAIR = {"prompt": "q", "response-1": "x", "response-2": "y"}
THREE = {"prompt": [{"role": "user", "content": "hi"}], "response1": "x", "response2": "y", "response3": "z"}
ONE = {"instruction": "q", "response": "hello there"}


def responses(**said: Any) -> dict[str, Any]:
    """Of one annotator, by question."""
    return {question: [{"value": value, "user_id": "u", "status": "submitted"}] for question, value in said.items()}


def ranked(**ranks: int) -> list[dict[str, Any]]:
    return [{"value": name, "rank": rank} for name, rank in ranks.items()]


ARGILLA: list[dict[str, Any]] = [
    {
        "id": "1",
        "fields": PAIR,
        "metadata": {"x": 1},
        "vectors": {},
        "suggestions": {},
        "responses": responses(pick="response-2"),
    },
    {"fields": THREE, "responses": responses(best=ranked(response1=3, response2=2, response3=1))},
    {"fields": ONE, "responses": responses(helpful=5, harmless=1, why="kind", topics=["a", "b"])},
    {"fields": ONE, "responses": responses(helpful=2, spans=[{"label": "rude", "start": 0, "end": 5}])},
    {"fields": ONE, "responses": {"helpful": None, "harmless": []}},
]
FLAT: list[dict[str, Any]] = [
    {
        "id": "1",
        "status": "completed",
        "_server_id": "s",
        **PAIR,
        "metadata.x": 1,
        "pick.responses": ["response-1", "response-2"],
        "pick.responses.users": ["u", "v"],
        "pick.responses.status": ["submitted", "submitted"],
        "pick.suggestion": "response-2",
        "pick.suggestion.agent": None,
    }
]


def result(kind: str, question: str, to: str, **value: Any) -> dict[str, Any]:
    return {
        "id": f"{question}-{to}",
        "type": kind,
        "from_name": question,
        "to_name": to,
        "origin": "manual",
        "value": value,
    }


def annotated(data: dict[str, Any], *results: Any, who: Any = 5, **more: Any) -> dict[str, Any]:
    annotation = {
        "id": 7,
        "completed_by": who,
        "result": list(results),
        "was_cancelled": False,
        "lead_time": 4.5,
        **more,
    }
    annotation = {"created_at": "2026-03-09T22:16:08.728353Z", **annotation}
    return {"id": 1, "data": data, "annotations": [annotation], "predictions": [{"result": []}], "drafts": []}


TEXTS = {"prompt": "q", "answer1": "x", "answer2": "y"}
LONG = {"dialogue": [{"author": "Human", "text": "hi"}], "answer": "hello there"}
ITEMS = {"prompt": "q", "items": [{"id": f"llm_{n}", "title": "A model", "body": text} for n, text in enumerate("xyz")]}
LABEL_STUDIO: list[dict[str, Any]] = [
    annotated(
        TEXTS,
        result("pairwise", "pw", "answer1,answer2", selected="right"),
        result("textarea", "why", "answer1", text=["a", "b"]),
    ),
    annotated(
        TEXTS, result("choices", "pw", "answer1", choices=["answer1"]), result("number", "margin", "prompt", number=2)
    ),
    annotated(
        ITEMS, result("ranker", "order", "items", ranker={"order": ["llm_2", "llm_0", "llm_1"]}), who={"email": "a@b.c"}
    ),
    annotated(
        LONG,
        result("rating", "stars", "answer", rating=4),
        result("taxonomy", "topic", "answer", taxonomy=[["A", "B"], ["C"]]),
    ),
    annotated(
        LONG,
        result("textarea", "say", "answer", text="too long"),
        result("labels", "bad", "answer", start=0, end=5, text="hello", labels=["rude"]),
    ),
]
LEAST: list[dict[str, Any]] = [
    {
        "id": 4,
        **TEXTS,
        "pw": [{"selected": "left"}],
        "annotator": 5,
        "annotation_id": 7,
        "created_at": "t",
        "lead_time": 1.5,
    },
    {"id": 4, **TEXTS, "pw": "answer2", "annotator": 6, "annotation_id": 8, "created_at": "t", "lead_time": 1.5},
    {"id": 5, "prompt": "q", "answer": "x", "stars": [{"rating": 3}], "annotator": 5, "annotation_id": 9},
]
