"""What being ready for faults costs an iteration: signs of life, snapshots of the learner, checks that numbers are finite.

One run, in which each of the three is on in half of the iterations: every block of eight has each combination once, in random
order. Within a block the iterations with a protection are compared with those without it, so what else the machine does falls
on both alike; figures are medians over blocks. Seconds of all processor cores are compared too, since a busy machine disturbs
them less. Where snapshots are off by turns, the next one is due more often than in a run: their cost is an upper bound.
"""

from __future__ import annotations

import itertools
import math
import statistics
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from contract import arguments, publish
from iteration import config_of

Steps = list[dict[str, float]]
Plan = list[dict[str, bool]]
"""Which protection is on, by iteration."""
PROTECTIONS = ("signs of life", "snapshots", "finite checks")
SIZE = {"prompts": 32, "prompt": 16, "answer": 64}
SHAPE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
BLOCKS, QUICK = 8, 1
VOCABULARY = 4096
CHECKS: list[tuple[str, str, Any]] = [
    ("rlhf_dist.store.actor", "check_finite", None),
    ("rlhf_dist.scoring.worker", "_check_finite", None),
    ("rlhf_dist.scoring.reward", "_check_finite", None),
    ("rlhf_dist.rollout.vllm_engine", "check_finite", None),
    ("rlhf_dist.learner.group", "check_metrics", None),
    ("rlhf_dist.learner.published", "odd_tensors", []),
    ("rlhf_dist.learner.policy_update", "_Learning._find_inputs", 0),
    ("rlhf_dist.learner.policy_update", "finite_or_nan", 1.0),
    ("rlhf_dist.learner.trained_model", "finite_or_nan", 1.0),
]
"""Module, name, and what is said instead of looking."""


def plan_of(blocks: int) -> Plan:
    """All on while the run warms up, then blocks of all combinations."""
    combinations = [*itertools.product((True, False), repeat=len(PROTECTIONS))]
    draws = np.random.default_rng(0)
    order = [combinations[number] for _ in range(blocks) for number in draws.permutation(len(combinations))]
    return [dict(zip(PROTECTIONS, each, strict=True)) for each in [combinations[0], *order]]


def switching(flag: str) -> Callable[[], None]:
    """What every process of the run does first: its checks look only while the file is there."""

    def looking(check: Any, told: Any) -> Callable[..., Any]:
        return lambda *values, **named: check(*values, **named) if Path(flag).exists() else told

    def install() -> None:
        import importlib

        for module, path, told in CHECKS:
            place: Any = importlib.import_module(module)
            *owners, name = path.split(".")
            for owner in owners:
                place = getattr(place, owner)
            setattr(place, name, looking(getattr(place, name), told))

    return install


def switched(plan: Plan, flag: Path, costs: dict[float, Any]) -> None:
    """Let signs of life, snapshots and checks follow the plan; what snapshots cost goes to `costs`."""
    import ray

    from rlhf_dist.cluster.vigil import Vigil
    from rlhf_dist.learner.memory import Memory

    now = {"iteration": 0}
    ask, keep, init, install = Vigil.asked, Memory.keep, ray.init, switching(str(flag))

    def asked(self: Vigil) -> list[Any]:
        watching = plan[now["iteration"]]["signs of life"]
        for each in self._guarded.values():
            if not watching:
                each.next = math.inf
            elif each.next == math.inf:
                each.next = 0.0
        return ask(self)

    def kept(self: Memory[Any], learner: Any, state: Any) -> None:
        # Called between two iterations; the ranks copy during the next one.
        now["iteration"] = min(state.iteration, len(plan) - 1)
        following = plan[now["iteration"]]
        flag.touch() if following["finite checks"] else flag.unlink(missing_ok=True)
        costs.update({each.snapshot.taken: each.snapshot.cost() for each in self._kept if each.snapshot.is_whole()})
        if following["snapshots"]:
            keep(self, learner, state)

    def begun(**settings: Any) -> Any:
        return init(**settings, runtime_env={"worker_process_setup_hook": install})

    flag.touch()
    install()
    Vigil.asked, Memory.keep, ray.init = asked, kept, begun  # type: ignore[method-assign,assignment]


def cpu_seconds() -> float:
    """Of this process and all its children so far."""
    total = 0.0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with suppress(psutil.Error):
            told = process.cpu_times()
            total += told.user + told.system
    return total


def effects(plan: Plan, steps: Steps) -> dict[str, dict[str, list[float]]]:
    """By protection and unit, per block: by how many per cent iterations with it are longer than those without."""
    blocks = [range(start, start + 8) for start in range(1, len(steps), 8)]
    found: dict[str, dict[str, list[float]]] = {}
    for name in PROTECTIONS:
        found[name] = {}
        for unit in ("seconds", "cpu"):
            ratios = []
            for block in blocks:
                on, off = (
                    statistics.median(steps[i][unit] for i in block if plan[i][name] is wanted)
                    for wanted in (True, False)
                )
                ratios.append(100 * (on / off - 1))
            found[name][unit] = ratios
    found["all"] = {
        unit: [sum(each) for each in zip(*(found[name][unit] for name in PROTECTIONS), strict=True)]
        for unit in ("seconds", "cpu")
    }
    return found


def error_of(values: list[float]) -> float:
    """Standard error of the mean; 0 for a single value, which tells none."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def run(plan: Plan, root: Path) -> tuple[int, Steps, list[Any]]:
    """Parameters of the policy, what each iteration took, and what snapshots cost."""
    from random_models import write, write_prompts
    from system import run_system
    from transformers import LlamaConfig

    policy, reward = write(root, LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=128, **SHAPE))
    prompts = write_prompts(root / "prompts.jsonl", count=256, tokens=SIZE["prompt"], vocabulary=VOCABULARY)
    tree = config_of(root, policy, reward, prompts, SIZE)
    tree["rl"] = {**tree["rl"], "iterations": len(plan)}
    steps: Steps = []
    costs: dict[float, Any] = {}
    before = [0.0]

    def report(iteration: int, metrics: Any, batch: Any) -> None:
        spent = cpu_seconds()
        steps.append({"seconds": metrics["timing_s/step"], "cpu": spent - before[0]})
        before[0] = spent

    switched(plan, root / "checks_are_on", costs)
    parameters, _ = run_system(tree, root / "run", report)
    return parameters, steps, [*costs.values()]


def main() -> None:
    """The run, then what each protection cost it."""
    options = arguments(__doc__ or "")
    plan = plan_of(QUICK if options.quick else BLOCKS)
    with tempfile.TemporaryDirectory() as folder:
        parameters, steps, costs = run(plan, Path(folder))
    found = effects(plan, steps)
    typical = statistics.median(step["seconds"] for step in steps[1:])
    snapshot_s = statistics.median(each.seconds for each in costs)
    figures = {
        "parameters": float(parameters),
        "iterations": float(len(steps)),
        "iteration_s": typical,
        "overhead_pct": statistics.median(found["all"]["seconds"]),
        "overhead_pct_error": error_of(found["all"]["seconds"]),
        "cpu_overhead_pct": statistics.median(found["all"]["cpu"]),
        "cpu_overhead_pct_error": error_of(found["all"]["cpu"]),
        "snapshot_s": snapshot_s,
        "snapshot_bytes": float(max(each.num_bytes for each in costs)),
        "snapshot_over_iteration": snapshot_s / typical,
    }
    rows = [
        {
            "protection": name,
            "blocks": len(told["seconds"]),
            "% of seconds": statistics.median(told["seconds"]),
            "± ": error_of(told["seconds"]),
            "% of CPU": statistics.median(told["cpu"]),
            "±": error_of(told["cpu"]),
        }
        for name, told in found.items()
    ]
    publish("faults", figures, rows, options.json)


if __name__ == "__main__":
    main()
