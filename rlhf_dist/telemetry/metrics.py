"""What a batch of experience says by itself. Names are verl's, so that its users read them at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def batch_metrics(batch: pa.RecordBatch) -> dict[str, float]:
    """Lengths, scores and end reasons of a scored batch (`store.schema.EXPERIENCE`)."""
    responses = pc.list_value_length(batch.column("response_tokens")).to_numpy()
    prompts = pc.list_value_length(batch.column("prompt_tokens")).to_numpy()
    scores = batch.column("score").to_numpy()
    staleness = batch.column("iteration").to_numpy() - batch.column("policy_version").to_numpy()
    cut = np.asarray(batch.column("finish_reason").to_pylist()) == "length"
    return {
        **_spread("response_length", responses),
        "response_length/clip_ratio": float(cut.mean()),
        **_spread("prompt_length", prompts),
        **_spread("critic/score", scores),
        "critic/score/std": float(scores.std()),
        **_parts(batch),
        **_spread("training/off_policy/trajectory_staleness", staleness),
        "perf/num_samples": float(batch.num_rows),
        "perf/total_num_tokens": float(responses.sum() + prompts.sum()),
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
