"""What scorers write does not depend on who generated which row when, nor on how many score."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rlhf_dist import progress
from rlhf_dist.config import ModelReward, Safety
from rlhf_dist.errors import NumbersError, RewardError
from rlhf_dist.records import Failure, PromptTask, RowKey, Sample
from rlhf_dist.scoring.answers import Failures
from rlhf_dist.scoring.reference import ReferenceScorer
from rlhf_dist.scoring.reward import RewardScorer
from rlhf_dist.scoring.worker import Scorer, ScoringWorker, _check_finite
from rlhf_dist.store.experience import ExperienceIndex
from rlhf_dist.store.row import Row, rollout_batch, rows_of, single_turn
from tests.runs import Folders

ROWS, CHUNK = 24, 5
ORDER = np.random.default_rng(5).permutation(ROWS).tolist()


def rows() -> dict[RowKey, Row]:
    draws = np.random.default_rng(0)
    return {
        RowKey(0, n, 0): single_turn(draws.integers(3, 400, size=4), draws.integers(3, 400, size=draws.integers(1, 20)))
        for n in range(ROWS)
    }


def scored(scorer: Scorer, arrivals: Sequence[int], workers: int) -> dict[str, dict[RowKey, Any]]:
    """Columns by name and row, where rows arrive in an order, and workers lease whatever is whole in turns."""
    every, index = rows(), ExperienceIndex(batch_rows=ROWS, chunk_rows=CHUNK, scorers=(scorer.writer,))
    index.submit([PromptTask(0, prompt, (1,), 1) for prompt in ORDER])
    index.publish(0)
    index.lease_prompts("a", ROWS)
    found: dict[str, dict[RowKey, Any]] = {}
    for number, prompt in enumerate(arrivals):
        index.append("a", object(), [RowKey(0, prompt, 0)], [len(every[RowKey(0, prompt, 0)].tokens)])
        if number % 7 == 6 or number == ROWS - 1:
            leases = []
            while keys := [view.key for view in index.lease_rows(f"s{len(leases) % workers}", scorer.writer)]:
                leases.append((f"s{len(leases) % workers}", keys))
            for worker, keys in leases[::-1]:
                for name, values in scorer.score([every[key] for key in keys]).items():
                    found.setdefault(name, {}).update(zip(keys, values, strict=True))
                index.add_column(worker, scorer.writer, object(), keys)
    assert index.complete(0)
    return found


@pytest.fixture(params=["reward", "reference"])
def scorer(request: pytest.FixtureRequest, folders: Folders) -> Scorer:
    shared: dict[str, Any] = {"dtype": "float32", "batch_tokens": 64, "device": "cpu"}
    policy = str(Path(folders.policy))
    if request.param == "reference":
        return ReferenceScorer(policy, temperature=1.0, **shared)
    return RewardScorer((ModelReward(path=str(folders.reward)),), Safety(), policy, **shared)


def test_columns_are_bit_equal_whatever_the_order_of_arrival_and_the_number_of_workers(scorer: Scorer) -> None:
    shuffled = np.random.default_rng(1).permutation(ROWS).tolist()
    expected = scored(scorer, ORDER, 1)
    assert all(len(column) == ROWS for column in expected.values())
    for arrivals, workers in ((ORDER[::-1], 1), (shuffled, 1), (shuffled, 2), (ORDER, 3)):
        assert scored(scorer, arrivals, workers) == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e39])
def test_what_is_no_number_in_the_column_is_refused_and_not_as_a_reward_where_it_is_none(value: float) -> None:
    key = RowKey(0, 0, 0)
    _check_finite([key], {"score": [1e38], "score_parts": [[("r", 1e38)]], "ref_log_probs": [[-1.0]]}, "reference")
    for column in ({"score": [value]}, {"score_parts": [[("r", value)]]}, {"ref_log_probs": [[-1.0, value]]}):
        with pytest.raises(
            NumbersError, match=r"reference gave .* for prompt 0, answer 0, iteration 0; expected fin"
        ) as told:
            _check_finite([key], column, "reference")
        assert not isinstance(told.value, RewardError)


class Stubborn:
    """A scorer that fails for the first row, and can be told to."""

    writer = "reward"

    def __init__(self, device: str, path: str = "") -> None:
        self.closed, self.path, self.at_rest = False, path, 0

    def score(self, rows: Sequence[Row], failures: Failures) -> dict[str, list[Any]]:
        progress.step()
        failures.add(0, Failure("r", "raised", "p", "a"))
        return {"score": [float("nan"), 1.0], "score_parts": [[("r", float("nan"))], [("r", 1.0)]]}

    def offload(self) -> None:
        self.at_rest += 1

    def reload(self) -> None:
        self.at_rest = 0

    def close(self) -> None:
        self.closed = True


def worker(tmp_path: Path, quarantine: int) -> ScoringWorker:
    made = ScoringWorker("reward-0", Stubborn, {}, quarantine, threads=1, log_dir=str(tmp_path))
    made.start()
    return made


def chunk() -> pa.RecordBatch:
    return rollout_batch([Sample(RowKey(2, n, 0), (1, 2), (3,), (-0.5,), "stop", ((0, 1),)) for n in range(2)])


def test_a_scorer_hands_over_what_failed_and_its_steps_are_signs_of_life(tmp_path: Path) -> None:
    made = worker(tmp_path, 1)
    assert made.pulse().doing == ""
    before, keys = made.pulse().steps, [RowKey(2, 0, 0), RowKey(2, 1, 0)]
    failures = Failures(1, keys)
    made._columns(keys, rows_of(chunk()), failures)
    assert failures.causes[0].cause == "raised"
    assert made.pulse().steps == before + 3, "begun, a piece, ended"
    made.close()
    assert made._scorer.closed


def test_one_at_rest_asks_for_no_rows_and_what_it_is_renewed_with_rests_too(tmp_path: Path) -> None:
    made = worker(tmp_path, 0)
    first: Any = made._scorer
    made.rest()
    assert first.at_rest
    made._serve_a_chunk(None, False, 1.0, 0.1)
    made.renew({"path": "next"})
    second: Any = made._scorer
    assert (first.closed, second.path, second.at_rest) == (True, "next", 1)
    made.rest()
    made.wake()
    assert not second.at_rest
    with pytest.raises(AttributeError):
        made._serve_a_chunk(None, False, 1.0, 0.1)
    assert [each.name for each in made.take_spans()][-3:] == ["rest", "rest", "wake"]


def test_offloaded_scorers_say_the_same_again(scorer: Scorer) -> None:
    every = [*rows().values()][:3]
    before = scorer.score(every)
    scorer.offload()
    scorer.reload()
    assert scorer.score(every) == before


def test_an_evaluation_needs_every_score(tmp_path: Path) -> None:
    with pytest.raises(RewardError, match="reward r: raised, .*; it is answer 0 to prompt 0 in iteration 2"):
        worker(tmp_path, 1).score(chunk())


def test_company_does_change_the_last_bits(folders: Folders) -> None:
    """Why chunks are fixed: were this to fail, they would not need to be."""
    reference = ReferenceScorer(str(folders.policy), temperature=1.0, dtype="float32", batch_tokens=64, device="cpu")
    every = [*rows().values()]
    together = reference.score(every)["ref_log_probs"]
    alone = [reference.score([row])["ref_log_probs"][0] for row in every]
    assert together != alone
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
