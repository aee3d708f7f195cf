"""Rewards that are rules: Python functions by import path."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from rlhf_dist.config import FunctionReward
from rlhf_dist.errors import ConfigError, RewardError
from rlhf_dist.scoring.answers import Answers

Rule = Callable[[str, str], float]
"""Score of (prompt, answer); higher is better."""


def load_function(path: str, *, key: str) -> Rule:
    """Import `package.module:function`.

    Args:
        path: what to import.
        key: the setting that names it, for the message.

    Raises:
        ConfigError: there is no such module or function.
    """
    module, _, name = path.partition(":")
    try:
        rule: Rule = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{key} is {path!r}: {error}; expected package.module:function") from error
    return rule


def load_gold_judge(path: str | None) -> Rule | None:
    """The rule that judges and never trains, if there is one.

    Raises:
        ConfigError: there is no such module or function.
    """
    return None if path is None else load_function(path, key="gold_judge")


class RuleReward:
    """A `Component` around a function."""

    def __init__(self, settings: FunctionReward) -> None:
        """Import the function."""
        self.name, self._path = settings.name, settings.path
        self._rule = load_function(settings.path, key=f"reward {settings.name}")

    def score(self, answers: Answers) -> dict[str, list[float]]:
        """What the function says of each answer.

        Raises:
            RewardError: the function raised; says on which prompt and answer.
        """
        return {self.name: [self._of(prompt, answer) for prompt, answer in answers.texts]}

    def _of(self, prompt: str, answer: str) -> float:
        try:
            return float(self._rule(prompt, answer))
        except Exception as error:
            raise RewardError(
                f"reward {self.name}: {self._path} raised {type(error).__name__}: {error}, on prompt {prompt!r} and answer "
                f"{answer!r}"
            ) from error
