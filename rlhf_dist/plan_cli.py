"""`rlhf-dist plan`, and what `--dry-run` says of memory."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlhf_dist.config import (
    DPOConfig,
    EvaluateConfig,
    Job,
    PipelineConfig,
    RewardConfig,
    RLConfig,
    SFTConfig,
    load,
)

if TYPE_CHECKING:
    from rich.console import Console


class PlannedStage(StrEnum):
    """Stages that have a plan."""

    rl = "rl"
    sft = "sft"
    reward = "reward"
    dpo = "dpo"
    evaluate = "evaluate"
    pipeline = "pipeline"


KINDS: dict[PlannedStage, type[Job]] = {
    PlannedStage.rl: RLConfig,
    PlannedStage.sft: SFTConfig,
    PlannedStage.reward: RewardConfig,
    PlannedStage.dpo: DPOConfig,
    PlannedStage.evaluate: EvaluateConfig,
    PlannedStage.pipeline: PipelineConfig,
}


def plan(
    config_file: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="override a setting: key.sub=value", metavar="K=V")
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="nodes of the cluster")] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=0, help="GPUs of each node; 0: CPUs do everything")] = 8,
    gpu_memory: Annotated[float, typer.Option(min=1, help="memory of a GPU (of a node, without GPUs), in GB")] = 80,
    cpus_per_node: Annotated[int, typer.Option(min=1, help="CPU slots of each node")] = 64,
    stage: Annotated[PlannedStage, typer.Option(help="what the config is of")] = PlannedStage.rl,
) -> None:
    """Say where everything would go on a cluster, whether it fits, and what would be slow. Needs no cluster."""
    config = load(KINDS[stage], config_file, overrides)
    from rich.console import Console as RichConsole

    from rlhf_dist.planning.plan import Machines
    from rlhf_dist.planning.plan_view import show_plans
    from rlhf_dist.planning.roles import sizes_of
    from rlhf_dist.stages.hub import resolved

    config = resolved(config)
    machines = Machines(nodes, gpus_per_node, gpu_memory, cpus_per_node)
    raise typer.Exit(0 if show_plans(RichConsole(), config, machines, sizes_of(config)) else 1)


def show_here(console: Console, config: Job) -> None:
    """Placement and memory on this machine, of every scene of a stage."""
    from rlhf_dist.planning.plan import this_machine
    from rlhf_dist.planning.plan_view import show_plans
    from rlhf_dist.planning.roles import sizes_of
    from rlhf_dist.stages.hub import resolved

    config = resolved(config)
    sizes = sizes_of(config)
    show_plans(console, config, this_machine(config, sizes), sizes)
