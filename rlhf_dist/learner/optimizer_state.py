"""An optimiser's state, as it lies in memory, and in files that know no layout: a run goes on with other ranks and ZeRO stages.

DeepSpeed keeps what it optimises in different places: the parameters themselves (stage 0), or flat fp32 partitions, from which
the module's own weights are filled after each step. In all of them torch's AdamW has, per tensor, a step count and two moments.
In files they are pieces of parameters by name, as safetensors: each rank writes those that it has and reads those that it needs,
so nobody ever holds a whole model, and no pickle is read.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rlhf_dist.errors import ModelError
from rlhf_dist.files import as_exact_json
from rlhf_dist.learner.schedule import move_to
from rlhf_dist.learner.writing import Write, write_tensors

PIECES, SCHEDULE = "pieces.safetensors", "schedule.json"
WEIGHT, STEP = "weight", "step"
FLAT_PARTITIONS = ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition")
"""DeepSpeed's names of its master weights: ZeRO 3, ZeRO 1 and 2, ZeRO 1 in bf16."""
GROUPS = ("bit16_groups", "bf16_groups")
"""And of the parameters behind those of ZeRO 1 and 2, and of ZeRO 1 in bf16."""


class Piece(NamedTuple):
    """Where a part of a parameter lies among what this rank optimises."""

    name: str
    """The parameter's, within the module."""
    offset: int
    """Of the part within the flattened parameter, in elements."""
    length: int
    tensor: int
    """Number of the optimised tensor."""
    start: int
    """Of the part within that tensor, flattened."""


def pieces_of(engine: Any) -> list[Piece]:
    """Every part of a parameter that this rank optimises."""
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    outer = engine.optimizer
    if hasattr(outer, FLAT_PARTITIONS[0]):
        return [*_pieces_of_stage_3(outer, names)]
    for groups in GROUPS:
        if hasattr(outer, groups):
            return [*_linked_pieces(getattr(outer, groups), names)]
    tensors, _ = _optimised(engine)
    return [Piece(names[id(each)], 0, each.numel(), number, 0) for number, each in enumerate(tensors)]


def _pieces_of_stage_3(outer: Any, names: Mapping[int, str]) -> Iterator[Piece]:
    """Each parameter is cut evenly over the ranks, the last part padded; a flat tensor holds this rank's of some parameters."""
    rank = torch.distributed.get_rank()
    for number, group in enumerate(outer.fp16_groups):
        start = 0
        for parameter in group:
            size = parameter.partition_numel()
            length = min(size, parameter.ds_numel - rank * size)
            if length > 0:
                yield Piece(names[id(parameter)], rank * size, length, number, start)
            start += size


def _linked_pieces(groups: Any, names: Mapping[int, str]) -> Iterator[Piece]:
    """DeepSpeed links each parameter that lies, in part, in this rank's share of the flattened group."""
    for number, group in enumerate(groups):
        for parameter in group:
            link = parameter._hp_mapping
            if link is not None:
                own, flat = link.lp_fragment_address, link.hp_fragment_address
                yield Piece(names[id(parameter)], own.start, own.numel, number, flat.start)


def held(engine: Any) -> dict[str, torch.Tensor]:
    """This rank's optimised tensors with what AdamW knows of each, as they lie in memory."""
    tensors, base = _optimised(engine)
    found = {f"{number}/{WEIGHT}": tensor.detach() for number, tensor in enumerate(tensors)}
    for number, tensor in enumerate(tensors):
        found |= {f"{number}/{key}": value for key, value in base.state[tensor].items()}
    return found


def take(engine: Any, found: Mapping[str, torch.Tensor]) -> None:
    """Put back what `held` gave, of the same layout; all ranks must call."""
    tensors, base = _optimised(engine)
    with torch.no_grad():
        for number, tensor in enumerate(tensors):
            tensor.copy_(found[f"{number}/{WEIGHT}"])
            keys = [key for key in found if key.startswith(f"{number}/") and key != f"{number}/{WEIGHT}"]
            base.state[tensor] = {key.partition("/")[2]: found[key].to(tensor.device, copy=True) for key in keys}
    _fill_module(engine.optimizer)


def save(
    engine: Any, schedule: Any, folder: Path, *, share: tuple[int, int] = (0, 1), write: Write = write_tensors
) -> None:
    """Copy to host memory what this rank has of the state, and have it written with the steps that the schedule has made.

    Args:
        engine: DeepSpeed's engine.
        schedule: the learning rate's schedule.
        folder: this rank's, made here, beside those of the others.
        share: this rank and their number, over which is shared out what every rank has whole.
        write: takes the file and the copies.
    """
    folder.mkdir(parents=True)
    tensors, base = _optimised(engine)
    own = {id(parameter) for parameter in engine.module.parameters()}
    replicated = all(id(tensor) in own for tensor in tensors)
    found = {}
    for number, piece in enumerate(pieces_of(engine)):
        if replicated and number % share[1] != share[0]:
            continue
        tensor = tensors[piece.tensor]
        parts = {WEIGHT: tensor.detach(), **base.state[tensor]}
        for key, value in parts.items():
            flat = value.reshape(-1)
            part = flat if key == STEP else flat[piece.start : piece.start + piece.length]
            found[f"{piece.offset}/{key}/{piece.name}"] = part.to("cpu", copy=True)
    write(folder / PIECES, found)
    (folder / SCHEDULE).write_text(as_exact_json({"last_epoch": schedule.last_epoch}, SCHEDULE))


def check_readable(folder: Path) -> None:
    """Refuse states that this version cannot go on from, before a process is started.

    Args:
        folder: of all models' states.

    Raises:
        ModelError: names a model's folder that holds none.
    """
    for model in sorted(each for each in folder.iterdir() if each.is_dir()):
        if not [*model.glob(f"rank-*/{PIECES}")]:
            raise ModelError(f"{model}: no state of an optimiser that this version reads; expected rank-0/{PIECES}")


def load(engine: Any, schedule: Any, folder: Path) -> None:
    """Take over the state, and go on in the schedule after as many steps; rates and decays are those of the settings now.

    Args:
        engine: DeepSpeed's engine, whatever its ranks and ZeRO stage; all ranks must call.
        schedule: the learning rate's schedule.
        folder: in which every rank that saved has its own.

    Raises:
        ModelError: there is no state, or it is of another model.
    """
    tensors, base = _optimised(engine)
    with ExitStack() as files, torch.no_grad():
        saved = _Saved(folder, files)
        saved.check(engine.module)
        for tensor in tensors:
            base.state[tensor] = {}
        for piece in pieces_of(engine):
            tensor = tensors[piece.tensor]
            state, place = base.state[tensor], slice(piece.start, piece.start + piece.length)
            tensor.view(-1)[place] = saved.read(piece, WEIGHT).to(tensor.device)
            for key in saved.keys_of(piece.name):
                if key == STEP:
                    steps = saved.step(piece.name).to(tensor.device)  # fused AdamW counts where the tensor is
                    state[key] = torch.maximum(steps, state.get(key, steps))
                else:
                    state.setdefault(key, torch.zeros_like(tensor, memory_format=torch.contiguous_format))
                    state[key].view(-1)[place] = saved.read(piece, key).to(tensor.device)
    _fill_module(engine.optimizer)
    schedules = sorted(folder.glob(f"rank-*/{SCHEDULE}"))
    move_to(schedule, json.loads(schedules[0].read_text())["last_epoch"])


class _Saved:
    """What all ranks have written, of which only what is asked for is read."""

    def __init__(self, folder: Path, files: ExitStack) -> None:
        from safetensors import safe_open

        self._folder = folder
        self._parts: dict[str, dict[str, list[tuple[int, Any, str]]]] = defaultdict(lambda: defaultdict(list))
        """Offset, file and name there of each part, by parameter and what of it."""
        for file in sorted(folder.glob(f"rank-*/{PIECES}"), key=lambda file: int(file.parent.name.partition("-")[2])):
            opened = files.enter_context(safe_open(file, framework="pt"))
            for key in opened.keys():  # noqa: SIM118 - it is no mapping
                offset, what, name = re.fullmatch(r"(\d+)/(\w+)/(.*)", key).groups()  # type: ignore[union-attr]
                self._parts[name][what].append((int(offset), opened, key))
        if not self._parts:
            raise ModelError(f"{folder}: no state of an optimiser that this version reads; expected rank-0/{PIECES}")

    def check(self, module: Any) -> None:
        """Refuse a state of other parameters, or of parameters of other sizes, than those of a module that are trained.

        Raises:
            ModelError: names the first.
        """
        trained = [(name, each) for name, each in module.named_parameters() if each.requires_grad]
        expected = {name: getattr(each, "ds_numel", each.numel()) for name, each in trained}
        found = {
            name: sum(opened.get_slice(key).get_shape()[0] for _, opened, key in parts[WEIGHT])
            for name, parts in self._parts.items()
        }
        for name in sorted(expected.keys() | found.keys()):
            if (has := found.get(name, 0)) != (wants := expected.get(name, 0)):
                raise ModelError(
                    f"{self._folder}: the state has {has} elements of {name}, expected {wants}; it is of another model"
                )

    def keys_of(self, name: str) -> list[str]:
        """What AdamW knows of a parameter; nothing of one that never had a gradient."""
        return [what for what in self._parts[name] if what != WEIGHT]

    def step(self, name: str) -> torch.Tensor:
        """How many steps AdamW has made with a parameter."""
        _, opened, key = self._parts[name][STEP][0]
        steps: torch.Tensor = opened.get_tensor(key).reshape(())
        return steps

    def read(self, piece: Piece, what: str) -> torch.Tensor:
        """A part of a parameter's weights or of a moment, [length]."""
        found, end = [], piece.offset + piece.length
        at = piece.offset
        for offset, opened, key in sorted(self._parts[piece.name][what], key=lambda part: part[0]):
            part = opened.get_slice(key)
            stop = min(offset + part.get_shape()[0], end)
            if offset <= at < stop:
                found.append(part[at - offset : stop - offset])
                at = stop
        if at != end:
            raise ModelError(
                f"{self._folder}: the state has {at - piece.offset} of {piece.length} elements of {piece.name} from "
                f"{piece.offset} on; it is of another model"
            )
        return torch.cat(found)


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
