"""A status as text; a run's own actors are asked in tests/integration."""

import socket
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError
from rich.console import Console

from rlhf_dist.errors import EnvironmentProblem
from rlhf_dist.files import as_json, write_text
from rlhf_dist.run_folder import status as room
from rlhf_dist.run_folder.console import COLUMNS
from rlhf_dist.run_folder.lock import locked
from rlhf_dist.run_folder.log_view import show_logs
from rlhf_dist.run_folder.status import read_status, render
from rlhf_dist.telemetry.logs import read_new


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


def test_a_run_whose_process_is_gone_is_not_said_to_go_on(tmp_path: Path) -> None:
    told = {"run": "r", "state": "training", "host": socket.gethostname(), "pid": 7, "iteration": 3, "iterations": 9}
    write_text(tmp_path / "status.json", as_json(told))
    found = read_status(tmp_path)
    assert (found["state"], found["error"]) == ("gone", "process 7 ended without a word while the run was training")
    assert "gone" in as_text(found)
    with locked(tmp_path):
        assert read_status(tmp_path)["state"] == "training"
    for state in ("finished", "failed", "stopped"):
        write_text(tmp_path / "status.json", as_json(told | {"state": state}))
        assert read_status(tmp_path)["state"] == state
    write_text(tmp_path / "status.json", as_json(told | {"host": "elsewhere"}))
    away = read_status(tmp_path)
    assert away["state"] == "training", "only that machine knows"
    assert "ago by elsewhere, process 7" in as_text(away)


@pytest.mark.parametrize("damaged", ["", "\x00\x00", "[]", '{"state": "tr', "[" * 100_000])
def test_a_status_that_a_power_cut_damaged_is_that_of_a_run_that_is_gone(damaged: str, tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text(damaged)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "store.jsonl").write_text('{"time": "", "actor": "store", "message": "x"}\ntorn{"time\n')
    assert read_status(tmp_path)["state"] == "gone"
    assert "damaged" in as_text(read_status(tmp_path))


def test_what_is_no_file_is_a_damaged_status_and_no_log(tmp_path: Path) -> None:
    (tmp_path / "status.json").mkdir()
    (tmp_path / "logs" / "store.jsonl").mkdir(parents=True)
    assert read_status(tmp_path)["state"] == "gone"
    assert list(read_new(tmp_path / "logs", {})) == []
    show_logs(tmp_path, follow=True, actor=None, as_json=False)


def test_a_run_on_a_cluster_is_found_by_its_name_alone_unless_others_have_it() -> None:
    runs = ["demo-012abc", "demo-2-fff000", "mine-111111", "mine-222222"]
    assert room.one_of("demo", runs) == "demo-012abc"
    assert room.one_of("mine-222222", runs) == "mine-222222"
    with pytest.raises(EnvironmentProblem, match=r"mine: the Ray cluster has \['mine-111111', 'mine-222222'\]"):
        room.one_of("mine", runs)
    with pytest.raises(EnvironmentProblem, match=r"other: no such run .* which has \['demo-012abc', "):
        room.one_of("other", runs)
