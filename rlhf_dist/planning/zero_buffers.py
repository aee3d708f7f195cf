"""Sizes of ZeRO's buffers: the learner sets them, the plan counts them. DeepSpeed's own take 2 to 4 GB whatever the model."""

from __future__ import annotations

LEAST_BUCKET = 2**24
"""Elements that are reduced together at least, so that small models do not wait for many small messages."""
PERSISTENT = 100_000
"""Elements of parameters that ZeRO-3 leaves whole, at least: norms and biases."""
LAYER = 12
"""Parameters of a decoder's layer over its hidden size squared: 4 of attention, 8 of its MLP."""


def zero_buffers(hidden: int, stage: int) -> dict[str, int]:
    """Settings of DeepSpeed's `zero_optimization`, in elements.

    Buckets are of the rule that Hugging Face's `auto` is, hidden size squared, or a projection; ZeRO-3 holds two layers at a
    time, the one that computes and the one that is fetched, also of models so small that a bucket has many of them.

    Args:
        hidden: the model's hidden size.
        stage: of ZeRO.
    """
    bucket = max(hidden**2, LEAST_BUCKET)
    if stage < 3:
        return {"reduce_bucket_size": bucket}
    live = 2 * LAYER * hidden**2
    return {
        "reduce_bucket_size": bucket,
        "stage3_prefetch_bucket_size": int(0.9 * bucket),
        "stage3_param_persistence_threshold": max(10 * hidden, PERSISTENT),
        "stage3_max_live_parameters": live,
        "stage3_max_reuse_distance": live,
    }


def zero_buffer_bytes(hidden: int, stage: int, parameters: int, *, width: int) -> float:
    """What these buffers take on a rank beside the states that ZeRO divides: gradients reduced, layers gathered.

    Args:
        hidden: the model's hidden size.
        stage: of ZeRO.
        parameters: of the model, more than which no buffer is filled with.
        width: bytes of a parameter.
    """
    if stage == 0:
        return 0.0
    sizes = zero_buffers(hidden, stage)
    reduced = 4.0 * min(sizes["reduce_bucket_size"], parameters)  # gradients travel in fp32
    return reduced + (gathered_bytes(hidden, parameters, width=width) if stage == 3 else 0)


def gathered_bytes(hidden: int, parameters: int, *, width: int) -> float:
    """What ZeRO-3 has whole on a rank at once of a model's layers; arguments as for `zero_buffer_bytes`."""
    return float(width * min(zero_buffers(hidden, 3)["stage3_max_live_parameters"], parameters))
