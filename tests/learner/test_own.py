"""Functions of one's own: what is refused, and with which sentence."""

from typing import Any

import pytest
import torch

from rlhf_dist.algorithms.answers import AnswerBatch
from rlhf_dist.config import Algorithm
from rlhf_dist.errors import ConfigError
from rlhf_dist.learner.objective import check_own
from rlhf_dist.learner.own import EXAMPLE, check_own_answers, check_own_surrogate, function_at


def zeros(answers: AnswerBatch) -> torch.Tensor:
    return torch.zeros_like(answers.rewards)


def halves(centred: torch.Tensor, answers: AnswerBatch) -> torch.Tensor:
    return centred / 2


def raises(*_: Any) -> torch.Tensor:
    raise ValueError("no such luck")


def of_groups(answers: AnswerBatch) -> torch.Tensor:
    return torch.zeros(len(answers.counts))


def number(*_: Any) -> float:
    return 1.0


def nothing_finite(answers: AnswerBatch) -> torch.Tensor:
    return answers.rewards / 0.0


def surrogate(new: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    return advantages * (old - new) / lengths.sum()


def surrogate_with_clips(
    new: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, lengths: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return surrogate(new, old, advantages, lengths), new > old


def held_fixed(new: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    return surrogate(new.detach(), old, advantages, lengths)


def summed(new: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    return surrogate(new, old, advantages, lengths).sum()


def infinite(new: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    return new / 0.0


NOT_A_FUNCTION = 3


def path(name: str) -> str:
    return f"{__name__}:{name}"


def test_a_path_names_its_function() -> None:
    assert function_at(path("zeros"), key="algorithm.baseline") is zeros


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("nowhere.to_be:found", "ModuleNotFoundError: No module named 'nowhere'; expected package.module:function"),
        (path("missing"), "AttributeError: .*missing.*; expected package.module:function"),
        (path("NOT_A_FUNCTION"), "which is int; expected a function"),
    ],
)
def test_what_is_not_there_or_no_function_is_refused_with_its_key(where: str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"^algorithm\.scale is '{where}'[:,] {said}"):
        function_at(where, key="algorithm.scale")


def test_baselines_and_scales_that_hold_what_they_promise_pass() -> None:
    check_own_answers(path("zeros"), key="algorithm.baseline", arguments=(EXAMPLE,))
    check_own_answers(path("halves"), key="algorithm.scale", arguments=(EXAMPLE.rewards, EXAMPLE))
    check_own_surrogate(path("surrogate"), key="algorithm.surrogate")
    check_own_surrogate(path("surrogate_with_clips"), key="algorithm.surrogate")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("raises", r"on an example of 5 answers it raised ValueError: no such luck"),
        ("halves", r"on an example of 5 answers it raised TypeError: .*answers"),
        ("of_groups", r"it returned \[2\]; expected a tensor \[answers\], here \[5\]"),
        ("number", r"it returned float; expected a tensor \[answers\], here \[5\]"),
        ("nothing_finite", "what it returned for an example is not finite; expected numbers"),
    ],
)
def test_a_baseline_that_does_not_is_refused(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"^algorithm\.baseline is '{path(name)}': {said}"):
        check_own_answers(path(name), key="algorithm.baseline", arguments=(EXAMPLE,))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("raises", "on an example of 12 tokens it raised ValueError: no such luck"),
        ("summed", r"it returned \[\]; expected a tensor \[tokens\], here \[12\]"),
        ("held_fixed", "its loss has no gradient; expected one of the new log-probs, its first argument"),
        ("infinite", "what it returned for an example is not finite; expected numbers"),
    ],
)
def test_a_surrogate_that_does_not_is_refused(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"^algorithm\.surrogate is '{path(name)}': {said}"):
        check_own_surrogate(path(name), key="algorithm.surrogate")


def sees(new: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """The example has advantages of both signs, ratios above 1, and answers of several lengths."""
    assert new.shape == old.shape == advantages.shape == (int(lengths.sum()),)
    assert not old.requires_grad
    torch.testing.assert_close((new - old).detach(), torch.full_like(old, 0.1))
    assert float(advantages.min()) == -1
    assert float(advantages.max()) == 1
    assert (new < 0).all()
    return -advantages * new


def test_the_example_is_one() -> None:
    check_own_surrogate(path("sees"), key="algorithm.surrogate")
    assert EXAMPLE.counts.tolist() == [2, 3]
    assert EXAMPLE.rewards.dtype == EXAMPLE.given.dtype == torch.float64
    assert EXAMPLE.running_mean == 0.5
    assert len(set(EXAMPLE.lengths.tolist())) > 1
    assert float(EXAMPLE.rewards[:2].std()) > float(EXAMPLE.rewards[2:].std()) > 0


@pytest.mark.parametrize("key", ["baseline", "scale", "surrogate"])
def test_before_a_run_its_own_functions_are_tried(key: str) -> None:
    base = {"baseline": "leave_one_out", "whiten_advantages": False}
    check_own(Algorithm(**base))
    with pytest.raises(ConfigError, match=rf"^algorithm\.{key} is .*no such luck"):
        check_own(Algorithm(**{**base, key: path("raises")}))
