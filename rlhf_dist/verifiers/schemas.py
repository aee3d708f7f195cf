"""Answers that are JSON of a certain form."""

from __future__ import annotations

import json
from typing import Any

from rlhf_dist.verifiers.texts import block_of


def json_schema(prompt: str, answer: str, schema: Any) -> float | None:
    """Whether an answer, or its last block of JSON, is JSON that a schema admits (json-schema.org, 2020-12 unless it says).

    Args:
        prompt: not looked at.
        answer: the policy's.
        schema: a mapping or a truth value, or JSON text of one; what it refers to must be in it, since nothing is fetched.

    Raises:
        jsonschema.SchemaError: the schema is none.
        referencing.exceptions.Unresolvable: it refers to what is not in it.
    """
    if schema is None:
        return None
    from jsonschema.validators import Draft202012Validator, validator_for
    from referencing import Registry

    form = json.loads(schema) if isinstance(schema, str) else schema
    kind = validator_for(form, default=Draft202012Validator)
    kind.check_schema(form)
    try:
        said = json.loads(block_of(answer, "json"), parse_constant=_refused)
    except (ValueError, RecursionError):
        return 0.0
    return float(kind(form, registry=Registry()).is_valid(said))


def _refused(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
