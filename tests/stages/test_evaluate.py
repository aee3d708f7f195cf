"""From what engines and scorers said to what is reckoned with; whole evaluations: tests/integration."""

import json
from pathlib import Path

import pytest

from rlhf_dist.config import EvaluateConfig, RLConfig, dump
from rlhf_dist.data.encoder import Encoder
from rlhf_dist.evaluation.results import ScoredAnswers, result_of
from rlhf_dist.records import Prompt, RowKey, Sample
from rlhf_dist.stages.evaluate import PreparedEvaluation, _rows, _scored, config_of_run, passage
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


def test_answers_to_a_chat_have_its_messages_and_its_text_without_a_template() -> None:
    messages = [{"role": "user", "content": "hi"}]
    one = ScoredAnswers("a", ["x"], [1], None, [-1.0], [1.0], {})
    prompt = Prompt(0, (1,), "<s>user hi<e>", json.dumps({"prompt_messages": messages}), "User: hi")
    (row,) = _rows([prompt], [one], samples=1)
    assert (row["prompt"], row["messages"]) == ("User: hi", messages)
    assert "messages" not in _rows([Prompt(0, (1,), "p")], [one], samples=1)[0]


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


def test_a_runs_evaluation_measures_kl_to_the_runs_reference(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n')
    tree = {"policy": "start", "reference": "other", "reward": "r", "prompts": {"path": str(tmp_path / "p.jsonl")}}
    (tmp_path / "config.yaml").write_text(dump(RLConfig.model_validate(tree)))
    assert config_of_run(tmp_path).reference == "other"


def test_under_truncation_no_kl_is_reported_and_the_passage_says_why() -> None:
    samples = [Sample(RowKey(0, 0, 0), (9,), (0, 1), (-0.1, -0.1), "stop", ((0, 2),))]
    columns = {"ref_log_probs": [[-3.0, -3.0]], "plain_log_probs": [[-3.0, -3.0]], "score": [0.0], "score_parts": [[]]}
    prompts = [Prompt(0, (9,), "p")]
    found = _scored(
        "same", rollout_batch(samples), columns, PreparedEvaluation(Encoder(Letters()), prompts, []), truncated=True
    )
    assert found.kl is None
    assert _rows(prompts, [found], samples=1)[0]["kl"] is None
    config = EvaluateConfig.model_validate(
        {"policies": {"same": "a"}, "prompts": {"path": "p"}, "rollout": {"top_p": 0.8}}
    )
    assert config.rollout.truncated
    result = result_of(found, found, [], config)
    assert "There is no KL, since answers were drawn" in passage([result], prompts=1, samples=1, truncated=True).text
    assert "There is no KL" not in passage([result], prompts=1, samples=1).text
