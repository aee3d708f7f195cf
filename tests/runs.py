"""Tiny models with random weights, and runs on the real Ray, vLLM and DeepSpeed."""

import json
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from rlhf_dist.config import RLConfig
from rlhf_dist.run_folder.console import Console
from rlhf_dist.run_folder.rl_folder import RLFolder
from rlhf_dist.stages.rl import prepare, run
from rlhf_dist.tasks.helpdesk import build_tokenizer, train_prompts

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
}


def overrides(settings: dict[str, object]) -> list[str]:
    """Settings as arguments of the command line."""
    return [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]


class Folders:
    """Model folders and a prompt file."""

    def __init__(self, root: Path) -> None:
        tokenizer = build_tokenizer()
        self.policy, self.experts, self.reward = (root / name for name in ("policy", "experts", "reward"))
        shared = {**SHAPE, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**shared, eos_token_id=tokenizer.eos_token_id)).save_pretrained(self.policy)
        experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 32}
        tied = Qwen3MoeConfig(**shared, **experts, eos_token_id=tokenizer.eos_token_id, tie_word_embeddings=True)
        Qwen3MoeForCausalLM(tied).save_pretrained(self.experts)
        LlamaForSequenceClassification(LlamaConfig(**shared, num_labels=1)).save_pretrained(self.reward)
        for folder in (self.policy, self.experts, self.reward):
            tokenizer.save_pretrained(folder)
        self.prompts = root / "prompts.jsonl"
        chosen = random.Random(0).sample(train_prompts(), 64)
        rows = [{"prompt": prompt, "place": place} for place, prompt in enumerate(chosen)]
        self.prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def config(self, **changes: object) -> RLConfig:
        """A run of two short iterations; `changes` replace whole sections' keys."""
        tree = {
            "policy": str(self.policy),
            "reward": str(self.reward),
            "prompts": {"path": str(self.prompts), "max_tokens": 40},
            "rl": {"iterations": 2, "prompts_per_iteration": 8, "epochs": 2, "mini_batches": 2},
            "rollout": {"max_new_tokens": 12, "max_concurrent": 16, "samples_per_prompt": 2},
            "learner": {
                "micro_batch_tokens": 512,
                "threads": 1,
                "zero_stage": 0,
                "policy": {"lr": 1e-3, "warmup": 0},
                "value": {"lr": 1e-3, "warmup": 0},
            },
            "weights": {"probe_every": 1},
            "experience": {"keep": True},
            "timeouts": {"batch": 120, "update": 120, "publish": 60, "start": 240},
        }
        for key, value in changes.items():
            tree[key] = {**tree[key], **value} if isinstance(value, dict) and key in tree else value
        return RLConfig.model_validate(tree)


def train(config: RLConfig, path: Path, *, resume: bool = False) -> Path:
    """A whole RL run on real parts; returns the run folder. In a shared session no two runs' folders share a name."""
    prepared = prepare(config, resume=path if resume else None)
    run(config, prepared, RLFolder(path, config, console=Console()))
    return path


def log_lines(run: Path, actor: str) -> list[dict[str, Any]]:
    """What an actor of a run has logged so far, whole lines only."""
    file = run / "logs" / f"{actor}.jsonl"
    return [json.loads(line) for line in file.read_text().split("\n")[:-1]] if file.exists() else []


def metrics(path: Path) -> list[dict[str, float]]:
    """What a run recorded, without what depends on the clock."""
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(("timing_s/", "perf/"))} for row in rows]


@contextmanager
def small_disk(at: Path, *, kib: int) -> Iterator[None]:
    """A file system of its own, as CI's root may mount it."""
    at.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(at)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True)
