"""What watching everybody and remembering every iteration costs an iteration.

One run, in which signs of life and snapshots are on and off by turns, iteration by iteration. The checks that numbers are
finite are part of the learner's passes and not switched: they are a few passes over what lies in the cache.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

from contract import arguments, publish
from iteration import config_of

SIZE = {"prompts": 32, "prompt": 16, "answer": 64}
ITERATIONS, QUICK = 33, 9
VOCABULARY = 4096


def main() -> None:
    asked = arguments(__doc__ or "")
    from random_models import write, write_prompts
    from system import run_system
    from transformers import LlamaConfig

    from rlhf_dist.cluster.vigil import Vigil
    from rlhf_dist.learner.memory import Memory

    iterations = QUICK if asked.quick else ITERATIONS
    seconds: dict[bool, list[float]] = {True: [], False: []}
    costs: list[Any] = []
    switched = {"on": True}
    ask, keep = Vigil.asked, Memory.keep

    def asked_if_on(self: Vigil) -> list[Any]:
        return ask(self) if switched["on"] else []

    def kept_if_on(self: Memory[Any], learner: Any, state: Any) -> None:
        if switched["on"]:
            keep(self, learner, state)
        costs.extend(each.snapshot.cost() for each in self._kept if each.snapshot.is_whole())

    def report(iteration: int, metrics: Any, batch: Any) -> None:
        if iteration:  # the first warms up
            seconds[switched["on"]].append(metrics["timing_s/step"])
        switched["on"] = iteration % 2 == 0

    Vigil.asked, Memory.keep = asked_if_on, kept_if_on  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shape: dict[str, Any] = {
            "hidden_size": 256,
            "intermediate_size": 704,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
        }
        policy, reward = write(root, LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=128, **shape))
        prompts = write_prompts(root / "prompts.jsonl", count=256, tokens=SIZE["prompt"], vocabulary=VOCABULARY)
        tree = config_of(root, policy, reward, prompts, SIZE)
        tree["ppo"] = {**tree["ppo"], "iterations": iterations}
        parameters, _ = run_system(tree, root / "run", report)
    medians = {on: statistics.median(found) for on, found in seconds.items()}
    figures = {
        "parameters": float(parameters),
        "seconds_on": medians[True],
        "seconds_off": medians[False],
        "on_over_off": medians[True] / medians[False],
        "snapshot_seconds": max((each.seconds for each in costs), default=0.0),
        "snapshot_bytes": float(max((each.num_bytes for each in costs), default=0)),
        "snapshot_over_iteration": max((each.seconds for each in costs), default=0.0) / medians[True],
    }
    rows = [
        {"protection": name, "iterations": len(seconds[on]), "median s": medians[on]}
        for name, on in (("on", True), ("off", False))
    ]
    publish("faults", figures, rows, asked.json)


if __name__ == "__main__":
    main()
