"""How the losses of tokens become one loss: the weight of each token, which decides how length weighs.

Weights are of the whole mini-batch, of all ranks and micro-batches, from counts before any mask: a token that is masked has no
loss, and stays in the denominator, else those that are kept would weigh more for it.
"""

from __future__ import annotations

import torch

from rlhf_dist.algorithms.answers import group_sums


def answer_weights(kind: str, lengths: torch.Tensor, groups: torch.Tensor, *, longest: int) -> torch.Tensor:
    """Weight of each token of an answer, float64 [answers]; the loss is sum over answers of weight times sum over tokens.

    fixed_length   1 / (answers longest)          a constant multiple of the policy gradient (arXiv:2503.20783, section 3.2)
    token_mean     1 / tokens                     of all answers (arXiv:2503.14476, section 3.3)
    sequence_mean  1 / (answers T_i)              T_i tokens of the answer itself (arXiv:2402.03300, equation 3)
    prompt_mean    1 / (prompts tokens_g)         tokens of all answers to the prompt

    Args:
        kind: one of these.
        lengths: int64 [answers] of the whole mini-batch, sampled tokens of each.
        groups: int64 [answers], equal for the answers to one prompt, in any numbering.
        longest: most tokens that an answer may have.
    """
    sizes = lengths.double()
    if kind == "fixed_length":
        return torch.full_like(sizes, 1.0 / (len(sizes) * longest))
    if kind == "token_mean":
        return torch.full_like(sizes, 1.0 / float(sizes.sum()))
    if kind == "sequence_mean":
        return 1.0 / (len(sizes) * sizes)
    assert kind == "prompt_mean", kind
    _, member = torch.unique(groups, return_inverse=True)
    tokens = group_sums(sizes, member)
    return 1.0 / (len(tokens) * tokens[member])
