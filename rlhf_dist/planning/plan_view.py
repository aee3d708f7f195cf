"""A plan as tables in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from rlhf_dist.planning.machine import GIB, MIB
from rlhf_dist.planning.weight_seconds import dominant, publish_and_pull

if TYPE_CHECKING:
    from rlhf_dist.config import Job
    from rlhf_dist.planning.plan import Machines, Plan, Seat
    from rlhf_dist.planning.sizes import ModelSize


def show_plans(console: Console, config: Job, machines: Machines, sizes: dict[str, ModelSize]) -> bool:
    """Print every scene of a stage, what is wrong with it and what would help; whether all of it fits."""
    from rlhf_dist.planning.advice import advice
    from rlhf_dist.planning.plan import make_plans

    plans = make_plans(config, machines, sizes)
    for plan in plans:
        show_plan(console, plan)
    helping = advice(config, machines, sizes)
    if helping:
        console.print(f"What would help, by this plan: [bold]{' '.join(helping)}[/]", highlight=False)
    return not helping


def show_plan(console: Console, plan: Plan) -> None:
    """Print placement, memory, phases, and what is wrong or slow."""
    console.print(_seats(plan))
    console.print(_memory(plan))
    for node, used in plan.host_bytes().items() if plan.gpus else ():
        store = plan.store_bytes().get(node, 0.0)
        beside = f" and {size(store)} of /dev/shm for the object store" if store else ""
        console.print(f"Host memory of node {node}: {size(used)} of processes{beside}.", highlight=False)
    if plan.phases:
        console.print(_phases(plan))
        console.print(_weights(plan))
        phase, advice = plan.bottleneck()
        console.print(f"Bottleneck: [bold]{phase}[/]; {advice} would help.", highlight=False)
    for problem in plan.problems():
        console.print(f"[bold red]Does not fit:[/] {problem}", highlight=False)


def _seats(plan: Plan) -> Table:
    """One line for each run of equal devices of a node."""
    device = "GPU" if plan.gpus else "CPU slot"
    title = f"Placement ({plan.scene.title})"
    if plan.rollout_workers:
        title += f": {plan.rollout_workers} rollout workers"
    table = Table("node", device, "actors", "memory at the peak", title=title)

    def alike(seat: Seat) -> tuple[int, tuple[str, ...]]:
        return seat.node, tuple(actor.role for actor in seat.actors)

    for (node, _), group in groupby(plan.seats, key=alike):
        seats = list(group)
        numbers = str(seats[0].number) if len(seats) == 1 else f"{seats[0].number}-{seats[-1].number}"
        names = [actor.name for seat in seats for actor in seat.actors]
        shown = ", ".join(names if len(names) <= 6 else [*names[:3], "...", *names[-2:]])
        phase, used = max((plan.peak(seat.actors) for seat in seats), key=lambda found: found[1])
        of = f" of {size(plan.capacity)}" if plan.gpus else ""
        table.add_row(str(node), numbers, shown, f"{size(used)}{of}{' each' * (len(seats) > 1)} ({phase})")
    return table


def _memory(plan: Plan) -> Table:
    """One line for each actor: the phase in which it fills its device most, and what fills it then, and its host's memory."""

    def on_device(parts: Mapping[str, float]) -> float:
        return sum(value for part, value in parts.items() if not (plan.gpus and "(host)" in part))

    table = Table("actor", "fullest", "memory each", "of which", title=f"Memory, estimated ({plan.scene.title})")
    for role, phases in plan.scene.memory.items():
        phase = max(phases, key=lambda name: on_device(phases[name]))
        parts = {part: value for part, value in phases[phase].items() if value >= MIB}
        told = ", ".join(f"{part} {size(value)}" for part, value in parts.items())
        table.add_row(role, phase, size(on_device(phases[phase])), told)
    return table


def _phases(plan: Plan) -> Table:
    title = f"Seconds per iteration, expected on: {plan.device.name}"
    table = Table("phase", "seconds", "", title=title)
    longest = max(plan.phases.values())
    for phase, seconds in plan.phases.items():
        table.add_row(phase, f"{seconds:.3g}", "█" * max(1, round(24 * seconds / longest)))
    return table


def _weights(plan: Plan) -> Table:
    table = Table("transport", "seconds", "longest", "of which", title="A weight version on its way, expected")
    for name, found in plan.transports.items():
        told = ", ".join(f"{step} {seconds:.2g}" for step, seconds in found.items())
        table.add_row(name, f"{sum(publish_and_pull(found, gpus=plan.gpus)):.2g}", dominant(found), told)
    return table


def size(num_bytes: float) -> str:
    """Bytes for a person."""
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB else f"{num_bytes / MIB:.0f} MiB"
