"""From what engines and scorers said to what is reckoned with; whole evaluations: tests/integration."""

import pytest

from rlhf_dist.data.encoder import Encoder
from rlhf_dist.evaluation.results import ScoredAnswers
from rlhf_dist.records import Prompt, RowKey, Sample
from rlhf_dist.stages.evaluate import PreparedEvaluation, _rows, _scored
from rlhf_dist.store.row import rollout_batch


class Letters:
    def decode(self, tokens: list[int], *, skip_special_tokens: bool) -> str:
        return "".join(chr(97 + token) for token in tokens)


def test_every_answer_is_a_row_with_its_own_scores() -> None:
    one = ScoredAnswers(
        "a",
        ["x", "y", "z", "w"],
        [1] * 4,
        [0.1, 0.2, 0.3, 0.4],
        [-1.0] * 4,
        [1.0, 2.0, 3.0, 4.0],
        {"gold": [0, 1, 0, 1], "reward": [9.0] * 4},
    )
    rows = _rows([Prompt(0, (1,), "p"), Prompt(1, (1,), "q")], [one], samples=2)
    assert [(row["prompt"], row["answer"], row["kl"], row["reward"], row["parts"]["gold"]) for row in rows] == [
        ("p", "x", 0.1, 1.0, 0),
        ("p", "y", 0.2, 2.0, 1),
        ("q", "z", 0.3, 3.0, 0),
        ("q", "w", 0.4, 4.0, 1),
    ]


def test_kl_is_what_the_policy_found_likelier_than_the_reference_did() -> None:
    samples = [
        Sample(RowKey(0, 0, 0), (9,), (0, 1), (-0.5, -0.25), "stop", ((0, 2),)),
        Sample(RowKey(0, 1, 0), (9, 9), (2,), (-1.0,), "length", ((0, 1),)),
    ]
    columns = {
        "ref_log_probs": [[-1.0, -1.0], [-0.25]],
        "plain_log_probs": [[-2.0, -1.5], [-0.5]],
        "score": [0.5, -0.5],
        "score_parts": [[("reward", 0.5), ("gold", 1.0)], [("reward", -0.5), ("gold", 0.0)]],
    }
    found = _scored(
        "trained", rollout_batch(samples), columns, PreparedEvaluation(Encoder(Letters()), [], []), truncated=False
    )
    assert found.answers == ["ab", "c"]
    assert found.lengths == [2, 1]
    assert found.kl == pytest.approx([1.25, -0.75])
    assert found.plain_log_probs == pytest.approx([-3.5, -0.5])
    assert found.rewards == [0.5, -0.5]
    assert found.parts == {"reward": [0.5, -0.5], "gold": [1.0, 0.0]}
