"""Model folders with random weights, and prompts of random tokens, for benchmarks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast


def write(root: Path, config: Any, *, dtype: torch.dtype = torch.float32) -> tuple[Path, Path]:
    """A policy and a reward model of one shape, with a tokenizer of whole words `t0`, `t1`, ...; their folders."""
    words = {"<pad>": 0, "<eos>": 1, **{f"t{number}": number for number in range(2, config.vocab_size)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    config.pad_token_id, config.eos_token_id, config.bos_token_id = 0, 1, None
    torch.manual_seed(0)
    policy, reward = root / "policy", root / "reward"
    AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(policy)
    config.num_labels = 1
    AutoModelForSequenceClassification.from_config(config, dtype=dtype).save_pretrained(reward)
    for folder in (policy, reward):
        fast.save_pretrained(folder)
    return policy, reward


def write_prompts(file: Path, *, count: int, tokens: int, vocabulary: int) -> Path:
    """Prompts of exactly `tokens` random words."""
    rng = np.random.default_rng(0)
    lines = [" ".join(f"t{t}" for t in rng.integers(2, vocabulary, size=tokens)) for _ in range(count)]
    file.write_text("".join(json.dumps({"prompt": line}) + "\n" for line in lines))
    return file
