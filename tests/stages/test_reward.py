"""What a reward model's stage learns from and says, without a process; whole stages: tests/integration/test_stages.py."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf_dist.config import RewardConfig
from rlhf_dist.data.encoder import Encoder
from rlhf_dist.data.examples import ExampleSet, example_table
from rlhf_dist.data.feedback import Judged
from rlhf_dist.data.judgements import JudgedTokens
from rlhf_dist.errors import WorkerLost
from rlhf_dist.feedback.aggregate import Aggregated, aggregate
from rlhf_dist.learner.optimizer_state import PIECES
from rlhf_dist.run_folder.console import Console
from rlhf_dist.run_folder.folder import RunFolder
from rlhf_dist.scoring.reward_file import RewardFile
from rlhf_dist.stages.behind import Behind
from rlhf_dist.stages.inputs import keep_inputs
from rlhf_dist.stages.restarting import restarting
from rlhf_dist.stages.reward import PreparedReward, _lessons, _moments, _objective, _outcome, _train_members
from rlhf_dist.stages.reward_passages import Outcome, _policy_passage, passages
from rlhf_dist.stages.stage_checkpoints import Reached, newest
from rlhf_dist.tasks.helpdesk import build_tokenizer
from tests.runs import metrics

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


@pytest.mark.parametrize(("questions", "warns"), [(19, True), (20, False)])
def test_a_reliability_of_few_shared_questions_is_said_to_be_assumed(questions: int, warns: bool) -> None:
    votes = [replace(one, annotator=name) for one in JUDGED[:questions] for name in ("ann", "bob")]
    told = next(one for one in passages(outcome(None), aggregate(votes, "none")) if one.title == "Annotators")
    assert ("ann, bob judged fewer than 20 shared questions" in told.text) == warns
    assert [row[:2] for row in told.rows] == [("ann", str(questions)), ("bob", str(questions))]


def test_a_policy_whose_answers_all_score_alike_has_no_standard_deviation_to_tell() -> None:
    alike, spread = np.full((4, 1), 3.5), np.array([[3.0], [4.0]])
    told = _policy_passage(alike, RewardFile(**_moments(alike))).text
    assert "standard deviation" not in told
    assert "all score alike" in told
    assert "standard deviation 0.500" in _policy_passage(spread, RewardFile(**_moments(spread))).text


class Learner:
    """What the stage asks of a learner group: a model that is one number, and all that makes it."""

    num_parameters = 1

    def __init__(self, fails_at: int) -> None:
        self.model, self.steps, self.fails_at = 0.0, 0, fails_at
        self.seen: list[Any] = []

    def load(self, specs: dict[str, Any], *, run_dir: Path, seed: int) -> None:
        state = specs["model"].state
        self.model = json.loads((Path(state) / "state.json").read_text()) if state else float(seed)

    def train_step(self, name: str, batch: Any, loss: Any, *, learn: bool = True) -> dict[str, float]:
        if learn:
            self.steps += 1
            if self.steps == self.fails_at:
                raise WorkerLost("learner-0 died")
            self.seen.append(batch.units)
            self.model += batch.draws / 2**32 + sum(unit[0] for unit in batch.units) / 7
        return {"loss": self.model}

    def predict(self, name: str, batch: Any) -> dict[int, list[float]]:
        return {number: [self.model + number] for unit in batch.units for number in unit}

    def save(self, name: str, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "model.safetensors").write_text(repr(self.model))

    def save_state(self, name: str, folder: Path) -> None:
        (folder / "rank-0").mkdir(parents=True)
        (folder / "rank-0" / PIECES).touch()
        (folder / "state.json").write_text(json.dumps(self.model))

    def when_written(self, folder: Path, done: Callable[[dict[str, str]], None]) -> None:
        done({})

    def written(self, folder: Path) -> dict[str, str]:
        return {}


@pytest.mark.parametrize("fails_at", [1, 4, 9, 10, 11, 17, 18])
def test_an_ensemble_that_goes_on_is_the_one_that_was_never_interrupted(
    fails_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine steps for each of its two members, a checkpoint after every third."""
    monkeypatch.setattr("ray.put", lambda value: value)
    monkeypatch.setattr("rlhf_dist.stages.reward.resolved", lambda config: config)
    encoder = Encoder(build_tokenizer())
    tokens = JudgedTokens(encoder, max_tokens=64)
    answers = ExampleSet(example_table([[1], [2]], [[0], [0]]), [[0], [1]], [1.0, 1.0])
    prepared = PreparedReward(encoder, JUDGED, Aggregated(JUDGED, [], None), tokens, [], answers)
    settings = {"models": 2, "epochs": 3, "batch_size": 12, "checkpoint_every": 3}

    def trained(name: str, learner: Any) -> tuple[Outcome, list[dict[str, float]], str]:
        config = RewardConfig(model="m", run_dir=str(tmp_path / name), **settings)
        folder = RunFolder(tmp_path / name, config, console=Console(), stage="reward")
        keep_inputs(config, folder.path)
        lessons = _lessons(config, prepared, JUDGED, answers)

        def attempt(begin: Reached) -> Sequence[Path]:
            with Behind(learner) as behind:
                return _train_members(lessons, folder, behind, begin)

        members = restarting(config, folder, attempt, Reached(), lambda: newest(config, folder.path))
        made = _outcome(lessons, members, folder.path / "reward_model")
        saved = [file.read_text() for file in sorted((folder.path / "reward_model").rglob("model.safetensors"))]
        return made, metrics(folder.path), repr(saved)

    plain = Learner(0)
    whole, rows, models = trained("whole", plain)
    again, rows_again, models_again = trained("interrupted", Learner(fails_at))
    assert plain.seen[:9] != plain.seen[9:], "each member has an order of its own"
    assert whole.facts() == again.facts()
    assert rows == rows_again
    assert [row["iteration"] for row in rows] == [*range(18)]
    assert models == models_again
    assert np.array_equal(whole.policy, again.policy)
    assert whole.policy.shape == (2, 2)
