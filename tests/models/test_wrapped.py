"""Packed forward passes against one sequence at a time, in fp32."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from rlhf_dist.data.packing import micro_batches, pack_rows
from rlhf_dist.errors import ModelError
from rlhf_dist.models import PolicyModel, ValueModel, check_folder, check_same_tokenizer, pack
from rlhf_dist.models import heads as models

SHAPE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
RNG = np.random.default_rng(0)
SEQUENCES = [RNG.integers(1, 97, size=n).astype(np.int32) for n in (17, 40, 5, 33, 8)]
SELECTED = [range(2, len(x) - 1) for x in SEQUENCES]


def policy(**options: Any) -> PolicyModel:
    torch.manual_seed(0)
    return PolicyModel(LlamaForCausalLM(LlamaConfig(**SHAPE)), **options)


def rows(width: int) -> list[list[int]]:
    lengths = [len(x) for x in SEQUENCES]
    (micro,) = micro_batches(pack_rows(range(5), lengths, row_tokens=width), lengths, budget=10_000)
    return micro


def one_by_one(model: torch.nn.Module, order: list[int]) -> list[Any]:
    return [model(pack([SEQUENCES[i]], [SELECTED[i]], [[0]])) for i in order]


@pytest.mark.parametrize("width", [40, 64, 120])
def test_packed_log_probs_entropies_and_gradients_equal_unpacked(width: int) -> None:
    micro = rows(width)
    order = [i for row in micro for i in row]
    packed, single = policy(temperature=0.7), policy(temperature=0.7)
    log_probs, entropy, _ = packed(pack(SEQUENCES, SELECTED, micro), entropy_grad=True)
    parts = [single(pack([SEQUENCES[i]], [SELECTED[i]], [[0]]), entropy_grad=True) for i in order]
    torch.testing.assert_close(log_probs, torch.cat([part[0] for part in parts]), atol=1e-5, rtol=0)
    torch.testing.assert_close(entropy, torch.cat([part[1] for part in parts]), atol=1e-5, rtol=0)
    (log_probs.sum() + entropy.sum()).backward()
    sum(part[0].sum() + part[1].sum() for part in parts).backward()
    for (name, a), (_, b) in zip(packed.named_parameters(), single.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-4, rtol=1e-5, msg=name)


@pytest.mark.parametrize("width", [40, 120])
def test_packed_values_and_gradients_equal_unpacked(width: int) -> None:
    def made() -> ValueModel:
        torch.manual_seed(0)
        return ValueModel(LlamaForSequenceClassification(LlamaConfig(**SHAPE, num_labels=1, pad_token_id=0)))

    micro = rows(width)
    packed, single = made(), made()
    values = packed(pack(SEQUENCES, SELECTED, micro))
    expected = torch.cat(one_by_one(single, [i for row in micro for i in row]))
    torch.testing.assert_close(values, expected, atol=1e-5, rtol=0)
    values.sum().backward()
    expected.sum().backward()
    for a, b in zip(packed.parameters(), single.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-4, rtol=1e-5)


def test_score_at_the_last_token_equals_transformers_own_pooling() -> None:
    torch.manual_seed(0)
    classifier = LlamaForSequenceClassification(LlamaConfig(**SHAPE, num_labels=1, pad_token_id=0))
    x = SEQUENCES[0]
    ours = ValueModel(classifier)(pack([x], [range(len(x) - 1, len(x))], [[0]]))
    theirs = classifier(input_ids=torch.from_numpy(x.astype(np.int64))[None]).logits[:, 0]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_log_probs_equal_a_plain_log_softmax_of_transformers_logits() -> None:
    torch.manual_seed(0)
    lm = LlamaForCausalLM(LlamaConfig(**SHAPE))
    x = torch.from_numpy(SEQUENCES[1].astype(np.int64))
    logits = lm(input_ids=x[None]).logits[0] / 0.7
    expected = torch.log_softmax(logits[:-1], -1).gather(1, x[1:, None])[2:, 0]
    found, _, _ = PolicyModel(lm, temperature=0.7)(pack([SEQUENCES[1]], [SELECTED[1]], [[0]]))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_chunked_head_equals_the_whole_head_and_its_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, chunked = policy(), policy()
    batch = pack(SEQUENCES, SELECTED, rows(64))
    outputs = []
    for model, size in ((whole, 2**28), (chunked, 4 * 97 * 7)):
        monkeypatch.setattr(models, "LOGITS_BYTES", size)
        log_probs, entropy, _ = model(batch, entropy_grad=True)
        (log_probs.sum() - 0.3 * entropy.sum()).backward()
        outputs.append(torch.cat([log_probs, entropy]))
    torch.testing.assert_close(*outputs)
    for a, b in zip(whole.parameters(), chunked.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4)


def test_an_empty_micro_batch_has_no_outputs_and_zero_gradients() -> None:
    model = policy(value_head=True)
    log_probs, _, values = model(pack(SEQUENCES, SELECTED, []))
    assert log_probs.shape == values.shape == (0,)
    (log_probs.sum() + values.sum()).backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_model_folders_are_checked_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        check_folder(str(tmp_path / "missing"))
    with pytest.raises(ModelError, match=r"no config.json; expected a Hugging Face model folder"):
        check_folder(str(tmp_path))


def test_tokenizers_that_differ_are_refused_and_both_folders_named(tmp_path: Path) -> None:
    from rlhf_dist.tasks.helpdesk import build_tokenizer

    for name in ("a", "b"):
        tokenizer = build_tokenizer()
        if name == "b":
            tokenizer.add_tokens(["<odd>"])
        tokenizer.save_pretrained(tmp_path / name)
        LlamaConfig(**SHAPE).save_pretrained(tmp_path / name)
    check_same_tokenizer(str(tmp_path / "a"), {"critic": str(tmp_path / "a")})
    with pytest.raises(ModelError, match=r"reward .*/b has another tokenizer than the policy .*/a"):
        check_same_tokenizer(str(tmp_path / "a"), {"reward": str(tmp_path / "b")})


def test_a_value_model_speaks_in_the_units_it_is_given() -> None:
    torch.manual_seed(0)
    classifier = LlamaForSequenceClassification(LlamaConfig(**SHAPE, num_labels=1, pad_token_id=0))
    batch = pack([SEQUENCES[0]], [SELECTED[0]], [[0]])
    with torch.no_grad():
        raw, scaled = ValueModel(classifier)(batch), ValueModel(classifier, shift=2.0, scale=0.5)(batch)
    torch.testing.assert_close(scaled, 0.5 * (raw - 2.0))


def test_a_policy_has_a_value_head_only_where_one_is_asked_for() -> None:
    assert policy().value_head is None
    assert policy()(pack([SEQUENCES[0]], [SELECTED[0]], [[0]]))[2] is None
    assert policy(value_head=True).value_head is not None
