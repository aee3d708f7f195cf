"""Rewards that can be checked: functions of (prompt, answer) and columns of the prompt's row, each 1 for right and 0 for not.

Name them as any function: `reward: [{kind: function, name: right, path: rlhf_dist.verifiers:numeric}]`. The column that an answer
is compared with is `target`; `prompts.columns: {target: ground_truth}` says where a file has it under another name. Where a row
has no such value, they say None: they have no score for such an answer.
"""

from rlhf_dist.verifiers.code import passes_tests
from rlhf_dist.verifiers.numbers import numeric
from rlhf_dist.verifiers.schemas import json_schema
from rlhf_dist.verifiers.texts import exact_match, matches

__all__ = ["exact_match", "json_schema", "matches", "numeric", "passes_tests"]
