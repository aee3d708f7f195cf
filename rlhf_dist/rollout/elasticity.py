"""How many rollout workers are wanted, from the measured balance of generating and training."""

from __future__ import annotations

from rlhf_dist.cluster.fleet import Fleet

GROW_ABOVE = 0.3
"""Another worker is wanted while the learner waits for samples for more than this share of an iteration."""
SHRINK_BELOW = 0.1
"""A worker is let go once the learner would wait for less than this share without it."""


def balance(fleet: Fleet, *, waited_s: float, step_s: float) -> None:
    """Follow the balance of an iteration, in which the learner waited for so many of its seconds.

    With n workers it waited w seconds of an iteration of s seconds. Generation takes n/(n-1) times as long with one worker
    less, so it would then wait w' = w n/(n-1) of s - w + w' seconds.
    """
    workers, wanted = len(fleet.ready), fleet.wanted
    if waited_s > GROW_ABOVE * step_s:
        wanted = min(fleet.size.most, workers + 1)
    elif workers > 1:
        without_one = waited_s * workers / (workers - 1)
        if without_one < SHRINK_BELOW * (step_s - waited_s + without_one):
            wanted = max(fleet.size.fewest, workers - 1)
    fleet.resize(wanted)
