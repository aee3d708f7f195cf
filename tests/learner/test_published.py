"""Weights as they leave the learner, from a model whose parameters may be looked at inside `gathered` only, as under ZeRO-3."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_dist.config import Lora
from rlhf_dist.learner import published as room
from rlhf_dist.learner.adapters import adapt
from rlhf_dist.learner.finite import odd_tensors
from rlhf_dist.learner.published import Merged, Whole, collected, published
from tests.learner.test_policy_update import SHAPE


class Sharded:
    """`TrainedModel`'s contract under ZeRO-3, on one process."""

    zero_stage, device = 3, torch.device("cpu")

    def __init__(self, lm: LlamaForCausalLM, lora: Lora | None = None) -> None:
        self.hugging_face, self.lora = lm, lora
        self.gatherings: list[int] = []
        """Elements of each gathering."""
        self._named, self._whole = dict(lm.named_parameters()), set[str]()

    def shapes(self) -> list[tuple[str, torch.Size]]:
        return [(name, parameter.shape) for name, parameter in self._named.items()]

    @contextmanager
    def gathered(self, names: Sequence[str]) -> Iterator[None]:
        self._whole = set(names)
        self.gatherings.append(sum(self._named[name].numel() for name in self._whole))
        yield
        self._whole = set()

    def tensors(self, names: Sequence[str]) -> list[tuple[str, torch.Tensor]]:
        assert set(names) <= self._whole, "looked at outside of `gathered`"
        return [(name, self._named[name].data) for name in names]


def llama(**options: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE, **options))


def adapted(lora: Lora, **options: Any) -> Sharded:
    lm = llama(**options)
    adapt(lm, lora)
    for name, parameter in lm.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return Sharded(lm, lora)


def everything(weights: Any, **options: Any) -> dict[str, torch.Tensor]:
    return collected(weights, [name for name, _ in weights.shapes()], dtype=torch.float32, keep=True, **options)


@pytest.mark.parametrize("options", [{}, {"tie_word_embeddings": True}, {"attention_bias": True, "mlp_bias": True}])
@pytest.mark.parametrize("targets", [("all-linear",), ("q_proj", "down_proj"), ("embed_tokens", "lm_head", "v_proj")])
def test_merged_weights_say_what_the_adapted_model_says_under_its_own_names(options: dict, targets: tuple) -> None:
    if options.get("tie_word_embeddings") and "lm_head" in targets:
        return  # refused: test_adapters.py
    model = adapted(Lora(rank=2, alpha=6, targets=targets), **options)
    weights = published(model)
    assert isinstance(weights, Merged)
    plain = llama(**options)
    assert [name for name, _ in weights.shapes()] == [name for name, _ in plain.named_parameters()]
    assert dict(weights.shapes()) == {name: parameter.shape for name, parameter in plain.named_parameters()}
    plain.load_state_dict(everything(weights), strict=not options.get("tie_word_embeddings"))
    ids = torch.arange(12)[None]
    torch.testing.assert_close(plain(ids).logits, model.hugging_face(ids).logits, atol=1e-5, rtol=1e-5)


def test_a_whole_model_is_published_as_it_is() -> None:
    model = Sharded(llama())
    weights = published(model)
    assert isinstance(weights, Whole)
    for name, tensor in everything(weights).items():
        assert torch.equal(tensor, dict(model.hugging_face.named_parameters())[name])


@pytest.mark.parametrize("lora", [None, Lora(rank=2)])
def test_no_more_than_a_bucket_is_ever_whole_and_only_who_keeps_has_copies(
    lora: Lora | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "SAVED_BUCKET_BYTES", 4 * 4096)
    model = Sharded(llama()) if lora is None else adapted(lora)
    names = [name for name, _ in published(model).shapes()]
    assert collected(published(model), names, dtype=torch.float32, keep=False) == {}
    adapters = sum(p.numel() for name, p in model.hugging_face.named_parameters() if ".lora_" in name)
    assert len(model.gatherings) > 2
    assert max(model.gatherings) <= 4096 + adapters
    kept = collected(published(model), names, dtype=torch.bfloat16, keep=True)
    assert list(kept) == names
    assert {tensor.dtype for tensor in kept.values()} == {torch.bfloat16}
    before = {name: tensor.clone() for name, tensor in kept.items()}
    for parameter in model.hugging_face.parameters():
        parameter.data.zero_()
    assert all(torch.equal(kept[name], before[name]) for name in names), "copies, not views"


def test_large_weights_are_finite_though_their_sum_is_not() -> None:
    assert odd_tensors([("large", torch.full((4,), 3e38)), ("whole", torch.ones(2, dtype=torch.int64))]) == []
