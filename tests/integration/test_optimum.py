"""The whole system finds the analytic optimum of E r - beta KL: pi* in proportion to pi_ref exp(r / beta)."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlhf_dist.config import RLConfig
from tests.runs import train

pytestmark = pytest.mark.usefixtures("ray_session")

WORDS = ["<pad>", "<bos>", "<eos>", "a", "b", "c", "d"]
EOS, BETA, LONGEST = 2, 0.5, 2
PROMPT = "a b"


def reward(prompt: str, answer: str) -> float:
    """A table of rewards in [-1, 1] for every answer that there is."""
    return math.cos(1.7 * len(answer) + sum((n + 1) * ord(letter) for n, letter in enumerate(answer)))


def answers() -> list[tuple[int, ...]]:
    """Every answer: it ends with <eos>, or at the longest length."""
    firsts = range(len(WORDS))
    return [(EOS,), *((a, b) for a, b in itertools.product(firsts, firsts) if a != EOS)]


@torch.no_grad()
def distribution(folder: Path, tokenizer: Any) -> torch.Tensor:
    """Probability of each answer, float64."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    prompt = tokenizer(PROMPT)["input_ids"]
    found = []
    for answer in answers():
        logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        found.append(torch.log_softmax(logits, -1)[range(len(answer)), list(answer)].sum())
    return torch.stack(found).exp()


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("optimum")
    words = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")
    shape: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(WORDS), max_position_embeddings=16, eos_token_id=EOS, pad_token_id=0, **shape)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(8)
    model.save_pretrained(root / "policy")
    tokenizer.save_pretrained(root / "policy")
    (root / "prompts.jsonl").write_text(f'{{"prompt": "{PROMPT}"}}\n' * 64)
    return root


@pytest.mark.parametrize("method", ["rloo", "ppo"])
def test_the_optimum_is_reached_through_the_whole_system(method: str, start: Path, tmp_path: Path) -> None:
    critic = {"critic": "value_head"} if method == "ppo" else {}
    optimizer = {"lr": 4e-3, "warmup": 0, "schedule": "linear", "max_grad_norm": 10.0}
    config = RLConfig.model_validate(
        {
            "policy": str(start / "policy"),
            "reward": f"{__name__}:reward",
            "prompts": {"path": str(start / "prompts.jsonl"), "max_tokens": 4},
            "algorithm": {"method": method, "kl_coef": BETA},
            "rl": {"iterations": 20, "prompts_per_iteration": 64},
            "rollout": {
                "engine": "transformers",
                "samples_per_prompt": 8,
                "max_new_tokens": LONGEST,
                "max_concurrent": 512,
            },
            "learner": {"zero_stage": 0, "threads": 1, "policy": optimizer, **critic},
        }
    )
    run = train(config, tmp_path / method)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(start / "policy")
    before, after = (distribution(folder, tokenizer) for folder in (start / "policy", run / "policy"))
    rewards = [reward(PROMPT, tokenizer.decode(answer, skip_special_tokens=True)) for answer in answers()]
    optimum = torch.softmax(before.log() + torch.tensor(rewards, dtype=torch.float64) / BETA, 0)
    assert float(before.sum()) == pytest.approx(1.0)
    far, near = (float((each - optimum).abs().sum() / 2) for each in (before, after))
    assert far > 0.3
    assert near <= 0.1
