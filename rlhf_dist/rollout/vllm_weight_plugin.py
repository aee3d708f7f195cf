"""The name under which vLLM finds our weight transfer.

vLLM calls `register` in each of its processes through the entry point group `vllm.general_plugins`.
"""

from __future__ import annotations

BACKEND = "arrow"


def register() -> None:
    """Make the backend known to vLLM in this process."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, "rlhf_dist.rollout.vllm_weight_engine", "ArrowEngine")
