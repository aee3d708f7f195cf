"""When to end a run that pays for reward with what people do not want: too much KL, odd lengths, a falling gold score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlhf_dist.config import GOLD, StopOn

GOLD_MEAN = f"reward/{GOLD}/mean"


def left_band(bands: StopOn, metrics: Mapping[str, float], gold: Sequence[float]) -> str | None:
    """Which band an iteration left, as a sentence; None if it is within all of them.

    Args:
        bands: the bounds.
        metrics: of the iteration.
        gold: mean gold score of every iteration so far.
    """
    checks = (
        ("objective/kl", "above", bands.kl_above, "kl_above"),
        ("response_length/mean", "below", bands.length_below, "length_below"),
        ("response_length/mean", "above", bands.length_above, "length_above"),
    )
    for metric, side, bound, key in checks:
        if bound is not None and (metrics[metric] > bound if side == "above" else metrics[metric] < bound):
            return f"{metric} is {metrics[metric]:.3g}, {side} ppo.stop_on.{key} = {bound:g}"
    if bands.gold_drop is None or len(gold) < bands.patience:
        return None
    means = [sum(gold[end - bands.patience : end]) / bands.patience for end in range(bands.patience, len(gold) + 1)]
    fallen = max(means) - means[-1]
    if fallen > bands.gold_drop:
        return (
            f"the gold score's mean over {bands.patience} iterations fell by {fallen:.3g} from its best, more than "
            f"ppo.stop_on.gold_drop = {bands.gold_drop:g}"
        )
    return None
