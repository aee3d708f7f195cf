"""What is said of policies, on three answers each that a person can reckon with."""

import dataclasses
import math
from dataclasses import replace
from typing import Any

import pytest

from rlhf_dist.config import EvaluateConfig
from rlhf_dist.evaluation.results import ScoredAnswers, plain, result_of, table

START = ScoredAnswers(
    name="start",
    answers=["a b", "c d", "e f"],
    lengths=[2, 2, 2],
    kl=[0.0, 0.0, 0.0],
    plain_log_probs=[-2.0, -2.0, -2.0],
    rewards=[1.0, 2.0, 3.0],
    parts={"gold": [0.5, 0.5, 0.5], "unsafe": [0.0, 1.0, 0.0]},
)
TRAINED = ScoredAnswers(
    name="trained",
    answers=["good", "bad", "good"],
    lengths=[1, 1, 4],
    kl=[0.5, 1.0, 1.5],
    plain_log_probs=[-1.0, -2.0, -3.0],
    rewards=[2.0, 2.0, 1.0],
    parts={"gold": [1.0, 0.5, 0.75], "unsafe": [0.0, 0.0, 0.0]},
)


def config(**changes: Any) -> EvaluateConfig:
    tree = {"policies": {"start": "a", "trained": "b"}, "prompts": {"path": "p"}, "reward": "r"}
    return EvaluateConfig.model_validate({**tree, **changes})


def test_means_wins_and_figures_of_three_answers() -> None:
    found = result_of(TRAINED, START, [], config())
    means = {name: each.mean for name, each in found.means.items()}
    assert means == pytest.approx({"kl": 1.0, "length": 2.0, "reward": 5 / 3, "gold": 0.75, "unsafe": 0.0})
    # By reward one wins, one ties, one loses; by gold two win and one ties.
    assert [(won.wins, won.ties, won.losses) for won in (found.wins["reward"], found.wins["gold"])] == [
        (1, 1, 1),
        (2, 1, 0),
    ]
    assert found.wins["reward"].rate.mean == pytest.approx(0.5)
    assert found.wins["gold"].rate.mean == pytest.approx(2.5 / 3)
    assert found.figures["perplexity"] == pytest.approx(math.exp(6 / 6))
    assert found.figures["distinct_1"] == pytest.approx(2 / 3)


def test_the_first_policy_wins_over_nobody_and_knows_what_is_unsafe() -> None:
    found = result_of(START, START, [], config())
    assert found.wins == {}
    assert found.means["unsafe"].mean == pytest.approx(1 / 3)
    assert found.means["kl"].mean == 0.0


def test_no_answer_of_three_that_is_unsafe_does_not_mean_that_none_ever_is() -> None:
    found = result_of(TRAINED, START, [], config()).means["unsafe"]
    assert found.mean == 0.0
    assert 0.0 == found.low < 0.5 < found.high < 1.0


def test_rewards_that_are_only_watched_are_no_reward() -> None:
    watched = config(reward=[{"path": "r", "weight": 0}])
    found = result_of(replace(TRAINED, rewards=[0.0] * 3), replace(START, rewards=[0.0] * 3), [], watched)
    assert "reward" not in found.means
    assert found.wins.keys() == {"gold"}


def test_several_answers_to_a_prompt_are_averaged_before_intervals_are_taken() -> None:
    one = ScoredAnswers("a", ["x"] * 4, [1, 3, 5, 7], [0.0] * 4, [-1.0] * 4, [0.0] * 4, {})
    found = result_of(one, one, [], config(samples=2, reward=[]))
    assert (found.means["length"].low, found.means["length"].mean, found.means["length"].high) == (2.0, 4.0, 6.0)
    assert "reward" not in found.means


def test_measures_are_against_each_prompts_target() -> None:
    measured = config(target="target", measures=("accuracy",))
    assert result_of(TRAINED, START, ["good", "good", "good"], measured).figures["accuracy"] == pytest.approx(2 / 3)


def test_a_table_has_a_row_for_each_policy_and_a_file_has_its_numbers() -> None:
    results = [result_of(one, START, [], config()) for one in (START, TRAINED)]
    head, rows = table(results)
    assert head[:3] == ("policy", "wins by gold", "wins by reward")
    assert {"gold", "reward", "KL, nats", "tokens", "unsafe", "perplexity", "distinct-1", "self-BLEU"} <= set(head)
    assert {len(row) for row in rows} == {len(head)}
    assert [row[0] for row in rows] == ["start", "trained"]
    assert rows[1][head.index("perplexity")] == f"{math.e:.3g}"
    assert rows[0][1] == "–"
    assert rows[1][1].startswith("83.3%")
    assert rows[1][1].endswith(", open"), "two wins and a tie decide nothing"
    assert rows[1][head.index("the longer wins by gold")].startswith("50.0%")
    told = plain(results[1])
    assert told["win_rate"]["gold"]["wins"] == 2
    assert told["win_rate"]["gold"]["decided"] is False
    assert told["win_rate"]["gold"]["length_bias"]["difference"] == 0.0
    assert 0 < told["win_rate"]["gold"]["length_bias"]["controlled"]["low"] < 0.8
    assert told["kl"]["mean"] == pytest.approx(1.0)


def test_what_is_no_number_is_a_dash_in_the_table() -> None:
    silent = replace(START, answers=["", "", ""], lengths=[0, 0, 0], plain_log_probs=[0.0, 0.0, 0.0])
    found = result_of(silent, silent, [], config())
    assert math.isnan(found.figures["perplexity"])
    head, (row,) = table([found])
    assert row[head.index("perplexity")] == "–"
    alone = replace(START, answers=["a"], lengths=[1], kl=[0.5], plain_log_probs=[-800.0], rewards=[1.0], parts={})
    head, (row,) = table([result_of(alone, alone, [], config())])
    assert row[head.index("KL, nats")] == "0.5", "one value has no interval"
    assert row[head.index("perplexity")] == "–"


def test_answers_of_a_truncated_distribution_have_no_kl() -> None:
    found = [result_of(replace(one, kl=None), START, [], config()) for one in (START, TRAINED)]
    head, rows = table(found)
    assert [row[head.index("KL, nats")] for row in rows] == ["–", "–"]
    assert [row[head.index("reward")] for row in rows] == [
        row[head.index("reward")] for row in table([result_of(one, START, [], config()) for one in (START, TRAINED)])[1]
    ]
    assert plain(found[0])["kl"] is None


def test_a_gold_score_that_some_answers_lack_is_no_mean_and_no_win() -> None:
    partly = dataclasses.replace(TRAINED, parts={**TRAINED.parts, "gold": [1.0, math.nan, 0.75]})
    none = dataclasses.replace(START, parts={"unsafe": [0.0, 1.0, 0.0]})
    for one, first in ((partly, START), (TRAINED, none), (TRAINED, dataclasses.replace(partly, name="start"))):
        found = result_of(one, first, [], config())
        assert [*found.wins] == ["reward"]
        assert ("gold" in found.means) == (one is TRAINED)
