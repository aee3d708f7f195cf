import json
from pathlib import Path
from typing import Any

import pytest
import ray

from rlhf_dist.config import RLConfig
from rlhf_dist.telemetry.trackers import (
    JsonlTracker,
    MlflowTracker,
    TensorBoardTracker,
    Unbreakable,
    WandbTracker,
    trackers,
)

METRICS = {"critic/score/mean": 0.5, "timing_s/step": 2.0}


class Broken:
    def __init__(self) -> None:
        self.calls = 0

    def log(self, iteration: int, metrics: Any) -> None:
        self.calls += 1
        raise ConnectionError("the service is away")

    def finish(self) -> None:
        raise AssertionError("given up, so never called again")


def test_a_tracker_that_fails_is_given_up_said_once_and_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    broken = Broken()
    tracker = Unbreakable("wandb", lambda: broken)
    for iteration in range(3):
        tracker.log(iteration, METRICS)
    tracker.finish()
    assert broken.calls == 1
    assert caplog.messages == ["wandb is given up for this run: ConnectionError: the service is away"]


def test_a_tracker_that_cannot_be_made_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> Broken:
        raise ImportError("no module named wandb")

    tracker = Unbreakable("wandb", fail)
    tracker.log(0, METRICS)
    tracker.finish()
    assert len(caplog.messages) == 1


def test_metrics_jsonl_is_written_through_at_once(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path / "metrics.jsonl")
    tracker.log(4, METRICS)
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"iteration": 4, **METRICS}
    tracker.log(5, {"objective/kl": float("nan")})
    assert (tmp_path / "metrics.jsonl").read_text().splitlines()[1] == '{"iteration": 5, "objective/kl": null}'
    tracker.finish()


def test_mlflow_writes_files_that_mlflow_reads_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    tracker = MlflowTracker(tmp_path, project="rlhf", config={"rl": {"iterations": 3}, "seed": 0})
    for iteration in range(2):
        tracker.log(iteration, METRICS)
    tracker.finish()
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=(tmp_path / "mlflow").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("rlhf").experiment_id])
    assert run.data.metrics == METRICS
    assert run.data.params == {"rl.iterations": "3", "seed": "0"}
    assert run.info.status == "FINISHED"


def test_wandb_is_offline_without_a_key_and_tensorboard_writes_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    made = [WandbTracker(tmp_path, project="rlhf", config={}), TensorBoardTracker(tmp_path / "tensorboard")]
    for tracker in made:
        tracker.log(0, METRICS)
        tracker.finish()
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_what_a_resumed_run_does_again_is_in_tensorboard_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tree = {"policy": "a", "reward": "b", "prompts": {"path": "p"}, "telemetry": {"tensorboard": True}}
    for first, last in ((0, 6), (3, 5)):
        made = trackers(tmp_path, RLConfig.model_validate(tree), first=first)
        for iteration in range(first, last):
            for tracker in made:
                tracker.log(iteration, {"x": 100.0 * first + iteration})
        for tracker in made:
            tracker.finish()
        for number, file in enumerate(sorted(tmp_path.glob("tensorboard/events.*"))):
            # Their names begin with the second, and are read in order.
            file.rename(file.with_name(f"events.out.tfevents.{first + number}"))
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert [(event.step, event.value) for event in read.Scalars("x")] == [
        *((step, step) for step in range(3)),
        (3, 303.0),
        (4, 304.0),
    ]


def test_a_run_has_the_trackers_it_asked_for_and_none_starts_a_cluster(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tree = {"policy": "a", "reward": "b", "prompts": {"path": "p"}}
    for telemetry, count in (({}, 2), ({"tensorboard": True}, 3)):
        made = trackers(tmp_path, RLConfig.model_validate({**tree, "telemetry": telemetry}))
        assert len(made) == count
        for tracker in made:
            tracker.finish()
    assert caplog.messages == ["Ray's metrics is given up for this run: RuntimeError: not connected to Ray"] * 2
    assert not ray.is_initialized()
