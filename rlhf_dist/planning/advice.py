"""What would help a plan that does not fit: each change that might is tried through the plan itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rlhf_dist.config import Job, RLJob, override
from rlhf_dist.errors import UserError
from rlhf_dist.planning.plan import Machines, Plan, make_plan, make_plans
from rlhf_dist.planning.sizes import ModelSize

MOST_PARALLEL = 8
"""Cards of a node, as most nodes have."""
MORE_CARDS = "more GPUs (--nodes, --gpus-per-node), or a smaller model"


def advice(config: Job, machines: Machines, sizes: dict[str, ModelSize]) -> list[str]:
    """Settings that would make everything fit, the mildest first; what could not be avoided, where none do.

    Args:
        config: the stage's settings.
        machines: the cluster.
        sizes: of each role's models.
    """
    if not any(plan.problems() for plan in make_plans(config, machines, sizes)):
        return []
    best: tuple[float, list[str]] = (_excess(make_plan(config, machines, sizes)), [])
    changes: list[str] = []
    for change in _changes(config, machines):
        for together in ([*change], [*changes, *change]):
            excess = _excess_with(config, together, machines, sizes)
            if excess <= 0:
                return together
            if excess < best[0]:
                best = (excess, together)
        changes = best[1]
    return [MORE_CARDS]


def _excess_with(config: Job, changes: list[str], machines: Machines, sizes: dict[str, ModelSize]) -> float:
    """By how many bytes the fullest device is too small with such settings; infinite where these are refused."""
    try:
        return max(map(_excess, make_plans(override(config, changes), machines, sizes)))
    except UserError:
        return float("inf")


def _excess(plan: Plan) -> float:
    return max(plan.peak(actors)[1] for actors in plan.devices().values()) - plan.capacity


def _changes(config: Job, machines: Machines) -> Iterator[tuple[str, ...]]:
    """What might help, from what costs least: time, then devices, then host memory; each the settings that go together."""
    learner = config.learner
    if not learner.gradient_checkpointing:
        yield ("learner.gradient_checkpointing=true",)
    least = _longest(config)
    tokens = learner.micro_batch_tokens
    while tokens // 2 >= least:
        tokens //= 2
        yield (f"learner.micro_batch_tokens={tokens}",)
    if learner.precision == "fp32" and machines.gpus_per_node:
        yield ("learner.precision=bf16",)
    if isinstance(config, RLJob):
        yield from _of_scorers(config)
    if learner.zero_stage < 3:
        yield ("learner.zero_stage=3",)
    ranks = learner.ranks
    while ranks * 2 <= machines.nodes * (machines.gpus_per_node or machines.cpus_per_node):
        ranks *= 2
        yield (f"learner.ranks={ranks}",)
    if machines.gpus_per_node and not learner.cpu_offload:
        yield ("learner.cpu_offload=true",)


def _of_scorers(config: RLJob) -> Iterator[tuple[str, ...]]:
    """A reference in the learner's ranks is cut over them, engines that share their cards too; others over cards of their own."""
    if "reference" in config.scoring_workers:
        yield ("scoring.reference_on=learner",)
    if config.cluster.placement == "colocated":
        parallel, ranks = 2 * config.rollout.tensor_parallel, config.learner.ranks
        while parallel <= min(MOST_PARALLEL, ranks):
            yield f"rollout.tensor_parallel={parallel}", f"rollout.workers={ranks // parallel}"
            parallel *= 2
    if config.cluster.placement != "disaggregated":
        yield ("cluster.placement=disaggregated",)
    for section, parallel in (("scoring", config.scoring.tensor_parallel), ("rollout", config.rollout.tensor_parallel)):
        while parallel < MOST_PARALLEL:
            parallel *= 2
            yield (f"{section}.tensor_parallel={parallel}",)


def _longest(config: Any) -> int:
    return int(config.max_sequence) if isinstance(config, RLJob) else 1024
