"""A status as text; a run's own actors are asked in tests/integration."""

from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError
from rich.console import Console

from rlhf_dist.run_folder import status as room
from rlhf_dist.run_folder.console import COLUMNS
from rlhf_dist.run_folder.status import render


def as_text(status: dict[str, Any]) -> str:
    console = Console(width=120)
    with console.capture() as captured:
        console.print(render(status))
    return captured.get()


def test_a_metric_that_is_no_number_or_not_there_is_a_dash() -> None:
    status = {"run": "r", "state": "training", "iteration": 1, "iterations": 2, "updated": 0.0}
    metrics = {key: 1.0 for key, _ in COLUMNS.values()} | {"objective/kl": None, "actor/entropy": float("nan")}
    del metrics["actor/pg_clipfrac"]
    assert as_text({**status, "metrics": metrics}).count("–") == 3


def test_a_run_whose_actors_are_gone_is_not_said_to_have_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    actors = object.__new__(room._Actors)
    actors._last = {"run": "r", "state": "training", "iteration": 7, "iterations": 9, "updated": 0.0}
    actors._store = type("Store", (), {"overview": type("Method", (), {"remote": staticmethod(lambda: None)})})()

    def gone(*_: Any, **__: Any) -> Any:
        raise RayActorError

    monkeypatch.setattr(ray, "get", gone)
    text = as_text(actors.read())
    assert "gone" in text
    assert "finished" not in text
    assert "iteration 7 of 9" in text
