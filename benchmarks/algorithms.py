"""Every method on the task `arithmetic`, from the same fine-tuned start, at the same number of samples.

Gold is a rule that checks the sum. Learning rates are the same for all, and scale is a learning rate in disguise: compare a
method with itself on your task, not its row with another's.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from typing import Any

import psutil
import yaml
from contract import arguments, publish

from rlhf_dist.cluster.session import session
from rlhf_dist.config import METHODS, Cluster, PipelineConfig, RLConfig, load
from rlhf_dist.files import shipped_config
from rlhf_dist.run_folder.console import Console
from rlhf_dist.run_folder.rl_folder import RLFolder
from rlhf_dist.stages import pipeline, rl

SEEDS = {"ppo": 3, "rloo": 3, "grpo": 3}
"""Runs of a method; one of the others."""
TAUGHT_BY = "grpo"
"""Whose policy is the teacher of `distill`."""
GIB = 2**30
CHOICES: dict[str, dict[str, Any]] = {
    "ppo": {"kl_coef": 0.0},
    "reinforce": {"kl_coef": 0.0},
    "max_entropy": {"entropy_target": 0.3},
    "rloo": {"kl_coef": 0.0},
    "remax": {"kl_coef": 0.0},
    "kimi": {"tau": 0.05},
    "a_star": {"tau": 0.05, "reference_samples": 8},
    "gspo": {"clip_ratio": 0.2, "clip_ratio_high": 0.28},
}
"""What differs from a method's own numbers: rewards are 0 and 1 here, answers are short."""


def of_method(base: dict[str, Any], method: str, seed: int, teacher: Path) -> RLConfig:
    """A run of a method that begins with the fine-tuned policy."""
    learner = {**base["learner"], "critic": "value_head" if method == "ppo" else "none"}
    shared = {**base, "seed": seed, "learner": learner, "algorithm": {"method": method, **CHOICES.get(method, {})}}
    if method == "distill":
        shared |= {"teacher": str(teacher)}
    return RLConfig.model_validate(shared)


@contextmanager
def peak_memory(found: list[float]) -> Iterator[None]:
    """Appends the largest memory of this process's children together meanwhile, in GiB; what several map counts once."""
    done, peak = threading.Event(), 0.0

    def watch() -> None:
        nonlocal peak
        while not done.wait(1.0):
            total = 0
            for child in psutil.Process().children(recursive=True):
                try:
                    total += child.memory_info().rss - child.memory_info().shared
                except psutil.Error:
                    continue
            peak = max(peak, total / GIB)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        found.append(peak)


def run_of(config: RLConfig, path: Path) -> dict[str, float]:
    """What a run reaches."""
    began, memory = time.monotonic(), list[float]()
    with peak_memory(memory):
        rl.run(config, rl.prepare(config), RLFolder(path, config, console=Console()))
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((path / "summary.json").read_text())
    last = rows[-3:]
    return {
        "right_before": rows[0]["reward/gold/mean"],
        "right_after": mean(row["reward/gold/mean"] for row in last),
        "gold_win_rate": summary["gold_win_rate"],
        "kl": mean(row["objective/kl"] for row in last),
        "entropy": mean(row["actor/entropy"] for row in last),
        "seconds": time.monotonic() - began,
        "peak_gib": memory[0],
    }


def main() -> None:
    options = arguments(__doc__)
    methods = ["grpo", "rloo"] if options.quick else [TAUGHT_BY, *(name for name in METHODS if name != TAUGHT_BY)]
    small = ["sft.epochs=1", "task.demonstrations=512", "prompts.held_out_limit=32"] if options.quick else []
    iterations = 2 if options.quick else 15
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name, session(Cluster(), cpus=6, gpus=0, namespace="rlhf/algorithms"):
        folder = Path(name)
        start = load(PipelineConfig, shipped_config("scenarios/arithmetic.yaml"), ["rl.iterations=1", *small])
        pipeline.run(start, folder / "start", Console())
        base = yaml.safe_load((folder / "start" / "config.yaml").read_text())
        base["rl"] |= {"iterations": iterations, "prompts_per_iteration": 32}
        base["rollout"]["engine"] = "transformers"  # starts twice as fast, and answers are short
        teacher = folder / f"{TAUGHT_BY}-0" / "policy"
        for method in methods:
            for seed in range(1 if options.quick else SEEDS.get(method, 1)):
                config = of_method(base, method, seed, teacher)
                rows.append({"method": method, "seed": seed, **run_of(config, folder / f"{method}-{seed}")})
                if options.json:  # what is there stays, whatever comes
                    publish("algorithms", figures_of(rows), rows, options.json)
    publish("algorithms", figures_of(rows), rows, options.json)


def figures_of(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Mean over seeds of what each method gains, and how many lose."""
    gains: dict[str, list[float]] = {}
    for row in rows:
        gains.setdefault(row["method"], []).append(row["right_after"] - row["right_before"])
    return {
        **{f"gain_{method}": mean(each) for method, each in gains.items()},
        "methods_that_gain": float(sum(mean(each) > 0 for each in gains.values())),
        "methods": float(len(gains)),
    }


if __name__ == "__main__":
    main()
