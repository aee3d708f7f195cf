import pyarrow as pa
import pytest

from rlhf_dist.evaluation.metrics import batch_metrics, iteration_metrics
from rlhf_dist.records import RowKey, Sample
from rlhf_dist.store.row import rollout_batch
from rlhf_dist.store.schema import EXPERIENCE


def batch() -> pa.RecordBatch:
    """Answers of 2, 3 and 4 tokens in iteration 5, from versions 5, 4, and half by 3 and half by 5."""
    spans = [((5, 2),), ((4, 3),), ((3, 2), (5, 2))]
    samples = [
        Sample(RowKey(5, n, 0), (1,) * (n + 1), (2,) * (n + 2), (-0.5,) * (n + 2), reason, spans[n])
        for n, reason in enumerate(("stop", "length", "stop"))
    ]
    rollout = rollout_batch(samples)
    columns = {
        "score": [1.0, -1.0, 3.0],
        "score_parts": [
            [("reward", 1.0), ("gold", 0.5)],
            [("reward", -1.0), ("gold", 0.0)],
            [("reward", 3.0), ("gold", 1.0)],
        ],
        "ref_log_probs": [[-1.0] * (n + 2) for n in range(3)],
    }
    arrays = [*rollout.columns, *(pa.array(columns[name], EXPERIENCE.field(name).type) for name in columns)]
    return pa.RecordBatch.from_arrays(arrays, schema=EXPERIENCE)


def test_a_batch_says_lengths_scores_and_how_old_its_tokens_are() -> None:
    found = batch_metrics(batch())
    expected = {
        "response_length/mean": 3.0,
        "response_length/min": 2.0,
        "response_length/max": 4.0,
        "response_length/clip_ratio": 1 / 3,
        "prompt_length/mean": 2.0,
        "critic/score/mean": 1.0,
        "critic/score/std": pytest.approx((8 / 3) ** 0.5),
        "reward/gold/mean": 0.5,
        "training/off_policy/trajectory_staleness/mean": 1.0,
        "training/off_policy/trajectory_staleness/max": 2.0,
        "training/off_policy/trajectory_staleness/min": 0.0,
        "perf/num_samples": 3.0,
        "perf/total_num_tokens": 15.0,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_an_iteration_says_how_long_scoring_went_on_after_the_last_sample() -> None:
    times = {"timing_s/experience": 10.0, "timing_s/update": 5.0, "timing_s/step": 20.0}
    facts = {"timing_s/gen": 6.0, "timing_s/pull_weights": 1.0}
    found = iteration_metrics({"objective/rlhf_reward": 0.7}, batch_metrics(batch()), facts, times)
    assert found["timing_s/score_wait"] == 3.0
    assert "timing_s/experience" not in found
    assert found["critic/rewards/mean"] == 0.7
    assert found["perf/throughput"] == 15 / 20
    assert found["perf/samples_per_second"] == 3 / 20
