"""A plan as tables in the terminal."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from rlhf_dist.planning.machine import GIB, MIB

if TYPE_CHECKING:
    from rlhf_dist.planning.plan import Plan, Seat


def show_plan(console: Console, plan: Plan) -> None:
    """Print placement, memory, phases, and what is wrong or slow."""
    console.print(_seats(plan))
    console.print(_memory(plan))
    console.print(_phases(plan))
    phase, advice = plan.bottleneck()
    console.print(f"Bottleneck: [bold]{phase}[/]; {advice} would help.", highlight=False)
    for problem in plan.problems():
        console.print(f"[bold red]Does not fit:[/] {problem}", highlight=False)


def _seats(plan: Plan) -> Table:
    """One line for each run of equal devices of a node."""
    device = "GPU" if plan.machines.gpus_per_node else "CPU slot"
    table = Table("node", device, "actors", "memory", title=f"Placement: {plan.rollout_workers} rollout workers")

    def alike(seat: Seat) -> tuple[int, tuple[str, ...]]:
        return seat.node, tuple(actor.role for actor in seat.actors)

    for (node, _), group in groupby(plan.seats, key=alike):
        seats = list(group)
        numbers = str(seats[0].number) if len(seats) == 1 else f"{seats[0].number}-{seats[-1].number}"
        names = [actor.name for seat in seats for actor in seat.actors]
        shown = ", ".join(names if len(names) <= 6 else [*names[:3], "...", *names[-2:]])
        used = max(plan.used(seat) for seat in seats)
        of = f" of {size(plan.capacity)}" if plan.machines.gpus_per_node else ""
        table.add_row(str(node), numbers, shown, f"{size(used)}{of}" + (" each" if len(seats) > 1 else ""))
    return table


def _memory(plan: Plan) -> Table:
    table = Table("actor", "memory each", "of which", title="Memory, estimated")
    for role, parts in plan.memory.items():
        told = ", ".join(f"{part} {size(value)}" for part, value in parts.items())
        table.add_row(role, size(sum(parts.values())), told)
    return table


def _phases(plan: Plan) -> Table:
    title = f"Seconds per iteration, expected on: {plan.device.name}"
    table = Table("phase", "seconds", "", title=title)
    longest = max(plan.phases.values())
    for phase, seconds in plan.phases.items():
        table.add_row(phase, f"{seconds:.3g}", "█" * max(1, round(24 * seconds / longest)))
    return table


def size(num_bytes: float) -> str:
    """Bytes for a person."""
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB else f"{num_bytes / MIB:.0f} MiB"
