"""The name under which vLLM finds our weight transfer, and the handing over of buckets to it.

vLLM calls `register` in each of its processes through the entry point group `vllm.general_plugins`.
"""

from __future__ import annotations

import pyarrow as pa

BACKEND = "arrow"

HANDED_OVER: dict[str, pa.Table] = {}
"""Buckets that the caller mapped in this process already, by the name under which it announces them."""


def open_bucket(source: str) -> pa.Table:
    """A bucket handed over in this process, else the Arrow file of that path, mapped."""
    if source in HANDED_OVER:
        return HANDED_OVER[source]
    with pa.memory_map(source) as file:
        return pa.ipc.open_file(file).read_all()


def register() -> None:
    """Make the backend known to vLLM in this process."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, "rlhf_dist.rollout.vllm_weight_engine", "ArrowEngine")
