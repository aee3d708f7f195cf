"""Adapters merged by us and by peft, and what cannot be adapted."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from rlhf_dist.config import Lora
from rlhf_dist.errors import ConfigError
from rlhf_dist.learner.adapters import adapt, merged
from tests.learner.test_ppo import SHAPE


def test_merged_weights_say_what_the_adapted_model_says() -> None:
    torch.manual_seed(0)
    lora = Lora(rank=2, alpha=6)
    adapted = LlamaForCausalLM(LlamaConfig(**SHAPE))
    names = set(adapted.state_dict())
    adapt(adapted, lora)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    plain = LlamaForCausalLM(LlamaConfig(**SHAPE))
    weights = merged(adapted.state_dict(), lora)
    assert set(weights) == names
    plain.load_state_dict(weights)
    ids = torch.arange(12)[None]
    torch.testing.assert_close(plain(ids).logits, adapted(ids).logits, atol=1e-5, rtol=1e-5)


def test_what_cannot_be_adapted_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"lora.targets is \['nowhere'\]"):
        adapt(LlamaForCausalLM(LlamaConfig(**SHAPE)), Lora(targets=("nowhere",)))
    with pytest.raises(ConfigError, match="Conv1D"):
        adapt(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=61)), Lora())
