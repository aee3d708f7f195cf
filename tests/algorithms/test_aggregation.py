"""Weights of answers against what their names say, in every order."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_dist.algorithms.aggregation import answer_weights

KINDS = ("fixed_length", "token_mean", "sequence_mean", "prompt_mean")
ANSWERS = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 4)), min_size=1, max_size=12)


def slow(kind: str, losses: list[list[float]], groups: list[int], longest: int) -> float:
    """The loss of answers' tokens, as its name says."""
    count = len(losses)
    if kind == "fixed_length":
        return sum(map(sum, losses)) / (count * longest)
    if kind == "token_mean":
        return sum(map(sum, losses)) / sum(map(len, losses))
    if kind == "sequence_mean":
        return sum(sum(each) / len(each) for each in losses) / count
    of_prompt = [
        [x for each, g in zip(losses, groups, strict=True) if g == group for x in each] for group in set(groups)
    ]
    return sum(sum(each) / len(each) for each in of_prompt) / len(of_prompt)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25)
@given(answers=ANSWERS, seed=st.integers(0, 1000))
def test_the_loss_is_what_its_name_says(kind: str, answers: list[tuple[int, int]], seed: int) -> None:
    lengths, groups = (torch.tensor(each) for each in zip(*answers, strict=True))
    losses = torch.randn(int(lengths.sum()), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    weights = answer_weights(kind, lengths, groups, longest=12)
    assert weights.dtype == torch.float64
    found = float((torch.repeat_interleave(weights, lengths) * losses).sum())
    split = [each.tolist() for each in losses.split(lengths.tolist())]
    assert found == pytest.approx(slow(kind, split, groups.tolist(), 12), abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25)
@given(answers=ANSWERS, seed=st.integers(0, 1000))
def test_neither_the_order_of_answers_nor_the_numbers_of_prompts_matter(
    kind: str, answers: list[tuple[int, int]], seed: int
) -> None:
    lengths, groups = (torch.tensor(each) for each in zip(*answers, strict=True))
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(seed))
    weights = answer_weights(kind, lengths, groups, longest=12)
    moved = answer_weights(kind, lengths[order], 100 - 7 * groups[order], longest=12)
    torch.testing.assert_close(moved, weights[order])


def test_by_hand() -> None:
    lengths, groups = torch.tensor([1, 3, 4]), torch.tensor([5, 5, 2])
    found = {kind: answer_weights(kind, lengths, groups, longest=10).tolist() for kind in KINDS}
    assert found["fixed_length"] == pytest.approx([1 / 30] * 3)
    assert found["token_mean"] == pytest.approx([1 / 8] * 3)
    assert found["sequence_mean"] == pytest.approx([1 / 3, 1 / 9, 1 / 12])
    assert found["prompt_mean"] == pytest.approx([1 / 8] * 3)


def test_a_name_that_is_none_is_no_prompt_mean() -> None:
    with pytest.raises(AssertionError, match="median"):
        answer_weights("median", torch.tensor([1]), torch.tensor([0]), longest=1)
