"""Bradley and Terry's model of answers, with the reliability of each annotator.

Chen, Bennett, Collins-Thompson and Horvitz 2013, "Pairwise ranking aggregation in a crowdsourced setting", equation 4. crowd-kit
has a variant of it, whose gradient (version 1.4) belongs to other parameters than it is given to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

STRENGTH_STD = 2.0
"""Prior of an answer's strength, in logits about zero."""
RELIABILITY_LOGIT, RELIABILITY_STD = 1.0, 1.0
"""Prior of an annotator's reliability: rather right (0.73) than wrong, else the model's mirror image would fit as well."""


def crowd_bradley_terry(
    first: Sequence[Any], second: Sequence[Any], preferred_first: Sequence[bool], annotators: Sequence[str]
) -> tuple[np.ndarray[Any, Any], dict[str, float]]:
    """Strengths and reliabilities that are likeliest after the votes (maximum a posteriori, by L-BFGS).

    An annotator of reliability q prefers a with probability q sigmoid(s_a - s_b) + (1 - q) sigmoid(s_b - s_a).

    Args:
        first: one answer of each vote; anything hashable.
        second: the other.
        preferred_first: which of them was preferred.
        annotators: by whom.

    Returns:
        P(first answer is better) of each vote's pair, sigmoid(s_a - s_b), and each annotator's q.
    """
    answers = {answer: number for number, answer in enumerate(dict.fromkeys([*first, *second]))}
    people = {name: number for number, name in enumerate(dict.fromkeys(annotators))}
    a, b = (torch.tensor([answers[answer] for answer in side]) for side in (first, second))
    sign = torch.tensor([1.0 if chosen else -1.0 for chosen in preferred_first], dtype=torch.float64)
    who = torch.tensor([people[name] for name in annotators])

    strengths = torch.zeros(len(answers), dtype=torch.float64, requires_grad=True)
    logits = torch.full((len(people),), RELIABILITY_LOGIT, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([strengths, logits], max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        gap = sign * (strengths[a] - strengths[b])
        careful = F.logsigmoid(logits)[who] + F.logsigmoid(gap)
        contrary = F.logsigmoid(-logits)[who] + F.logsigmoid(-gap)
        prior = (strengths / STRENGTH_STD).square().sum() + (
            (logits - RELIABILITY_LOGIT) / RELIABILITY_STD
        ).square().sum()
        total: torch.Tensor = prior / 2 - torch.logaddexp(careful, contrary).sum()
        total.backward()
        return total

    optimizer.step(loss)
    better: np.ndarray[Any, Any] = torch.sigmoid(strengths[a] - strengths[b]).detach().numpy()
    return better, dict(zip(people, torch.sigmoid(logits).tolist(), strict=True))
