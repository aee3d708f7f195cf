"""KTO's loss on a real small model, with a reference point over all of a step."""

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_dist.config import DPOConfig
from rlhf_dist.data.examples import ExampleSet
from rlhf_dist.data.feedback import Judged
from rlhf_dist.data.judgements import JudgedTokens, judged_set
from rlhf_dist.data.unpaired import unpaired, with_mismatched
from rlhf_dist.learner.example_batch import read_examples
from rlhf_dist.models import PolicyModel
from rlhf_dist.stages.kto import KTOLoss
from rlhf_dist.tasks.helpdesk import build_tokenizer
from tests.runs import SHAPE

TOKENIZER = build_tokenizer()
JUDGED = [
    Judged("comparisons", "Hi", (" Hello!", " no"), 0.8, "s", "1"),
    Judged("scores", "Hi", (" Good day!",), 1.0, "s", "2"),
    Judged("comparisons", "Hey", (" yes", " no no no"), 0.0, "s", "3"),
]
CONFIG = DPOConfig(model="m", loss="kto", beta=0.3)


@pytest.fixture(scope="module")
def lm() -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE, vocab_size=len(TOKENIZER), pad_token_id=0)).eval()


@pytest.fixture
def answers() -> ExampleSet:
    """Five answers, an odd number, with what a reference thinks of them."""
    made = judged_set(unpaired(JUDGED, desirable_above=0.5), JudgedTokens(TOKENIZER, max_tokens=64), select="before")
    made = with_mismatched(made, seed=0)
    reference = pa.array(np.linspace(-8.0, -6.5, made.table.num_rows).astype(np.float32))
    return replace(made, table=made.table.append_column("reference", reference))


def log_ratio(lm: Any, row: dict[str, Any]) -> float:
    """Of one sequence alone, in float64."""
    ids, positions = row["tokens"], row["selected"]
    with torch.no_grad():
        logs = torch.log_softmax(lm(torch.tensor([ids])).logits[0].double(), -1)
    return float(sum(logs[at, ids[at + 1]] for at in positions)) - row["reference"] * len(positions)


def learner(lm: Any, table: pa.RecordBatch, *, together: int) -> Any:
    """A group whose only rank computes so many sequences in a micro-batch, in rows of two."""

    def predict(_: str, batch: Any) -> dict[int, list[float]]:
        rows, found = [row for (row,) in batch.units], {}
        for start in range(0, len(rows), together):
            part = rows[start : start + together]
            examples = read_examples(table, [part[at : at + 2] for at in range(0, len(part), 2)])
            with torch.no_grad():
                means = examples.means(PolicyModel(lm)(examples.packed)[0])
            found |= dict(zip(part, means[:, None].tolist(), strict=True))
        return found

    return SimpleNamespace(predict=predict)


@pytest.mark.parametrize("chosen", [[0, 1, 2, 3, 4], [3, 1, 2], [4]])
def test_loss_and_reference_point_are_the_slow_ones_however_the_step_is_cut(
    chosen: list[int], lm: Any, answers: ExampleSet
) -> None:
    rows = answers.table.to_pylist()
    loss, units = KTOLoss.of(CONFIG, answers), answers.selected(chosen)
    z = max(0.0, float(np.mean([log_ratio(lm, rows[number + 5]) for number in chosen])))
    assert z > 0, "else this would test little"
    good, bad = loss.weights
    expected = 0.0
    for number in chosen:
        y, lead = rows[number]["label"], 0.3 * (log_ratio(lm, rows[number]) - z)
        expected += y * good / (1 + np.exp(lead)) + (1 - y) * bad / (1 + np.exp(-lead))
    for together in (1, 2, 5):
        settled = loss.settled(learner(lm, answers.table, together=together), None, units)
        assert settled.reference_point == pytest.approx(z, rel=1e-4)
        found, facts = 0.0, {}
        for start in range(0, len(chosen), together):
            total, told = settled(PolicyModel(lm), read_examples(answers.table, [chosen[start : start + together]]))
            found += total.item()
            facts = {key: facts.get(key, 0.0) + value for key, value in told.items()}
        assert found == pytest.approx(expected, rel=1e-4)
        assert facts["reference_point"] == pytest.approx(z * len(chosen), rel=1e-4)
        assert facts["desirable/units"] + facts["undesirable/units"] == pytest.approx(len(chosen))
        assert facts["accuracy"] == pytest.approx(facts["desirable/accuracy"] + facts["undesirable/accuracy"])


def test_without_mismatched_pairs_the_reference_point_is_zero_and_nothing_is_asked(answers: ExampleSet) -> None:
    alone = replace(answers, mismatched=[])
    assert KTOLoss.of(CONFIG, alone).settled(SimpleNamespace(), None, alone).reference_point == 0.0  # type: ignore[arg-type]


def test_an_empty_micro_batch_takes_part_with_every_fact(lm: Any, answers: ExampleSet) -> None:
    loss = KTOLoss.of(CONFIG, answers)
    total, facts = loss(PolicyModel(lm), read_examples(answers.table, []))
    total.backward()
    _, others = loss(PolicyModel(lm), read_examples(answers.table, [[0]]))
    assert total.item() == 0.0
    assert facts == dict.fromkeys(others, 0.0)


def test_weights_balance_what_is_learnt_and_say_so(answers: ExampleSet) -> None:
    loss = KTOLoss.of(CONFIG, answers)
    assert loss.counts == pytest.approx((3.0, 2.0)), "0.8 + 0.2, a thumb, and a comparison"
    assert loss.weights == pytest.approx((1.0, 1.125))
    assert re.fullmatch(
        r"3 desirable, 2 undesirable, of weights 1 and 1.1\d: together 1.33 times as much", loss.describe()
    )
    odd = KTOLoss.of(CONFIG.model_copy(update={"desirable_weight": 1.0, "undesirable_weight": 1.0}), answers)
    assert odd.describe().endswith("together 1.5 times as much; KTO's authors take 1 to 1.33")
    one_side = replace(loss, counts=(3.0, 0.0), weights=(1.0, 1.0))
    assert one_side.describe().endswith("KTO has only one side to learn from")
