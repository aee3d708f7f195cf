"""What a session refuses, and what runs are called on a cluster."""

import re
from pathlib import Path

import pytest
import ray

from rlhf_dist.cluster import session
from rlhf_dist.cluster.session import check_size, namespace_of
from rlhf_dist.errors import EnvironmentProblem


def test_a_cluster_that_is_too_small_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0, "GPU": 2.0})
    check_size(4, 2)
    with pytest.raises(EnvironmentProblem, match=r"has 2 GPUs; this run's actors ask for 3"):
        check_size(1, 3)
    with pytest.raises(EnvironmentProblem, match=r"has 4 CPUs; this run's actors ask for 5"):
        check_size(5, 0)


def test_folders_of_one_name_are_different_runs_however_they_are_spelt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = namespace_of(tmp_path / "a" / "demo")
    assert re.fullmatch(r"rlhf/demo-[0-9a-f]{6}", own)
    assert own != namespace_of(tmp_path / "b" / "demo")
    monkeypatch.chdir(tmp_path)
    assert own == namespace_of(Path("b/../a/demo"))


def test_a_run_that_goes_on_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(session, "ENDING_S", 0.0)
    monkeypatch.setattr(session.time, "sleep", waited.append)
    monkeypatch.setattr(session, "runs_on_cluster", lambda *_: ["demo-012abc"])
    session.check_alone("rlhf/demo-ffffff")
    with pytest.raises(EnvironmentProblem, match="the run demo-012abc is going on at this Ray cluster"):
        session.check_alone("rlhf/demo-012abc")
    monkeypatch.setattr(session, "ENDING_S", 60.0)
    found = iter([["demo-012abc"], []])
    monkeypatch.setattr(session, "runs_on_cluster", lambda *_: next(found))
    session.check_alone("rlhf/demo-012abc")  # one that has just been killed
    assert waited == [0.5]


def test_only_a_cluster_that_was_started_here_is_started_anew() -> None:
    assert not session.start_anew()
