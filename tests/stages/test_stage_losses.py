"""The stages' losses on real small models, against slow versions that score one answer at a time."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from rlhf_dist.data.feedback import Judged
from rlhf_dist.data.judgements import JudgedTokens, judged_set
from rlhf_dist.data.prompts import answer_tokens
from rlhf_dist.learner.example_batch import read_examples
from rlhf_dist.models import PolicyModel, ValueModel
from rlhf_dist.stages.preference_losses import DPOLoss
from rlhf_dist.stages.reward_loss import RewardLoss
from rlhf_dist.tasks.helpdesk import build_tokenizer
from tests.runs import SHAPE

TOKENIZER = build_tokenizer()
JUDGED = [
    Judged("comparisons", "Hi", (" Hello!", " no"), 0.8, "s", "1", margin=0.5),
    Judged("scores", "Hi", (" Good day!",), 0.3, "s", "2"),
    Judged("rankings", "Hey", (" Hello!", " so so", " bad"), 1.0, "s", "3"),
    Judged("comments", "Hey", (" Have a nice day!",), 0.9, "s", "4"),
    Judged("comparisons", "Hey", (" yes", " no no no"), 0.0, "s", "5"),
]
COEFFICIENTS = {"comparisons": 2.0, "scores": 0.5, "comments": 3.0}


def shape(**more: int) -> LlamaConfig:
    return LlamaConfig(**SHAPE, vocab_size=len(TOKENIZER), pad_token_id=0, **more)


def tokens(one: Judged, answer: str) -> tuple[list[int], int]:
    prompt = TOKENIZER(one.prompt)["input_ids"]
    return prompt + answer_tokens(answer, TOKENIZER), len(prompt)


@pytest.mark.parametrize("select", ["last", "answer"])
def test_the_mixed_loss_is_the_sum_of_its_kinds_means(select: Any) -> None:
    torch.manual_seed(0)
    classifier = LlamaForSequenceClassification(shape(num_labels=2)).eval()
    made = judged_set(JUDGED, JudgedTokens(TOKENIZER, max_tokens=64), select=select, coefficients=COEFFICIENTS)
    assert made.table.column("weight").type.list_size == 1

    def reward(one: Judged, answer: str) -> np.ndarray:
        ids, start = tokens(one, answer)
        with torch.no_grad():
            heads = classifier.score(classifier.model(torch.tensor([ids])).last_hidden_state)[0]
        return (heads[-1] if select == "last" else heads[start:].mean(0)).double().numpy()

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    parts: dict[str, list[float]] = {kind: [] for kind in ("comparisons", "scores", "rankings", "comments")}
    for one in JUDGED:
        r = [reward(one, answer) for answer in one.answers]
        if one.kind == "comparisons":
            d = 1.5 * (r[0] - r[1])
            ce = -one.label * np.log(sigmoid(d - one.margin)) - (1 - one.label) * np.log(sigmoid(-d - one.margin))
            loss = ce + 0.1 * (r[0] + r[1]) ** 2
        elif one.kind == "rankings":
            e = [np.exp(1.5 * each) for each in r]
            loss = -sum(np.log(e[i] / sum(e[i:])) for i in range(len(e)))
        else:
            loss = (sigmoid(r[0]) - one.label) ** 2
        parts[one.kind].append(float(np.mean(loss)))
    expected = sum(COEFFICIENTS.get(kind, 1.0) * np.mean(values) for kind, values in parts.items())

    order = [row for unit in made.units for row in unit]
    batch = read_examples(made.table, [made.units[0] + made.units[2], made.units[1] + made.units[3], made.units[4]])
    total, facts = RewardLoss(1.5, True, 0.1)(ValueModel(classifier), batch)
    assert sorted(order) == list(range(made.table.num_rows))
    assert total.item() / len(made.units) == pytest.approx(expected, rel=1e-4)
    for kind, values in parts.items():
        assert facts[f"{kind}/units"] == len(values)
        assert facts[f"{kind}/loss"] == pytest.approx(sum(values), rel=1e-4), kind


def test_an_empty_micro_batch_takes_part_with_a_loss_of_nothing() -> None:
    made = judged_set(JUDGED, JudgedTokens(TOKENIZER, max_tokens=64), select="last")
    model = ValueModel(LlamaForSequenceClassification(shape(num_labels=1)))
    total, facts = RewardLoss(1.0, False, 0.0)(model, read_examples(made.table, []))
    total.backward()
    assert total.item() == 0.0
    assert not any(facts.values())


def test_each_head_of_an_ensemble_sees_a_resample_of_its_own() -> None:
    many = [Judged("scores", "Hi", (f" {n}",), 0.5, "s", str(n)) for n in range(400)]
    made = judged_set(many, JudgedTokens(TOKENIZER, max_tokens=64), select="last", heads=4, seed=1)
    weights = np.array(made.table.column("weight").to_pylist())
    assert weights.shape == (400, 4)
    np.testing.assert_allclose(weights.mean(0), 1.0, atol=0.15)
    assert abs(np.corrcoef(weights.T)[0, 1]) < 0.15


@pytest.mark.parametrize("kind", ["sigmoid", "ipo"])
def test_dpo_losses_compare_policy_and_reference_on_the_answers_alone(kind: str) -> None:
    torch.manual_seed(0)
    lm = LlamaForCausalLM(shape()).eval()
    pairs = [one for one in JUDGED if one.kind == "comparisons"]
    made = judged_set(pairs, JudgedTokens(TOKENIZER, max_tokens=64), select="before")
    reference = np.linspace(-6.5, -5.0, made.table.num_rows).astype(np.float32)

    def log_prob(one: Judged, answer: str) -> tuple[float, int]:
        ids, start = tokens(one, answer)
        with torch.no_grad():
            logs = torch.log_softmax(lm(torch.tensor([ids])).logits[0].double(), -1)
        return float(sum(logs[t - 1, ids[t]] for t in range(start, len(ids)))), len(ids) - start

    expected = 0.0
    for number, one in enumerate(pairs):
        ratios = []
        for side, answer in enumerate(one.answers):
            total, count = log_prob(one, answer)
            mean = total / count - float(reference[2 * number + side])
            ratios.append(mean if kind == "ipo" else mean * count)
        h, y = ratios[0] - ratios[1], one.label
        if kind == "ipo":
            expected += y * (h - 5.0) ** 2 + (1 - y) * (h + 5.0) ** 2
        else:
            expected += y * math.log1p(math.exp(-0.1 * h)) + (1 - y) * math.log1p(math.exp(0.1 * h))

    batch = read_examples(made.table, [made.units[0], made.units[1]])
    batch.targets["reference"] = torch.from_numpy(reference)
    total, _ = DPOLoss(0.1, kind, 0.0)(PolicyModel(lm), batch)
    assert total.item() == pytest.approx(expected, rel=1e-4)
