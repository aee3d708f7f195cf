"""What cannot be adapted. Adapters merged: test_published.py."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from rlhf_dist.config import Lora
from rlhf_dist.errors import ConfigError, ModelError
from rlhf_dist.learner.adapters import adapt, without_adapters
from rlhf_dist.models import load_policy
from tests.learner.test_policy_update import SHAPE
from tests.models.families import folder_of


def test_what_cannot_be_adapted_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"lora.targets is \['nowhere'\]"):
        adapt(LlamaForCausalLM(LlamaConfig(**SHAPE)), Lora(targets=("nowhere",)))
    for end in ("embed_tokens", "lm_head"):
        with pytest.raises(ConfigError, match="input and output embeddings are one tensor"):
            adapt(LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True)), Lora(targets=(end, "q_proj")))
    with pytest.raises(ConfigError, match="Conv1D"):
        adapt(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=61)), Lora())


@pytest.mark.parametrize("family", ["llama4_text", "qwen2_moe", "dbrx", "deepseek_v3"])
def test_a_family_some_of_whose_layers_no_adapter_reaches_is_refused_where_all_are_asked_for(family: str) -> None:
    """Stacked experts without a way into peft, and linear layers that it takes for some of them."""
    lm = load_policy(str(folder_of(family)), dtype=torch.float32)
    with pytest.raises(ConfigError, match=r"do not reach [0-9]+ layers of .*(experts|mlp).* would stay as they are"):
        adapt(lm, Lora(rank=2))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["mistral", "qwen3_moe"])
def test_without_its_adapters_a_model_says_what_it_said_before_and_with_them_it_learns_on(
    family: str, checkpointing: bool
) -> None:
    lm = load_policy(str(folder_of(family)), dtype=torch.float32).train()
    ids = torch.arange(3, 15)[None]
    with pytest.raises(ModelError, match="has no adapters"), without_adapters(lm):
        pass
    with torch.no_grad():
        before = lm(ids).logits
    adapt(lm, Lora(rank=2))
    for name, parameter in lm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    if checkpointing:
        lm.gradient_checkpointing_enable({"use_reentrant": False})
    trained = {name for name, parameter in lm.named_parameters() if parameter.requires_grad}
    own = lm(ids).logits
    with torch.no_grad(), without_adapters(lm):
        assert torch.equal(lm(ids).logits, before)
    own.sum().backward()
    assert (own - before).abs().max() > 1e-3
    assert {name for name, parameter in lm.named_parameters() if parameter.grad is not None} == trained
