"""A planted secret is found nowhere: in no message, no file, no log, nothing that is shown."""

import logging
import pickle
from pathlib import Path
from typing import Any

import pytest

from rlhf_dist.config import RLConfig, dump, load, override
from rlhf_dist.errors import ConfigError, EnvironmentProblem, RewardError, RlhfDistError
from rlhf_dist.feedback.database import open_database
from rlhf_dist.feedback.serve import open_feedback
from rlhf_dist.run_folder.console import Console
from rlhf_dist.run_folder.folder import RunFolder
from rlhf_dist.secrets import Secrets, keep, masked
from rlhf_dist.stages.scoring import scorer_kinds
from rlhf_dist.telemetry import logs

PLANTED = "pl4nted"
URLS = [
    f"http://user:{PLANTED}@host/score",
    f"http://{PLANTED}@host",
    f"https://user:{PLANTED}@x@host:80/score?a=1",
    f"postgresql+psycopg://user:{PLANTED}/x@host/name",
    f"postgresql://host/name?user=u&password={PLANTED}",
    f"https://host/score?api_key={PLANTED}",
    f"https://host/score?{PLANTED}#{PLANTED}",
    f"sqlite:///file.db?key={PLANTED}",
]


@pytest.fixture(autouse=True)
def _nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf_dist.secrets._known", {})


@pytest.mark.parametrize("url", URLS)
def test_urls_are_shown_without_what_opens_them(url: str) -> None:
    text = f'reward r: \'{url}\': status 500, {{"url": "{url}"}} and {url}'
    shown = masked(text)
    assert PLANTED not in shown
    assert shown.count("://") == 3
    assert shown.startswith("reward r: '")
    assert ": status 500, " in shown
    assert " and " in shown


@pytest.mark.parametrize(
    "text", ["me@example.org says http://host:8000/a/b", "a@b", "10:30 // x@y", "sqlite:////a/b.db"]
)
def test_what_is_no_secret_is_left_alone(text: str) -> None:
    assert masked(text) == text


def test_known_secrets_are_hidden_wherever_they_stand_and_the_longest_first() -> None:
    keep({"A": "abcdef", "B": "abcdefghi", "C": "x", "D": ""})
    assert masked("abcdefghi, abcdef, xyz") == "***, ***, xyz"
    assert str(Secrets(A="abcdef")) == repr(Secrets(A="abcdef")) == f"{Secrets(A='abcdef')}" == "Secrets(A)"
    assert pickle.loads(pickle.dumps(Secrets(A="abcdef"))) == {"A": "abcdef"}


@pytest.mark.parametrize("kind", [RlhfDistError, RewardError, ConfigError])
def test_no_error_of_ours_shows_a_secret(kind: type[RlhfDistError]) -> None:
    error = kind(f"reward r: {URLS[0]}: no")
    assert str(error) == "reward r: http://***@host/score: no"
    assert str(kind(f"again: {error}")) == f"again: {error}"


def tree(**remote: Any) -> dict[str, Any]:
    rewards = [{"kind": "remote", "name": "r", "url": "http://host/", **remote}]
    return {"policy": "a", "reward": rewards, "prompts": {"path": "p"}, "learner": {"critic": "value_head"}}


@pytest.mark.parametrize("url", [url for url in URLS if url.startswith("http")])
def test_a_reward_url_that_holds_a_secret_is_refused_and_not_shown(url: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(dump(RLConfig.model_validate(tree())).replace("http://host/", url))
    for attempt in (
        lambda: load(RLConfig, file),
        lambda: override(RLConfig.model_validate(tree()), [f"reward=[{{kind: remote, name: r, url: '{url}'}}]"]),
    ):
        with pytest.raises(ConfigError, match=r"expected: a URL without user.*`token_env`.*`headers_env`") as told:
            attempt()
        assert PLANTED not in str(told.value)


@pytest.mark.parametrize("url", ["http://", "http://:80/", "http://host:99999/", "http://ho st/", "ftp://host/"])
def test_a_url_without_a_host_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="url"):
        RLConfig.model_validate(tree(url=url))


@pytest.mark.parametrize(
    "headers", [{"Host": "A"}, {"content-length": "A"}, {"authorization": "A"}, {"X-A": "A", "x-a": "B"}, {"X A": "A"}]
)
def test_headers_that_are_not_the_users_are_refused(headers: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="headers"):
        RLConfig.model_validate(tree(token_env="T", headers_env=headers))


def test_nothing_that_a_run_leaves_behind_holds_the_secret_and_its_config_runs_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REWARD_TOKEN", PLANTED)
    config = RLConfig.model_validate(
        tree(token_env="REWARD_TOKEN", headers_env={"X-Key": "REWARD_TOKEN"}) | {"telemetry": {"tensorboard": True}}
    )
    kinds = scorer_kinds(config, policy="a", reference="a")
    print(kinds, config)
    logs.to_file(logs.log_dir(tmp_path), "controller")
    folder = RunFolder(tmp_path, config, console=Console(), stage="rl")
    folder.rewind(0)
    folder.record(0, {"a": 1.0})
    logging.getLogger("rlhf_dist").warning("sent %s to %s", PLANTED, URLS[0], extra={"url": URLS[1]})
    try:
        raise ValueError(f"{PLANTED} to {URLS[2]}")
    except ValueError:
        logging.getLogger("rlhf_dist").exception("so it was")
    with pytest.raises(ZeroDivisionError), folder.told_of_failure():
        raise ZeroDivisionError(f"{PLANTED} to {URLS[2]}")
    told = capfd.readouterr()
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {file.name for file in files} >= {"config.yaml", "status.json", "metrics.jsonl", "controller.jsonl"}
    assert [file for file in files if PLANTED.encode() in file.read_bytes()] == []
    assert PLANTED not in told.out + told.err
    assert load(RLConfig, tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    "url", [*URLS[3:5], f"nothing://u:{PLANTED}@h", f"postgresql://u:{PLANTED}@h:port/x", f"no url u:{PLANTED}@h"]
)
def test_a_database_is_shown_without_its_password(url: str) -> None:
    with pytest.raises(EnvironmentProblem) as told:
        open_database(url)
    assert PLANTED not in str(told.value)
    assert told.value.__cause__ is None


def test_the_page_says_which_database_it_serves_without_its_secrets(tmp_path: Path) -> None:
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text('{"kind": "comparison", "prompt": "p", "a": "a", "b": "b"}\n')
    opened = open_feedback(tasks, f"sqlite:///{tmp_path}/x.db?timeout=5", overlap=1, annotators=[])
    assert opened.place == f"sqlite:///{tmp_path}/x.db?***"
    opened.engine.dispose()
