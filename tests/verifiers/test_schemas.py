"""Answers that are JSON of a form."""

import json

import jsonschema
import pytest
import referencing.exceptions
from hypothesis import given
from hypothesis import strategies as st

from rlhf_dist.verifiers import json_schema

SCHEMA = {"type": "object", "required": ["name"], "properties": {"age": {"type": "integer", "minimum": 0}}}


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ('{"name": "Ann", "age": 3}', 1.0),
        ('Here:\n```json\n{"name": "Ann"}\n```', 1.0),
        ('{"age": 3}', 0.0),
        ('{"name": "Ann", "age": -1}', 0.0),
        ('{"name": "Ann", "age": NaN}', 0.0),
        ('{"name": "Ann"} and more', 0.0),
        ("[" * 100_000, 0.0),
        ("", 0.0),
    ],
)
def test_an_answer_is_right_if_the_schema_admits_it(answer: str, score: float) -> None:
    assert json_schema("", answer, SCHEMA) == score
    assert json_schema("", answer, json.dumps(SCHEMA)) == score


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5))
def test_a_schema_of_one_value_admits_just_that(value: object) -> None:
    said = json.dumps(value)
    assert json_schema("", said, {"const": value}) == 1.0
    assert json_schema("", said, {"not": {"const": value}}) == 0.0


def test_what_is_no_schema_or_lies_elsewhere_is_an_error() -> None:
    assert json_schema("", "{}", None) is None
    with pytest.raises(jsonschema.SchemaError):
        json_schema("", "{}", {"type": "thing"})
    with pytest.raises(referencing.exceptions.Unresolvable):
        json_schema("", "{}", {"$ref": "http://127.0.0.1:1/schema.json"})
