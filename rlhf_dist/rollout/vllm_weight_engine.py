"""vLLM's weight transfer backend `arrow`: tensors from shared memory straight into the running engine.

vLLM imports this module by name when an engine asks for the backend, so it may import vLLM at its top.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from rlhf_dist.errors import WeightError
from rlhf_dist.rollout.places import MappedTensor, opened
from rlhf_dist.store.held import HeldTensor, open_held
from rlhf_dist.store.lent import Lent, borrow


@dataclass
class ArrowInit(WeightTransferInitInfo):
    """Nothing to agree on beforehand."""


@dataclass
class ArrowUpdate(WeightTransferUpdateInfo):
    """What of one version arrived, checked by who sent it: tensors of this process, or where others lie; or who has it."""

    tensors: list[tuple[str, torch.Tensor]] = field(default_factory=list)
    places: list[MappedTensor] = field(default_factory=list)
    held: list[HeldTensor] = field(default_factory=list)
    lent: list[Lent] = field(default_factory=list)
    partial: bool = False
    """Whether some layers stay as they are."""


class ArrowEngine(WeightTransferEngine[ArrowInit, ArrowUpdate]):
    """Loads versions as a whole, or raises and leaves the engine to be replaced."""

    init_info_cls = ArrowInit
    update_info_cls = ArrowUpdate
    _expected: frozenset[str] = frozenset()
    """Names that a complete version must have."""
    _partial: bool = False
    """Whether the version being received leaves layers as they are."""
    _arrived: frozenset[str] = frozenset()
    """Names in the engine of what came with it."""

    def init_transfer_engine(self, init_info: ArrowInit) -> None:
        """Nothing to connect: every version brings its own sources."""

    def start_weight_update(self) -> None:
        """Let vLLM collect the new weights layer by layer."""
        # During the reload tied weights look like two; before it, what kernels made of others looks like weights.
        before = {name for name, _ in self.model.named_parameters()}
        initialize_layerwise_reload(self.model)
        self._expected = frozenset(name for name, _ in self.model.named_parameters() if name in before)

    def receive_weights(self, update_info: ArrowUpdate) -> None:
        """Load every tensor; of one that is split over processes, vLLM's loaders copy this one's part, and nothing else is read.

        Raises:
            WeightError: a weight of the engine did not come, or is not held on this process's card.
        """
        model: Any = self.model
        arrived = chain(
            update_info.tensors, opened(update_info.places), open_held(update_info.held), borrow(update_info.lent)
        )
        self._arrived = frozenset(model.load_weights(arrived))
        self._partial = update_info.partial
        layers = {_layer(name) for name in self._arrived}
        missing = {name for name in self._expected - self._arrived if not self._partial or _layer(name) in layers}
        if missing:
            raise WeightError(f"the new version lacks {len(missing)} of the engine's weights, e.g. {min(missing)}")

    def finish_weight_update(self) -> None:
        """Let vLLM put the new weights where its kernels read them."""
        with _untouched_layers_unsaid() if self._partial else nullcontext():
            finalize_layerwise_reload(self.model, self.model_config)
        self._repack_tied_head()
        self._repack_experts()

    def shutdown(self) -> None:
        """Nothing is held between versions."""

    def _repack_tied_head(self) -> None:
        """Process a head that shares the embedding's weight, which no name in a version announces.

        vLLM's reload skips such a head, and on a CPU the kernels' packed copy of it would keep the old weights.
        """
        model: Any = self.model
        if getattr(self.model_config.hf_text_config, "tie_word_embeddings", False) and hasattr(model, "lm_head"):
            model.lm_head.quant_method.process_weights_after_loading(model.lm_head)

    def _repack_experts(self) -> None:
        """Let kernels that pack a layer's experts do so with those that came, and not again with what is packed already."""
        for name, layer in self.model.named_modules():
            if not any(each.startswith(f"{name}.") for each in self._arrived):
                continue
            kernel = getattr(getattr(layer, "quant_method", None), "moe_kernel", None)
            if process := getattr(getattr(kernel, "fused_experts", None), "process_weights_after_loading", None):
                process(layer)


def _layer(name: str) -> str:
    """The layer of a weight, which vLLM reloads whole or leaves as it is."""
    return name.rpartition(".")[0]


@contextmanager
def _untouched_layers_unsaid() -> Iterator[None]:
    """Without vLLM's warning of each layer that nothing came for."""
    told = logging.getLogger("vllm.model_executor.model_loader.reload.layerwise")
    level = told.level
    told.setLevel(logging.ERROR)
    try:
        yield
    finally:
        told.setLevel(level)
