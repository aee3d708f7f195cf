"""A status as text; a run's own actors are asked in tests/integration."""

from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError
from rich.console import Console

from rlhf_dist.errors import EnvironmentProblem
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


def test_a_run_on_a_cluster_is_found_by_its_name_alone_unless_others_have_it() -> None:
    runs = ["demo-012abc", "demo-2-fff000", "mine-111111", "mine-222222"]
    assert room.one_of("demo", runs) == "demo-012abc"
    assert room.one_of("mine-222222", runs) == "mine-222222"
    with pytest.raises(EnvironmentProblem, match=r"mine: the Ray cluster has \['mine-111111', 'mine-222222'\]"):
        room.one_of("mine", runs)
    with pytest.raises(EnvironmentProblem, match=r"other: no such run .* which has \['demo-012abc', "):
        room.one_of("other", runs)
