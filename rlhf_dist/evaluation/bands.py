"""When a run has gone too far: an update that explodes, too much KL, odd lengths, a falling gold score; and what happens then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlhf_dist.config import GOLD, StopOn

GOLD_MEAN = f"reward/{GOLD}/mean"
THIS, LAST_AND_THIS = 1, 2


@dataclass(frozen=True)
class Left:
    """A band that an iteration left, and what is to be done."""

    reason: str
    """A sentence."""
    undo: int
    """Updates to go back: 1, this iteration's; 2, that before it too, whose policy made this batch; 0: none."""
    stops: bool
    """The run ends; else it goes on with the next prompts."""


def left_band(
    bands: StopOn, metrics: Mapping[str, float], gold: Sequence[float], *, rolled_back: int = 0
) -> Left | None:
    """Which band an iteration left; None if it is within all of them.

    Args:
        bands: the bounds, and what happens then.
        metrics: of the iteration.
        gold: mean gold score of every iteration so far.
        rolled_back: roll-backs in a row up to now.
    """
    checks = (
        ("actor/ratio_max", "above", bands.ratio_above, "ratio_above", THIS),
        ("actor/ppo_kl", "above", bands.policy_kl_above, "policy_kl_above", THIS),
        ("objective/kl", "above", bands.kl_above, "kl_above", LAST_AND_THIS),
        ("response_length/mean", "below", bands.length_below, "length_below", LAST_AND_THIS),
        ("response_length/mean", "above", bands.length_above, "length_above", LAST_AND_THIS),
    )
    for metric, side, bound, key, updates in checks:
        value = metrics.get(metric)
        if bound is None or value is None:  # nothing is told of an update all of whose steps were left out
            continue
        if value > bound if side == "above" else value < bound:
            return _left(bands, f"{metric} is {value:.3g}, {side} rl.stop_on.{key} = {bound:g}", updates, rolled_back)
    fallen = _fallen(bands.patience, gold)
    if bands.gold_drop is not None and fallen > bands.gold_drop:
        reason = (
            f"the gold score's mean over {bands.patience} iterations fell by {fallen:.3g} from its best, more than "
            f"rl.stop_on.gold_drop = {bands.gold_drop:g}"
        )
        return _left(bands, reason, LAST_AND_THIS, rolled_back)
    return None


def _left(bands: StopOn, reason: str, updates: int, rolled_back: int) -> Left:
    if bands.then == "stop":
        return Left(reason, 0, stops=True)
    if rolled_back >= bands.roll_backs:
        told = f"{reason}, after {rolled_back} roll-backs in a row (rl.stop_on.roll_backs)"
        return Left(told, updates, stops=True)
    return Left(reason, updates, stops=False)


def _fallen(patience: int, gold: Sequence[float]) -> float:
    """How far the gold score's mean over `patience` iterations is below its best."""
    if len(gold) < patience:
        return 0.0
    means = [sum(gold[end - patience : end]) / patience for end in range(patience, len(gold) + 1)]
    return max(means) - means[-1]
