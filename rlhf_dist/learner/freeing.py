"""Giving a DeepSpeed engine's memory back while its process goes on, with another model."""

from __future__ import annotations

import gc
from collections.abc import MutableMapping
from typing import Any


def unhook(engine: Any) -> None:
    """Take an engine's hooks off its module; its memory is given back with the last reference, once circles are looked for.

    ZeRO-3 (DeepSpeed 0.19) keeps models in two places for as long as the process lives, and so all their states: the list of
    those whose passes are under way, and a cache of which parameters each module releases.
    """
    from deepspeed.runtime.zero import parameter_offload
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    engine.destroy()
    under_way = parameter_offload.FWD_MODULE_STACK
    under_way[:] = [module for module in under_way if module is not engine.module]
    for method in vars(PartitionedParameterCoordinator).values():
        for cell in getattr(method, "__closure__", None) or ():
            if forget := getattr(cell.cell_contents, "cache_clear", None):
                forget()


def let_go(models: MutableMapping[str, Any]) -> None:
    """Free models and forget them, before others are loaded in their place: engines and their modules are circles."""
    while models:
        models.popitem()[1].free()
    for _ in range(2):  # parameters of BF16_Optimizer are free to go once their hooks have gone
        gc.collect()
