"""vLLM's weight transfer backend `arrow`: buckets of tensors from shared memory straight into the running engine.

vLLM calls `register` in each of its processes through the entry point group `vllm.general_plugins`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from rlhf_dist.errors import WeightError
from rlhf_dist.store.weights import decode_bucket

if TYPE_CHECKING:
    import torch

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
    from vllm.distributed.weight_transfer.base import (
        WeightTransferEngine,
        WeightTransferInitInfo,
        WeightTransferUpdateInfo,
    )
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if BACKEND in WeightTransferEngineFactory._registry:
        return

    @dataclass
    class ArrowInit(WeightTransferInitInfo):
        """Nothing to agree on beforehand."""

    @dataclass
    class ArrowUpdate(WeightTransferUpdateInfo):
        """Where the buckets of one version are."""

        sources: list[str] = field(default_factory=list)

    class ArrowEngine(WeightTransferEngine[ArrowInit, ArrowUpdate]):
        """Loads whole versions, or raises and leaves the engine to be replaced."""

        init_info_cls = ArrowInit
        update_info_cls = ArrowUpdate

        def init_transfer_engine(self, init_info: ArrowInit) -> None:
            """Nothing to connect: every version brings its own sources."""

        def start_weight_update(self) -> None:
            from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

            # Asked before the reload begins: during it, tied weights look like two.
            self._expected = {name for name, _ in self.model.named_parameters()}
            initialize_layerwise_reload(self.model)

        def receive_weights(self, update_info: ArrowUpdate) -> None:
            model: Any = self.model
            loaded = model.load_weights(self._tensors(update_info.sources))
            missing = self._expected - set(loaded)
            if missing:
                raise WeightError(f"the new version lacks {len(missing)} of the engine's weights, e.g. {min(missing)}")

        def finish_weight_update(self) -> None:
            from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

            finalize_layerwise_reload(self.model, self.model_config)
            self._repack_tied_head()

        def _repack_tied_head(self) -> None:
            """Process a head that shares the embedding's weight, which no name in a version announces.

            vLLM's reload skips such a head, and on a CPU the kernels' packed copy of it would keep the old weights.
            """
            model: Any = self.model
            if getattr(self.model_config.hf_text_config, "tie_word_embeddings", False) and hasattr(model, "lm_head"):
                model.lm_head.quant_method.process_weights_after_loading(model.lm_head)

        def shutdown(self) -> None:
            """Nothing is held between versions."""

        def _tensors(self, sources: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
            for source in sources:
                yield from decode_bucket(open_bucket(source))

    WeightTransferEngineFactory.register_engine(BACKEND, ArrowEngine)
