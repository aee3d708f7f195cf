"""The plan's memory estimates against measured peaks of the real actors.

Each role's resident memory is sampled while the system runs, once with a tiny model and once with a larger one. The difference
of the two peaks is what the model takes, without interpreter and libraries; it is compared with the difference of the estimates.
Shared memory (the store's) is not counted, on either side.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from contract import arguments, publish

ROLES = ("learner", "rollout", "reward", "reference")
TINY = (64, 176, 2, 1)
SHAPES = {"16M": (384, 1024, 8, 3), "60M": (640, 1728, 12, 5)}
VOCABULARY = 4096


class Sampler(threading.Thread):
    """Peak resident memory of each of Ray's processes, without shared memory, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peaks: dict[int, int] = {}
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.02):
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    if (process / "cmdline").read_bytes().startswith(b"ray::"):
                        self._note(int(process.name), (process / "status").read_text())
                except OSError:
                    continue

    def stop(self, run_dir: Path) -> dict[str, int]:
        """Peaks by role, of the first worker of each, which its log file names."""
        self._over.set()
        self.join()
        logs = {role: run_dir / "logs" / f"{role}-0.jsonl" for role in ROLES}
        return {role: self.peaks[json.loads(log.read_text().splitlines()[-1])["pid"]] for role, log in logs.items()}

    def _note(self, pid: int, status: str) -> None:
        # Weights that were read but not yet written to are still pages of their file.
        own = sum(int(status.partition(f"{kind}:")[2].split()[0]) * 1024 for kind in ("RssAnon", "RssFile"))
        self.peaks[pid] = max(self.peaks.get(pid, 0), own)


def config_of(root: Path, policy: Path, reward: Path, prompts: Path) -> dict[str, Any]:
    return {
        "policy": str(policy),
        "reward": str(reward),
        "prompts": {"path": str(prompts), "max_tokens": 32},
        "run_dir": str(root / "run"),
        "rl": {"iterations": 2, "prompts_per_iteration": 16},
        "rollout": {"max_new_tokens": 96, "max_concurrent": 32, "kv_cache_gib": 0.25},
        "learner": {"zero_stage": 0, "micro_batch_tokens": 2048, "row_tokens": 128},
        "scoring": {"batch_tokens": 512},
        "cluster": {"object_store_mib": 2048},
    }


def measure(shape: tuple[int, int, int, int], root: Path) -> tuple[dict[str, int], dict[str, float]]:
    """Measured peaks and estimates by role."""
    from random_models import write, write_prompts
    from system import run_system
    from transformers import LlamaConfig

    from rlhf_dist.config import RLConfig
    from rlhf_dist.planning.memory import memory
    from rlhf_dist.planning.roles import sizes_of

    hidden, intermediate, layers, heads = shape
    llama = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=2 * heads,
        num_key_value_heads=heads,
        head_dim=hidden // heads // 2,
        vocab_size=VOCABULARY,
        max_position_embeddings=256,
    )
    policy, reward = write(root, llama)
    prompts = write_prompts(root / "prompts.jsonl", count=64, tokens=32, vocabulary=VOCABULARY)
    tree = config_of(root, policy, reward, prompts)
    sampler = Sampler()
    sampler.start()
    run_system(tree, root / "run", lambda *_: None)
    peaks = sampler.stop(root / "run")
    config = RLConfig.model_validate(tree)
    sizes = sizes_of(config)
    estimates = {role: sum(memory(role, config, sizes).values()) for role in ROLES}
    return peaks, estimates


def main() -> None:
    """Tiny, then larger; their differences."""
    options = arguments(__doc__ or "")
    rows: list[dict[str, Any]] = []
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        base, base_estimate = measure(TINY, Path(name) / "tiny")
        for label, shape in list(SHAPES.items())[: 1 if options.quick else None]:
            peaks, estimates = measure(shape, Path(name) / label)
            for role in ROLES:
                measured, estimated = peaks[role] - base[role], estimates[role] - base_estimate[role]
                ratio = estimated / measured if measured else float("nan")
                rows.append(
                    {
                        "model": label,
                        "actor": role,
                        "libraries MiB": base[role] / 2**20,
                        "measured MiB": measured / 2**20,
                        "estimated MiB": estimated / 2**20,
                        "estimated_over_measured": ratio,
                    }
                )
                figures[f"{role}_estimated_over_measured"] = ratio
    publish("memory", figures, rows, options.json)


if __name__ == "__main__":
    began = time.perf_counter()
    main()
    print(f"{time.perf_counter() - began:.0f} s")
