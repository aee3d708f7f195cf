"""One rank's share of an optimiser's state as safetensors: no pickle is read when a run goes on.

DeepSpeed keeps what it optimises in different places: the parameters themselves (stage 0), or flat fp32 partitions, from which
the module's own weights are filled after each step. In all of them torch's AdamW has, per tensor, a step count and two moments.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rlhf_dist.errors import ModelError
from rlhf_dist.files import as_exact_json
from rlhf_dist.learner.schedule import move_to

TENSORS, SCHEDULE = "optimizer.safetensors", "schedule.json"
FLAT_PARTITIONS = ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition")
"""DeepSpeed's names of its master weights: ZeRO 3, ZeRO 1 and 2, ZeRO 1 in bf16."""


def held(engine: Any) -> dict[str, torch.Tensor]:
    """This rank's optimised tensors with what AdamW knows of each, as they lie in memory."""
    tensors, base = _optimised(engine)
    found = {f"{number}/weight": tensor.detach() for number, tensor in enumerate(tensors)}
    for number, tensor in enumerate(tensors):
        found |= {f"{number}/{key}": value for key, value in base.state[tensor].items()}
    return found


def take(engine: Any, found: Mapping[str, torch.Tensor]) -> None:
    """Put back what `held` gave, of the same layout; all ranks must call."""
    tensors, base = _optimised(engine)
    with torch.no_grad():
        for number, tensor in enumerate(tensors):
            tensor.copy_(found[f"{number}/weight"])
            keys = [key for key in found if key.startswith(f"{number}/") and key != f"{number}/weight"]
            base.state[tensor] = {key.partition("/")[2]: found[key].to(tensor.device, copy=True) for key in keys}
    _fill_module(engine.optimizer)


def save(engine: Any, schedule: Any, folder: Path) -> None:
    """Write the state, and how many steps the schedule has made.

    Args:
        engine: DeepSpeed's engine.
        schedule: the learning rate's schedule.
        folder: made here.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    save_file({key: value.cpu().contiguous().clone() for key, value in held(engine).items()}, folder / TENSORS)
    (folder / SCHEDULE).write_text(as_exact_json({"last_epoch": schedule.last_epoch}, SCHEDULE))


def load(engine: Any, schedule: Any, folder: Path) -> None:
    """Take over the state, and go on in the schedule after as many steps; rates and decays are those of the settings now.

    Raises:
        ModelError: the state is of another model, ZeRO stage or number of ranks.
    """
    from safetensors.torch import load_file

    tensors, _ = _optimised(engine)
    try:
        found = load_file(folder / TENSORS)
    except FileNotFoundError as error:
        raise ModelError(f"{folder}: no such state; it was saved by another number of learner.ranks") from error
    fits = all(f"{n}/weight" in found and found[f"{n}/weight"].shape == t.shape for n, t in enumerate(tensors))
    if not fits or f"{len(tensors)}/weight" in found:
        raise ModelError(f"{folder}: the state does not fit; it was saved with another learner.zero_stage or model")
    take(engine, found)
    move_to(schedule, json.loads((folder / SCHEDULE).read_text())["last_epoch"])


def _fill_module(outer: Any) -> None:
    """Copy master weights into the module's own on all ranks, as DeepSpeed does after each step; all ranks must call this.

    What the model's files do not hold, a value head on a policy, would else stay as it was built until the first step.
    """
    if hasattr(outer, "update_lp_params"):  # ZeRO 1 and 2
        outer.update_lp_params()
    elif hasattr(outer, "fp16_partitioned_groups_flat"):  # ZeRO 3, whose small parameters stay gathered between steps
        outer.checkpoint_event_prologue()
        for number in range(len(outer.fp16_partitioned_groups_flat)):
            outer._reassign_or_swap_out_partitioned_parameters(number)
        outer.checkpoint_event_epilogue()


def _optimised(engine: Any) -> tuple[list[torch.Tensor], Any]:
    """The tensors that AdamW updates on this rank, and AdamW."""
    base = outer = engine.optimizer
    while hasattr(base, "optimizer"):
        base = base.optimizer
    for name in FLAT_PARTITIONS:
        if getattr(outer, name, None):
            return list(getattr(outer, name)), base
    return [parameter for group in base.param_groups for parameter in group["params"]], base
