"""What a reward model's stage learns from and says, without a process; whole stages: tests/integration/test_stages.py."""

import numpy as np
import pytest

from rlhf_dist.config import RewardConfig
from rlhf_dist.data.encoder import Encoder
from rlhf_dist.data.examples import ExampleSet, example_table
from rlhf_dist.data.feedback import Judged
from rlhf_dist.data.judgements import JudgedTokens
from rlhf_dist.feedback.aggregate import Aggregated
from rlhf_dist.scoring.reward_file import RewardFile
from rlhf_dist.stages.reward import PreparedReward, _moments, _objective
from rlhf_dist.stages.reward_passages import Outcome, _policy_passage
from rlhf_dist.tasks.helpdesk import build_tokenizer

JUDGED = [Judged("comparisons", f"Hi {n}", (" Hello!", " no"), 1.0, "s", "f") for n in range(40)]


def test_what_is_held_out_is_measured_as_it_is_and_only_what_is_learnt_is_resampled() -> None:
    encoder = Encoder(build_tokenizer())
    tokens = JudgedTokens(encoder, max_tokens=64)
    empty = ExampleSet(example_table([[1]], [[0]]), [[0]], [1.0])
    prepared = PreparedReward(encoder, JUDGED, Aggregated(JUDGED, [], None), tokens, [], empty)
    objective = _objective(RewardConfig(model="m", heads=3), prepared, (JUDGED[:20], JUDGED[20:]), 0)
    learnt, held_out = (
        np.array(part.table.column("weight").to_pylist()) for part in (objective.train, objective.held_out)
    )
    assert learnt.shape == (40, 3)
    assert learnt.std() > 0
    assert (held_out == 1.0).all()


def outcome(policy: np.ndarray | None) -> Outcome:
    heads = [[np.array([10.0, -10.0]), np.array([9.0, -11.0])]]
    return Outcome(JUDGED[:1], heads, [], policy, RewardFile(**_moments(policy)), 1, 1, "x")


def test_without_a_policy_no_mean_is_told_and_members_are_compared_beside_their_own_constants() -> None:
    facts = outcome(None).facts()
    assert (facts["reward_mean"], facts["reward_std"]) == (None, None)
    assert facts["disagreement"] == pytest.approx(0.0), "they differ by a constant"
    told = outcome(np.array([[10.0, -10.0], [6.0, -10.0]])).facts()
    assert (told["reward_mean"], told["reward_std"]) == (-1.0, 1.0)
    assert told["disagreement"] == pytest.approx(1.0)


def test_a_policy_whose_answers_all_score_alike_has_no_standard_deviation_to_tell() -> None:
    alike, spread = np.full((4, 1), 3.5), np.array([[3.0], [4.0]])
    told = _policy_passage(alike, RewardFile(**_moments(alike))).text
    assert "standard deviation" not in told
    assert "all score alike" in told
    assert "standard deviation 0.500" in _policy_passage(spread, RewardFile(**_moments(spread))).text
