"""What scorers are given, and what is looked at before anything starts."""

from typing import Any

import pytest

from rlhf_dist.config import RLConfig
from rlhf_dist.errors import ConfigError
from rlhf_dist.records import Prompt
from rlhf_dist.stages.scoring import check_columns, check_functions, scorer_kinds

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


ASKING = {**FUNCTION, "path": f"{RULES}:with_columns"}
ROWS = [Prompt(0, (1,), "a"), Prompt(1, (1,), "b", columns='{"level": 3}'), Prompt(2, (1,), "c", columns='{"x": null}')]


def test_a_parameter_that_no_column_provides_is_refused_with_the_columns_that_there_are() -> None:
    told = (
        rf"reward r is '{RULES}:with_columns', whose parameter 'solution' no column of p provides: its columns are level, x; "
        "expected one of that name, or prompts.columns.solution, or a default value"
    )
    with pytest.raises(ConfigError, match=told):
        check_columns(config(ASKING), "p", ROWS)
    with pytest.raises(ConfigError, match="its columns are none beside the prompt"):
        check_columns(config(ASKING), "p", ROWS[:1])
    check_columns(config(ASKING), "p", [*ROWS, Prompt(3, (1,), "d", columns='{"solution": "4"}')])
    check_columns(config({**FUNCTION, "path": f"{RULES}:close_to"}), "p", ROWS)
    judged = config(FUNCTION, gold_judge=f"{RULES}:with_columns")
    for judge_only in (False, True):
        with pytest.raises(ConfigError, match="gold_judge is .* whose parameter 'solution'"):
            check_columns(judged, "p", ROWS, judge_only=judge_only)
    check_columns(config(ASKING), "p", ROWS, judge_only=True)
