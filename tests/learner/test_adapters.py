"""What cannot be adapted. Adapters merged: test_published.py."""

import pytest
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from rlhf_dist.config import Lora
from rlhf_dist.errors import ConfigError
from rlhf_dist.learner.adapters import adapt
from tests.learner.test_policy_update import SHAPE


def test_what_cannot_be_adapted_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"lora.targets is \['nowhere'\]"):
        adapt(LlamaForCausalLM(LlamaConfig(**SHAPE)), Lora(targets=("nowhere",)))
    for end in ("embed_tokens", "lm_head"):
        with pytest.raises(ConfigError, match="input and output embeddings are one tensor"):
            adapt(LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True)), Lora(targets=(end, "q_proj")))
    with pytest.raises(ConfigError, match="Conv1D"):
        adapt(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=61)), Lora())
