"""A tiny RL run as its users start it, a process of its own, for benchmarks of what goes on around the numbers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

SHAPE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
VOCABULARY = 512


def config_file(root: Path, *, iterations: int, **changes: Any) -> Path:
    """Models, prompts and config of a run in `root/run`; returns the config's file."""
    from random_models import write, write_prompts
    from transformers import LlamaConfig

    from rlhf_dist.config import RLConfig, dump

    llama = LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=64, **SHAPE)
    policy, reward = write(root, llama)
    tree = {
        "policy": str(policy),
        "reward": str(reward),
        "prompts": {
            "path": str(write_prompts(root / "prompts.jsonl", count=256, tokens=8, vocabulary=VOCABULARY)),
            "max_tokens": 16,
        },
        "run_dir": str(root / "run"),
        "rl": {"iterations": iterations, "prompts_per_iteration": 8, "epochs": 2, "mini_batches": 2},
        "rollout": {"engine": "transformers", "samples_per_prompt": 2, "max_new_tokens": 12, "max_concurrent": 16},
        "learner": {"zero_stage": 0, "threads": 1, "micro_batch_tokens": 512, "policy": {"lr": 1e-4}},
        **changes,
    }
    file = root / "rl.yaml"
    file.write_text(dump(RLConfig.model_validate(tree)))
    return file


def started(file: Path, run_dir: Path, *options: str) -> subprocess.Popen[bytes]:
    """The run, begun; what it says goes to `said.txt` beside its folder."""
    command = [sys.executable, "-m", "rlhf_dist.cli", "rl", str(file), "--run-dir", str(run_dir), *options]
    with run_dir.with_suffix(".txt").open("ab") as said:
        return subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, start_new_session=True)
