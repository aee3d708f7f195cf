"""The token's file is its owner's alone, whatever the umask, and there is one wherever a run starts."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf_dist.cluster.token import keep_token
from rlhf_dist.errors import EnvironmentProblem


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # so that what the code sets is taken back
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    before = os.umask(0)
    yield tmp_path
    os.umask(before)


def modes(path: Path) -> tuple[int, int]:
    return path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777


def test_a_token_is_made_once_and_only_its_owner_reads_it(home: Path) -> None:
    keep_token()
    path = home / ".ray" / "auth_token"
    made = path.read_text()
    assert (len(made), modes(path), [*path.parent.iterdir()]) == (64, (0o600, 0o700), [path])
    keep_token()
    assert path.read_text() == made
    assert "RAY_AUTH_TOKEN_PATH" not in os.environ


def test_a_token_that_ray_left_open_is_closed(home: Path) -> None:
    path = home / ".ray" / "auth_token"
    path.parent.mkdir(mode=0o755)
    path.write_text("of before")
    keep_token()
    assert (path.read_text(), modes(path)) == ("of before", (0o600, 0o700))


@pytest.mark.parametrize("found", ["unset", "a file", "not there"])
def test_without_a_home_to_write_to_the_token_is_this_process_s(
    home: Path, monkeypatch: pytest.MonkeyPatch, found: str
) -> None:
    (home / "file").touch()
    monkeypatch.setenv("HOME", {"a file": str(home / "file"), "not there": "/proc/nohome"}.get(found, ""))
    keep_token()
    path = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    assert (len(path.read_text()), modes(path)) == (64, (0o600, 0o700))
    assert home not in path.parents


def test_a_named_file_is_made_where_it_is_named_or_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "named"))
    keep_token()
    assert modes(home / "named")[0] == 0o600
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/proc/nowhere/token")
    with pytest.raises(EnvironmentProblem, match=r"RAY_AUTH_TOKEN_PATH is /proc/nowhere/token, where no token"):
        keep_token()


def test_who_brings_a_token_or_wants_none_gets_none(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    keep_token()
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "brought")
    keep_token()
    assert not [*home.iterdir()]
