"""What scorers are given, and what is looked at before anything starts."""

from typing import Any

import pytest

from rlhf_dist.config import RLConfig
from rlhf_dist.errors import ConfigError
from rlhf_dist.stages.scoring import check_functions, scorer_kinds

RULES = "tests.scoring.rules"


def config(*rewards: dict[str, Any], **keys: Any) -> RLConfig:
    tree = {"policy": "a", "reward": rewards, "prompts": {"path": "p"}, "learner": {"critic": "value_head"}, **keys}
    return RLConfig.model_validate(tree)


FUNCTION = {"kind": "function", "name": "r", "path": f"{RULES}:length_of"}
REMOTE = {"kind": "remote", "name": "s", "url": "http://host/", "token_env": "NO_SUCH_TOKEN"}


@pytest.fixture(autouse=True)
def _nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf_dist.secrets._known", {})


def test_every_function_is_imported_before_anything_starts() -> None:
    check_functions(config(FUNCTION, gold_judge=f"{RULES}:length_of"))
    with pytest.raises(
        ConfigError, match=r"reward r is 'tests.scoring.ends_at_import:f': it ended its process, exit code 7"
    ):
        check_functions(config({**FUNCTION, "path": "tests.scoring.ends_at_import:f"}))
    with pytest.raises(ConfigError, match=r"gold_judge is '.*:nothing': AttributeError"):
        check_functions(config(FUNCTION, gold_judge=f"{RULES}:nothing"))


@pytest.mark.parametrize(
    ("value", "wrong"), [(None, "is not set"), (" ", "is not set"), ("pl4nted\r\nX: y", "no header")]
)
def test_a_secret_that_is_not_there_is_a_setting_to_mend(
    value: str | None, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if value is not None:
        monkeypatch.setenv("NO_SUCH_TOKEN", value)
    with pytest.raises(ConfigError, match=f"reward s: token_env is NO_SUCH_TOKEN, .* {wrong}") as told:
        check_functions(config(REMOTE))
    assert "pl4nted" not in str(told.value)


def test_scorers_are_given_their_secrets_and_how_many_samples_may_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_SUCH_TOKEN", " pl4nted\n")
    kinds = scorer_kinds(config(REMOTE, scoring={"quarantine": 3}), policy="a", reference="a")
    assert (kinds["reward"].quarantine, kinds["reward"].secrets) == (3, {"NO_SUCH_TOKEN": "pl4nted"})
    assert (kinds["reference"].quarantine, kinds["reference"].secrets) == (0, {})
