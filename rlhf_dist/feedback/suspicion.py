"""Why somebody may be careless, in sentences: each is one test of what they do against chance, or against what others do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RARE = 0.001
"""Probability below which a habit is no chance."""
FEW = 20
"""Judgements below which a habit is none."""
CAREFUL = 0.75
"""Share of gold questions that somebody careful answers rightly at the least."""
CARELESS = 0.5
"""Who is surely less than this far from guessing to the median of the others is suspected."""
HASTY = 0.25
"""Of the others' median time."""


@dataclass(frozen=True)
class Conduct:
    """How somebody judges."""

    seconds: float | None = None
    """Median per judgement, breaks left out."""
    gold: tuple[int, int] = (0, 0)
    """Gold questions answered rightly, and answered."""
    left: tuple[int, int] = (0, 0)
    """Decided comparisons in which the answer on the left was chosen, and all."""
    ties: tuple[int, int] = (0, 0)
    """Comparisons without a winner, and all."""
    reliability: float | None = None
    """Estimated probability of choosing the better answer; None of who shared no comparison with others."""

    @property
    def decided(self) -> int:
        """Comparisons with a winner."""
        return self.ties[1] - self.ties[0]


def suspicions(own: Conduct, others: Sequence[Conduct]) -> list[str]:
    """Sentences about what speaks against an annotator; none: nothing does.

    Args:
        own: of the annotator.
        others: of everybody else who judged.
    """
    found = (_unreliable(own, others), _wrong(own), _one_sided(own), _undecided(own, others), _hasty(own, others))
    return [each for each in found if each]


def _unreliable(own: Conduct, others: Sequence[Conduct]) -> str:
    """Surely nearer to guessing than to the others: one-sided 95 % of a normal approximation."""
    known = [each.reliability for each in others if each.reliability is not None]
    if own.reliability is None or not known or not own.decided:
        return ""
    middle = float(np.median(known))
    spread = 1.64 * np.sqrt(own.reliability * (1 - own.reliability) / own.decided)
    if own.reliability + spread >= 0.5 + CARELESS * (middle - 0.5):
        return ""
    return f"chooses the better answer {own.reliability:.0%} of the time (others {middle:.0%}, guessing 50%)"


def _wrong(own: Conduct) -> str:
    from scipy.stats import binom

    right, answered = own.gold
    if not answered or binom.cdf(right, answered, CAREFUL) >= 0.01:
        return ""
    return f"{right} of {answered} gold questions right"


def _one_sided(own: Conduct) -> str:
    """A coin decides who is on the left, so that half of the better ones are."""
    from scipy.stats import binom

    left, decided = own.left
    if decided < FEW or 2 * binom.cdf(min(left, decided - left), decided, 0.5) >= RARE:  # of either side
        return ""
    side, share = ("left", left / decided) if 2 * left > decided else ("right", 1 - left / decided)
    return f"chooses the answer on the {side} {share:.0%} of the time"


def _undecided(own: Conduct, others: Sequence[Conduct]) -> str:
    """More ties than others by Fisher's exact test, and more often than not."""
    from scipy.stats import fisher_exact

    ties, judged = own.ties
    theirs, all_ = (sum(each.ties[side] for each in others) for side in (0, 1))
    if judged < FEW or 2 * ties <= judged:
        return ""
    if not all_:
        return f"says that answers are as good {ties / judged:.0%} of the time" if ties == judged else ""
    table = [[ties, judged - ties], [theirs, all_ - theirs]]
    if fisher_exact(table, alternative="greater").pvalue >= RARE:
        return ""
    return f"says that answers are as good {ties / judged:.0%} of the time (others {theirs / all_:.0%})"


def _hasty(own: Conduct, others: Sequence[Conduct]) -> str:
    times = [each.seconds for each in others if each.seconds is not None]
    if own.seconds is None or len(times) < 2 or own.ties[1] < FEW:
        return ""
    middle = float(np.median(times))
    if own.seconds >= HASTY * middle:
        return ""
    return f"takes {own.seconds:.1f} s each (others {middle:.1f} s)"
