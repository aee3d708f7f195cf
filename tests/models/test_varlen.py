"""Documents in one row without a mask: equal to one at a time, and refused where a family wants what is not computed."""

import logging
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf_dist.errors import ModelError
from rlhf_dist.models import PolicyModel, load_policy, varlen
from rlhf_dist.models.attention import attention_note, best, kernel_of, with_cache
from rlhf_dist.models.varlen import Band, Documents, NotComputed, attention, band, by_document, by_kernel, problem_of
from rlhf_dist.models.wrapped import RowLayout
from tests.models.families import folder_of
from tests.models.test_proof import COMPANY, check_equal, own_log_probs

GROUPED = ((4, 20), (2, 20), (2, 12))
"""Heads and size of queries, keys and values: grouped, and not of the multiples of 8 that the kernel wants."""
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "family", ["mistral", "gemma3_text", "qwen3", "deepseek_v3", "mixtral", "gpt2", "granite", "nemotron"]
)
def test_log_probs_are_the_models_own_in_any_company_in_either_mode(family: str) -> None:
    """Sliding windows in all layers and in some, grouped heads, values of another size, experts, learnt positions."""
    expected = own_log_probs(family)
    lm = load_policy(str(folder_of(family)), dtype=torch.float32, attention="varlen")
    lm.gradient_checkpointing_enable({"use_reentrant": False})
    model = PolicyModel(lm)
    assert lm.config._attn_implementation == "varlen"
    assert model.layout is (RowLayout.ONE_PER_ROW if family == "nemotron" else RowLayout.ONE_ROW), (
        "nemotron hands nothing on"
    )
    for mode in (False, True):
        model.train(mode)
        for rows in COMPANY:
            check_equal(model, expected, rows)


def test_gradients_are_those_of_masked_attention_with_adapters_and_checkpointing() -> None:
    from rlhf_dist.models import pack
    from tests.models.test_proof import SELECTED, SEQUENCES

    found = []
    for kernel in ("varlen", "sdpa"):
        lm = load_policy(str(folder_of("mistral")), dtype=torch.float32, attention=kernel)
        torch.manual_seed(0)
        inject_adapter_in_model(LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False), lm)
        lm.gradient_checkpointing_enable({"use_reentrant": False})
        model = PolicyModel(lm).train()
        said, entropy, _ = model(pack(SEQUENCES, SELECTED, COMPANY[2]), entropy_grad=True)
        (said.sum() + entropy.sum()).backward()
        found.append({name: each.grad for name, each in model.named_parameters() if each.grad is not None})
    assert len(found[0]) > 10
    for name, grad in found[0].items():
        torch.testing.assert_close(grad, found[1][name], atol=1e-3, rtol=1e-3, msg=name)


@pytest.mark.parametrize(
    ("family", "reason", "taken"),
    [
        ("gemma2", "Gemma2Attention asks for softcap", "sdpa"),
        ("gpt_oss", "GptOssAttention asks for s_aux", "eager"),
        ("llama4_text", "its mask is no causal one (chunked_overlay)", "sdpa"),
        ("doge", "DogeForCausalLM computes attention in its own way", "sdpa"),
        ("gptj", "GPTJForCausalLM computes attention in its own way", "eager"),
    ],
)
def test_what_is_not_computed_is_left_to_a_plainer_kernel_and_said(
    family: str, reason: str, taken: str, caplog: pytest.LogCaptureFixture
) -> None:
    note = attention_note("policy", "a", AutoConfig.from_pretrained(folder_of(family)), "varlen")
    assert note is not None
    assert f"computed by {taken} instead of varlen (learner.attention): {reason}" in note
    with caplog.at_level(logging.WARNING, logger="rlhf_dist"):
        model = load_policy(str(folder_of(family)), dtype=torch.float32, attention="varlen")
    assert model.config._attn_implementation == taken
    (record,) = [each for each in caplog.records if "attention is computed by" in each.message]
    assert reason in vars(record)["reason"]


@pytest.mark.parametrize(
    ("keyword", "value"),
    [("position_bias", torch.ones(1)), ("any_future_keyword", 3), ("dropout", 0.1), ("softcap", 30.0)],
)
def test_no_keyword_is_ignored(keyword: str, value: Any) -> None:
    inputs = [torch.randn(1, 2, 5, 8) for _ in range(3)]
    attention(torch.nn.Identity(), *inputs, Band(), **{keyword: None if keyword != "dropout" else 0.0})
    with pytest.raises(NotComputed, match=f"Identity asks for {keyword}"):
        attention(torch.nn.Identity(), *inputs, Band(), **{keyword: value})
    with pytest.raises(NotComputed, match="makes masks of its own"):
        attention(torch.nn.Identity(), *inputs, None)


def test_padding_caches_and_other_masks_are_not_ignored() -> None:
    from transformers import masking_utils as masks

    causal = masks.causal_mask_function
    ones = torch.ones(1, 4, dtype=torch.bool)
    assert band(1, 4, 4, mask_function=causal, attention_mask=ones) == Band()
    window = masks.sliding_window_causal_mask_function(3)
    assert band(1, 4, 4, mask_function=masks.and_masks(window, causal)) == Band(3)
    with pytest.raises(NotComputed, match="padding"):
        band(1, 4, 4, mask_function=causal, attention_mask=torch.tensor([[False, True, True, True]]))
    with pytest.raises(NotComputed, match="cache"):
        band(1, 1, 4, 3, 0, mask_function=causal)
    for odd in (masks.bidirectional_mask_function, masks.or_masks(causal, window), lambda *_: True):
        with pytest.raises(NotComputed, match="no causal one"):
            band(1, 4, 4, mask_function=odd)


def leaking(query: Any, key: Any, value: Any, documents: Documents, **options: Any) -> torch.Tensor:
    whole = Documents(documents.bounds[[0, -1]], int(documents.bounds[-1]))
    return by_document(query, key, value, whole, **options)


def by_reference(query: Any, key: Any, value: Any, documents: Documents, *, scale: float, window: int | None) -> Any:
    """Scores of all tokens with all, in the words of the definition."""
    place = torch.arange(len(query))
    number = torch.bucketize(place, documents.bounds[1:], right=True)
    behind = place[:, None] - place
    seen = (number[:, None] == number) & (behind >= 0) & (behind < (window or len(place)))
    share = query.shape[1] // key.shape[1]
    k, v = key.repeat_interleave(share, 1), value.repeat_interleave(share, 1)
    scores = torch.einsum("qhd,khd->hqk", query, k) * scale
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)


@pytest.mark.parametrize("windowed", [False, True])
def test_a_kernel_is_tried_against_one_document_at_a_time(windowed: bool) -> None:
    def wider(*args: Any, window: int | None, **options: Any) -> torch.Tensor:
        return by_document(*args, window=None if window is None else window + 1, **options)

    def blind(query: Any, key: Any, value: Any, documents: Documents, **options: Any) -> torch.Tensor:
        return by_document(query, key.detach(), value, documents, **options)

    def absent(*_: Any, **__: Any) -> torch.Tensor:
        raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")

    tried = {"device": CPU, "dtype": torch.bfloat16, "shapes": GROUPED, "windowed": windowed}
    assert problem_of(by_reference, **tried) is None
    assert "differs by" in str(problem_of(leaking, **tried))
    assert (problem_of(wider, **tried) is None) is not windowed
    assert problem_of(blind, **tried) is not None, "its gradients are wrong"
    assert "does not run here: FlashAttention only supports Ampere" in str(problem_of(absent, **tried))


def as_told(query: Any, key: Any, value: Any, bounds: Any, key_bounds: Any, *_: Any, **options: Any) -> torch.Tensor:
    """What torch's documentation says of `varlen_attn`: a window is (tokens before, tokens after); -1 is all."""
    assert bounds is key_bounds
    assert bounds.dtype == torch.int32
    assert query.shape[-1] == key.shape[-1] == value.shape[-1], "flash attention has one size"
    assert query.shape[-1] % 8 == 0
    assert options["enable_gqa"] is (query.shape[1] != key.shape[1])
    before, after = options["window_size"]
    assert after == 0
    window = None if before == -1 else before + 1
    return by_reference(query, key, value, Documents(bounds, 0), scale=options["scale"], window=window)


@pytest.mark.parametrize("windowed", [False, True])
@pytest.mark.parametrize("shapes", [GROUPED, ((2, 64), (2, 64), (2, 64))])
def test_torchs_kernel_is_called_as_its_documentation_says(
    windowed: bool, shapes: tuple[tuple[int, int], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", as_told)
    assert problem_of(by_kernel, CPU, torch.bfloat16, shapes, windowed=windowed) is None


def test_torchs_own_kernel_takes_the_call() -> None:
    """On tensors without memory: names, shapes, kinds of arguments; on a CPU it says that it is not there."""
    with torch.device("meta"):
        inputs = [torch.empty(9, *shape, dtype=torch.bfloat16) for shape in GROUPED]
        documents = Documents(torch.empty(3, dtype=torch.int32), 6)
        assert varlen.attend(*inputs, documents, scale=None, window=4).shape == (9, 4, 12)
    assert "does not run here" in str(problem_of(by_kernel, CPU, torch.bfloat16, GROUPED, windowed=False))


def test_the_proof_finds_neighbours_that_a_kernel_lets_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "by_document", leaking)
    with pytest.raises(ModelError, match=r"changes by .* with the sequences beside it.*Take learner.attention sdpa"):
        PolicyModel(load_policy(str(folder_of("mistral")), dtype=torch.float32, attention="varlen"))


def test_auto_is_what_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder_of("mistral")
    assert best() == "sdpa"
    assert load_policy(str(path), dtype=torch.float32, attention="auto").config._attn_implementation == "sdpa"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert load_policy(str(path), dtype=torch.float32, attention="auto").config._attn_implementation == "varlen"
    kernel = kernel_of(AutoModelForCausalLM, AutoConfig.from_pretrained(folder_of("gemma2")), "auto")
    assert (kernel.name, kernel.wanted) == ("sdpa", "varlen")
    assert [with_cache(asked) for asked in ("auto", "varlen", "eager")] == ["sdpa", "sdpa", "eager"]
