"""`rlhf-dist feedback ...` without the page: invite, report, export, import."""

import json
from pathlib import Path

import pytest
from sqlalchemy.orm import Session
from typer.testing import CliRunner

from rlhf_dist.errors import DataError
from rlhf_dist.feedback.database import Judgement, open_database, sqlite_url
from rlhf_dist.feedback.serve import open_feedback
from rlhf_dist.feedback.task_files import TaskRow, write_tasks
from rlhf_dist.feedback_cli import app


def call(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder whose tasks two annotators have judged."""
    write_tasks(
        tmp_path / "feedback" / "tasks.jsonl",
        [TaskRow("comparison", f"p{n}", "x", "y", "ppo", "sft") for n in range(6)],
    )
    open_feedback(tmp_path, None, overlap=2, annotators=["ann", "bob"]).engine.dispose()
    with Session(open_database(sqlite_url(tmp_path / "feedback" / "tasks.db"))) as session, session.begin():
        for task in range(1, 7):
            for annotator, verdict in ((1, "a"), (2, "a" if task > 2 else "b")):
                session.add(Judgement(task_id=task, annotator_id=annotator, verdict=verdict, seconds=3.0))
    return tmp_path


def test_report_tells_agreement_people_and_who_wins(run: Path) -> None:
    told = call("report", run)
    assert "12 judgements" in told
    assert "alpha" in told
    assert "83.3%" in told, "four tasks won, two divided"
    assert "4, 2, 0" in told


def test_export_and_the_reward_model_meet(run: Path) -> None:
    call("export", run, run / "out.jsonl", "--form", "trl")
    rows = [json.loads(line) for line in (run / "out.jsonl").read_text().splitlines()]
    assert len(rows) == 12
    assert {row["chosen"] for row in rows} == {"x", "y"}
    with pytest.raises(DataError, match="form is 'odd'; expected one of raw, trl, argilla, label-studio"):
        call("export", run, run / "out.jsonl", "--form", "odd")


@pytest.mark.parametrize("tool", ["argilla", "label-studio"])
def test_what_goes_to_another_tool_comes_back(run: Path, tool: str) -> None:
    call("export", run, run / "out.json", "--form", tool)
    call("import", run / "out.json", run / "back.jsonl", "--from", tool)
    back = [json.loads(line) for line in (run / "back.jsonl").read_text().splitlines()]
    assert sorted((row["prompt"], row["preference"]) for row in back) == sorted(
        (f"p{n}", float(annotator == 1 or n > 1)) for n in range(6) for annotator in (1, 2)
    )


def test_invite_makes_links_that_open(run: Path) -> None:
    told = call("invite", run, "eve", "--supervisor", "--base-url", "https://judge.example/")
    assert told.startswith("eve: https://judge.example/join/")


def test_import_writes_what_we_read(run: Path) -> None:
    record = {"fields": {"prompt": "q", "a": "x", "b": "y"}, "responses": {"pick": [{"value": "a", "user_id": "u"}]}}
    (run / "argilla.json").write_text(json.dumps([record]))
    assert "1 judgements" in call("import", run / "argilla.json", run / "in.jsonl", "--from", "argilla")
    assert json.loads((run / "in.jsonl").read_text())["preference"] == 1.0
