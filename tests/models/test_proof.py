"""Models of odd families against their own forward: right, remedied, or refused in a sentence; and the proof itself."""

import logging
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from benchmarks.small_models import VOCABULARY
from rlhf_dist.errors import ModelError
from rlhf_dist.models import PolicyModel, ValueModel, load_policy, load_value_model, pack
from rlhf_dist.models import heads as heads_room
from rlhf_dist.models.heads import OwnFinish
from rlhf_dist.models.proof import apart
from rlhf_dist.models.wrapped import RowLayout
from tests.models.families import folder_of
from tests.models.test_wrapped import SHAPE

RNG = np.random.default_rng(1)
SEQUENCES = [RNG.integers(3, VOCABULARY, size=n).astype(np.int32) for n in (15, 6, 10)]
SELECTED = [range(len(tokens) - 1) for tokens in SEQUENCES]
COMPANY = ([[0], [1], [2]], [[0, 2, 1]], [[2, 1], [0]])
FINISHES = ("cohere2", "falcon_h1", "granitemoeshared", "hunyuan_v1_dense", "minicpm3", "recurrent_gemma", "vaultgemma")
"""Families that scale, cap or divide hidden states or logits, each in its own words."""
APART = ("bamba", "bloom", "falcon_mamba", "gptj", "xglm", "mamba", "lfm2")
"""Families that know no packed rows: recurrence, alibi, positions of their own; and one with positions per row."""


def own_log_probs(family: str) -> list[torch.Tensor]:
    lm = AutoModelForCausalLM.from_pretrained(
        folder_of(family), dtype=torch.float32, attn_implementation="eager"
    ).eval()
    found = []
    for tokens in SEQUENCES:
        ids = torch.from_numpy(tokens).long()
        with torch.no_grad():
            log_probs = torch.log_softmax(lm(input_ids=ids[None]).logits[0, :-1].float(), -1)
        found.append(log_probs.gather(-1, ids[1:, None])[:, 0])
    return found


def check_equal(model: Any, expected: list[torch.Tensor], rows: list[list[int]]) -> None:
    order = [number for row in rows for number in row]
    with torch.no_grad():
        said = model(pack(SEQUENCES, SELECTED, rows))[0]
    torch.testing.assert_close(said, torch.cat([expected[number] for number in order]), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("family", [*FINISHES, *APART])
def test_log_probs_are_the_models_own_in_any_company_in_either_mode(family: str) -> None:
    expected = own_log_probs(family)
    model = PolicyModel(load_policy(str(folder_of(family)), dtype=torch.float32))
    for mode in (False, True, True):
        model.train(mode)
        for rows in COMPANY:
            check_equal(model, expected, rows)


@pytest.mark.parametrize("family", FINISHES)
def test_without_the_models_own_finish_its_head_is_refused(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes the test above mean something: the plain head is wrong for each of these families."""
    if family == "hunyuan_v1_dense":
        return  # nothing between head and logits: its oddity is in the attention
    monkeypatch.setattr(OwnFinish, "of", classmethod(lambda cls, lm: cls()))
    with pytest.raises(ModelError, match=r"differs from its own forward by .*another family"):
        PolicyModel(load_policy(str(folder_of(family)), dtype=torch.float32))


@pytest.mark.parametrize("pieces", [1, 3])
def test_the_own_finish_holds_in_pieces_with_its_gradients(pieces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    family = "recurrent_gemma"
    model = PolicyModel(load_policy(str(folder_of(family)), dtype=torch.float32))
    monkeypatch.setattr(heads_room, "LOGITS_BYTES", 4 * VOCABULARY * len(SELECTED[0]) // pieces)
    said = model(pack([SEQUENCES[0]], [SELECTED[0]], [[0]]), entropy_grad=True)
    (said[0].sum() + said[1].sum()).backward()
    lm = AutoModelForCausalLM.from_pretrained(folder_of(family), dtype=torch.float32).eval()
    ids = torch.from_numpy(SEQUENCES[0]).long()
    log_probs = torch.log_softmax(lm(input_ids=ids[None]).logits[0, :-1], -1)
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    torch.testing.assert_close(said[1], entropy, atol=1e-4, rtol=1e-5)
    (log_probs.gather(-1, ids[1:, None]).sum() + entropy.sum()).backward()
    own = dict(lm.named_parameters())
    for name, parameter in model.lm.named_parameters():
        torch.testing.assert_close(parameter.grad, own[name].grad, atol=1e-3, rtol=1e-3, msg=name)


@pytest.mark.parametrize("family", APART)
def test_a_remedy_is_logged_and_rows_are_planned_for_it(family: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="rlhf_dist"):
        model = PolicyModel(load_policy(str(folder_of(family)), dtype=torch.float32))
    if family == "gptj":
        assert model.layout is RowLayout.PACKED, "it reads position ids, by eager attention alone"
        assert "attention is computed by eager" in caplog.text
        return
    assert model.layout is RowLayout.ONE_PER_ROW
    assert "sequences do not share rows" in caplog.text
    assert model.layout.row_tokens(0, 4096) == 1


def test_a_leak_shows_though_new_weights_hide_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fresh model's attention hardly counts; the gradient that reaches a neighbour is not zero all the same."""
    from benchmarks import small_models

    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(small_models.small_config("jamba"))
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.mul_(0.5)
    assert PolicyModel(lm.eval()).layout is RowLayout.ONE_PER_ROW


@pytest.mark.parametrize("family", ["xlm", "xlnet"])
def test_a_model_that_sees_what_is_to_come_is_refused(family: str) -> None:
    with pytest.raises(
        ModelError, match=r"changes by .* with the tokens after it; expected a model that reads from left"
    ):
        PolicyModel(load_policy(str(folder_of(family)), dtype=torch.float32))


@pytest.mark.parametrize("family", ["electra", "roberta"])
def test_a_head_that_does_more_than_this_system_follows_is_refused(family: str) -> None:
    with pytest.raises(ModelError, match="another family of models"):
        PolicyModel(load_policy(str(folder_of(family)), dtype=torch.float32))


@pytest.mark.parametrize("family", ["biogpt", "phimoe", "xglm", "gpt_neo"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_draws_nothing_also_where_activations_are_computed_anew(family: str, checkpointing: bool) -> None:
    """Dropout as a function, layer drop, router jitter: whatever the config turns on."""
    lm = load_policy(str(folder_of(family)), dtype=torch.float32)
    for module in lm.modules():
        for name, value in vars(module).items():
            if isinstance(value, float) and "drop" in name:
                setattr(module, name, 0.3)
    if checkpointing:
        lm.gradient_checkpointing_enable({"use_reentrant": False})
    model = PolicyModel(lm).train()
    batch = pack(SEQUENCES, SELECTED, COMPANY[0])
    first, second = (model(batch)[0] for _ in range(2))
    assert torch.equal(first, second)
    torch.testing.assert_close(first, torch.cat(own_log_probs(family)), atol=1e-4, rtol=1e-5)
    first.sum().backward()
    assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_adapters_keep_their_own_dropout_in_training() -> None:
    from rlhf_dist.config import Lora
    from rlhf_dist.learner.adapters import adapt

    torch.manual_seed(0)
    lm = LlamaForCausalLM(LlamaConfig(**SHAPE))
    adapt(lm, Lora(rank=4, dropout=0.5))
    model = PolicyModel(lm)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    batch = pack([SEQUENCES[1] % 97], [SELECTED[1]], [[0]])
    first, second = (model.train()(batch)[0] for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(model.eval()(batch)[0], model.eval()(batch)[0])


@pytest.mark.parametrize("family", ["gemma2", "mistral", "phi3", "qwen3", "opt", "gpt_neox", "jamba"])
def test_scores_are_the_classifiers_own_in_any_company(family: str) -> None:
    from transformers import AutoModelForSequenceClassification

    path = folder_of(family, "reward")
    own = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()
    ids = [torch.from_numpy(tokens).long()[None] for tokens in SEQUENCES]
    with torch.no_grad():
        expected = [own(input_ids=each, attention_mask=torch.ones_like(each)).logits[0].mean() for each in ids]
        model = ValueModel(load_value_model(str(path), dtype=torch.float32)).train()
        last = [range(len(tokens) - 1, len(tokens)) for tokens in SEQUENCES]
        for rows in COMPANY:
            said = model(pack(SEQUENCES, last, rows))
            torch.testing.assert_close(
                said, torch.stack([expected[number] for row in rows for number in row]), atol=1e-4, rtol=0
            )


def test_scalar_heads_compute_in_fp32_whatever_the_model_does() -> None:
    path = str(folder_of("mistral", "reward"))
    model = ValueModel(load_value_model(path, dtype=torch.bfloat16))
    batch = pack(SEQUENCES, SELECTED, [[0], [1], [2]])
    with torch.no_grad():
        hidden = model.selected_hidden(batch).hidden
        assert hidden.dtype == torch.bfloat16
        expected = hidden.double() @ model.classifier.score.weight.double().T
        said = model(batch, all_heads=True)
    assert said.dtype == torch.float32
    torch.testing.assert_close(said.double(), expected, atol=1e-6, rtol=1e-6)
    policy = PolicyModel(load_policy(str(folder_of("mistral")), dtype=torch.bfloat16), value_head=True)
    with torch.no_grad():
        policy.value_head.weight.normal_()
        values = policy(batch)[2]
        hidden = policy.selected_hidden(batch).hidden
    expected = (hidden.double() @ policy.value_head.weight.double().T)[:, 0]
    torch.testing.assert_close(values.double(), expected, atol=1e-5, rtol=1e-6)


def test_a_model_whose_neighbours_change_it_in_any_layout_is_refused() -> None:
    """As ropes do that choose frequencies by the longest sequence of a batch; here, a norm over the whole batch."""
    torch.manual_seed(0)
    lm = LlamaForCausalLM(LlamaConfig(**SHAPE))
    norm = lm.model.norm.forward
    lm.model.norm.forward = lambda hidden: norm(hidden) / hidden.abs().mean()
    with pytest.raises(ModelError, match=r"changes by .* with the (sequences beside it|tokens after it)"):
        PolicyModel(lm)


def test_a_model_that_stays_random_in_training_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from rlhf_dist.models.wrapped import WrappedModel

    monkeypatch.setattr(WrappedModel, "train", torch.nn.Module.train)
    lm = load_policy(str(folder_of("biogpt")), dtype=torch.float32)
    with pytest.raises(ModelError, match=r"in training mode differs from evaluation mode by .*all dropout off"):
        PolicyModel(lm)


@pytest.mark.parametrize("family", ["llama4_text", "deepseek_v4", "minimax_m3_vl_text"])
def test_blocks_by_place_may_be_longer_than_any_trial(family: str) -> None:
    """Layers that cut a row into blocks: a sequence must begin where its row does, however short the proof's are."""
    model = PolicyModel(load_policy(str(folder_of(family)), dtype=torch.float32))
    assert model.layout is RowLayout.ONE_PER_ROW


def test_tolerance_has_the_digits_of_what_is_compared() -> None:
    theirs = torch.tensor([20.0, -0.5, -torch.inf])
    assert apart(theirs + torch.tensor([0.0, 0.2, 0.0]), theirs) == pytest.approx(0.01)
    assert apart(torch.tensor([20.0, -0.5, 3.0]), theirs) == torch.inf
    assert apart(theirs[:2], theirs) == torch.inf
    assert apart(torch.tensor([0.1, torch.nan]), torch.tensor([0.0, 0.0])) == torch.inf


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_rounding_in_bf16_is_no_leak(scale: float) -> None:
    """Rewards of any size keep their packed rows."""
    classifier = load_value_model(str(folder_of("qwen3", "reward")), dtype=torch.bfloat16)
    with torch.no_grad():
        classifier.score.weight.mul_(scale)
    assert ValueModel(classifier).layout is RowLayout.PACKED
