"""Functions of one's own in place of a baseline, scale or surrogate, looked at before anything starts.

    def baseline(answers: AnswerBatch) -> torch.Tensor                       [answers]
    def scale(centred: torch.Tensor, answers: AnswerBatch) -> torch.Tensor   [answers]; centred: rewards less the baseline
    def surrogate(new, old, advantages, lengths) -> torch.Tensor             [tokens], see `algorithms.surrogates`
    def reward(prompt: str, answer: str) -> float                            under `reward`, in a process of its own

`AnswerBatch` are all ranks', float64: `rewards`, `lengths`, `groups` (equal for the answers to one prompt, from 0 without gaps),
`running_mean` (of earlier iterations' rewards). A baseline that depends on the answer's own reward biases the gradient. `new` and
`old` are log-probs [tokens] under the policy being trained (gradients go through it) and under the one that ratios start from;
`lengths` [answers] are the tokens of each. A surrogate returns the loss of each token, or `surrogates.Losses`, which says where
it was clipped, too.

Learner ranks import them by their path, so it must be one on every node's `PYTHONPATH`. `configs/own_choices.py` has one of each.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from rlhf_dist.algorithms.answers import AnswerBatch
from rlhf_dist.errors import ConfigError

EXAMPLE = AnswerBatch(
    rewards=torch.tensor([1.0, 0.0, 0.5, 0.5, 0.25], dtype=torch.float64),
    lengths=torch.tensor([3, 1, 2, 4, 2]),
    groups=torch.tensor([0, 0, 1, 1, 1]),
    given=torch.zeros(5, dtype=torch.float64),
    running_mean=0.5,
)
"""What functions are tried on: five answers to two prompts."""


def function_at(path: str, *, key: str) -> Callable[..., Any]:
    """The function that `package.module:function` names.

    Raises:
        ConfigError: it cannot be imported, or is none; names the key.
    """
    module, _, name = path.partition(":")
    try:
        found = getattr(import_module(module), name)
    except Exception as error:
        raise ConfigError(
            f"{key} is {path!r}: {type(error).__name__}: {error}; expected package.module:function"
        ) from error
    if not callable(found):
        raise ConfigError(f"{key} is {path!r}, which is {type(found).__name__}; expected a function")
    function: Callable[..., Any] = found
    return function


def check_own_answers(path: str, *, key: str, arguments: tuple[Any, ...]) -> None:
    """Try a baseline or scale on an example.

    Raises:
        ConfigError: it raises, or what it returns is not finite numbers [answers]; names the key.
    """
    _check(path, key, arguments, len(EXAMPLE.rewards), "answers")


def check_own_surrogate(path: str, *, key: str) -> None:
    """Try a surrogate on an example.

    Raises:
        ConfigError: it raises, has no gradient, or what it returns is not finite numbers [tokens]; names the key.
    """
    tokens = int(EXAMPLE.lengths.sum())
    new = torch.full((tokens,), -1.0, requires_grad=True)
    arguments = (new, torch.full((tokens,), -1.1), torch.linspace(-1, 1, tokens), EXAMPLE.lengths)
    found = _check(path, key, arguments, tokens, "tokens")
    if not found.requires_grad:
        raise ConfigError(
            f"{key} is {path!r}: its loss has no gradient; expected one of the new log-probs, its first argument"
        )


def _check(path: str, key: str, arguments: tuple[Any, ...], size: int, of: str) -> torch.Tensor:
    function = function_at(path, key=key)
    try:
        found = function(*arguments)
    except Exception as error:
        raise ConfigError(
            f"{key} is {path!r}: on an example of {size} {of} it raised {type(error).__name__}: {error}"
        ) from error
    loss = found[0] if isinstance(found, tuple) else found
    if not isinstance(loss, torch.Tensor) or loss.shape != (size,):
        shape = list(loss.shape) if isinstance(loss, torch.Tensor) else type(loss).__name__
        raise ConfigError(f"{key} is {path!r}: it returned {shape}; expected a tensor [{of}], here [{size}]")
    if not loss.isfinite().all():
        raise ConfigError(f"{key} is {path!r}: what it returned for an example is not finite; expected numbers")
    return loss
