"""What a batch of experience says by itself. Names are verl's, so that its users read them at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from rlhf_dist.errors import NumbersError
from rlhf_dist.store.row import extents_of


def batch_metrics(batch: pa.RecordBatch) -> dict[str, float]:
    """Lengths, scores and end reasons of a scored batch (`store.schema.EXPERIENCE`)."""
    extents = extents_of(batch)
    scores = batch.column("score").to_numpy()
    staleness = batch.column("iteration").to_numpy() - extents.oldest
    cut = np.asarray(batch.column("finish_reason").to_pylist()) == "length"
    return {
        **_spread("response_length", extents.sampled),
        "response_length/clip_ratio": float(cut.mean()),
        **_spread("prompt_length", extents.prompt),
        **_spread("critic/score", scores),
        "critic/score/std": float(scores.std()),
        **_parts(batch),
        **_spread("training/off_policy/trajectory_staleness", staleness),
        "perf/num_samples": float(batch.num_rows),
        "perf/total_num_tokens": float(extents.whole.sum()),
    }


def _parts(batch: pa.RecordBatch) -> dict[str, float]:
    """Mean of each reward's own score, of an ensemble's disagreement, and of each rule that was broken."""
    column = batch.column("score_parts")
    names, values = column.keys.to_pylist(), column.items.to_numpy()
    found: dict[str, list[float]] = {}
    for name, value in zip(names, values, strict=True):
        found.setdefault(name, []).append(float(value))
    return {f"reward/{name}/mean": float(np.mean(each)) for name, each in found.items()}


def _spread(name: str, values: np.ndarray[Any, Any]) -> dict[str, float]:
    return {
        f"{name}/mean": float(values.mean()),
        f"{name}/max": float(values.max()),
        f"{name}/min": float(values.min()),
    }


def iteration_metrics(
    stats: Mapping[str, float], batch: Mapping[str, float], facts: Mapping[str, float], times: Mapping[str, float]
) -> dict[str, float]:
    """Everything that one iteration says.

    Args:
        stats: of the learner's update.
        batch: `batch_metrics`.
        facts: of workers, weights and coefficients.
        times: seconds of each phase of the controller (`Timer.metrics`); `timing_s/experience` is told apart here.

    Raises:
        NumbersError: one of them is not finite; names it.
    """
    gathering = times["timing_s/experience"]
    found = {
        **stats,
        **batch,
        **facts,
        "critic/rewards/mean": stats["objective/rlhf_reward"],
        # What scoring added after the last sample was there: the part that did not overlap with generation.
        "timing_s/score_wait": max(0.0, gathering - facts["timing_s/gen"] - facts["timing_s/pull_weights"]),
        **{name: seconds for name, seconds in times.items() if name != "timing_s/experience"},
        "perf/throughput": batch["perf/total_num_tokens"] / times["timing_s/step"],
        "perf/samples_per_second": batch["perf/num_samples"] / times["timing_s/step"],
    }
    if odd := [name for name, value in found.items() if not math.isfinite(value)]:
        told = ", ".join(f"{name} is {found[name]}" for name in odd[:3])
        raise NumbersError(f"metrics of the iteration: {told}, {len(odd)} in all not finite; expected numbers")
    return found
