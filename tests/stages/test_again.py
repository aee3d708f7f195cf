"""Rounds with people around a pipeline whose stages are made in no time; a real one is in tests/integration/test_demo.py."""

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from rlhf_dist.config import PipelineConfig, override
from rlhf_dist.errors import ConfigError, DataError, WorkerLost
from rlhf_dist.feedback.assignment import task_of
from rlhf_dist.feedback.database import Annotator, Task, open_database, transaction
from rlhf_dist.feedback.judging import Form, record
from rlhf_dist.feedback.serve import TASKS, database_url, open_feedback
from rlhf_dist.feedback.task_files import TaskRow, read_tasks, write_tasks
from rlhf_dist.files import read_json_lines
from rlhf_dist.run_folder.console import Console
from rlhf_dist.run_folder.passages import read_passages
from rlhf_dist.stages import pipeline
from rlhf_dist.stages.again import TITLE, again
from rlhf_dist.stages.feedback_sample import Sampled, Wanted
from rlhf_dist.stages.rounds import policy_name, policy_number, read_rounds
from tests.stages.conftest import Made

OVERLAP = 2


class Answers:
    """What stands in for engines: tasks of the run's policy against the one before."""

    def __init__(self) -> None:
        self.wanted: list[Wanted] = []
        self.fails = False

    def sample(self, wanted: Wanted) -> Sampled:
        if self.fails:
            raise WorkerLost("rollout-0 died")
        self.wanted.append(wanted)
        number = policy_number(wanted.run)
        ours, theirs = policy_name(number), policy_name(number - 1)
        return Sampled(
            [TaskRow("comparison", f"p{n}", f"{ours} {n}", f"{theirs} {n}", ours, theirs) for n in range(3)], {}
        )


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    made = Answers()
    monkeypatch.setattr("rlhf_dist.stages.again.sample", made.sample)
    monkeypatch.setattr("rlhf_dist.stages.again.write_report", lambda *_: None)
    return made


@pytest.fixture
def run(own: PipelineConfig, stages: dict[str, Made], tmp_path: Path) -> Path:
    """A finished pipeline with three tasks, of which nobody has judged any."""
    path = tmp_path / "run"
    stages["rl"].gold = [0.5, 0.5, 0.5, None]
    pipeline.run(own, path, Console())
    write_tasks(path / TASKS, [TaskRow("comparison", f"p{n}", "x", "y", "policy-1", "sft") for n in range(3)])
    open_feedback(path, None, overlap=OVERLAP, annotators=["ann", "bob"]).engine.dispose()
    stages["rl"].gold = [0.9, 0.5, 0.1, 0.7]
    return path


def say(run: Path, verdict: str, *, tasks: int = 3, who: str = "ann") -> None:
    """Somebody judges that many tasks that nobody has judged yet."""
    with transaction(open_database(database_url(run, None))) as session:
        annotator = session.scalars(select(Annotator.id).where(Annotator.name == who)).one()
        open_tasks = session.scalars(select(Task.id).where(Task.done == 0).order_by(Task.id)).all()
        for number in open_tasks[:tasks]:
            task = task_of(session, number)
            assert task is not None
            record(session, task, annotator, Form({"verdict": verdict}, {}), ())


def once_more(config: PipelineConfig, run: Path) -> None:
    again(config, run, Console(), prompts=3, database=None)


def ran(stages: dict[str, Made]) -> dict[str, int]:
    return {name: each.ran for name, each in stages.items()}


def test_a_round_learns_compares_and_asks_again(
    own: PipelineConfig, stages: dict[str, Made], run: Path, answers: Answers, capsys: pytest.CaptureFixture[str]
) -> None:
    say(run, "a_much", tasks=2)
    once_more(own, run)
    assert ran(stages) == {"sft": 1, "reward": 2, "rl": 2}
    assert len(read_json_lines(run / "feedback" / "judgements.jsonl")) == 2
    (made,) = read_rounds(run)
    assert (made.number, made.judgements, made.prompts, made.tasks) == (2, 2, 3, 3)
    assert made.gold_win_rate == pytest.approx(0.5), "a win, a tie, a loss; of the fourth one score is unknown"
    assert made.kl == [1.0, 2.0]
    summary = json.loads((run / "summary.json").read_text())
    assert summary["round"] | {"number": 2, "judgements": 2} == summary["round"]
    assert summary["stage"] == "rl", "what PPO said is still there"
    assert [each.title for each in read_passages(run)] == [TITLE]
    told = " ".join(capsys.readouterr().out.split())
    assert "judgements.jsonl is new (0 -> 2 rows): runs again" in told
    assert "prefers policy-2 over policy-1 on 50.0%" in told
    with transaction(open_database(database_url(run, None))) as session:
        new = session.scalars(select(Task).where(Task.sources.contains("policy-2"))).all()
        assert [task.needed for task in new] == [OVERLAP] * 3
    assert len(read_tasks(str(run / TASKS))) == 6, "the tasks of the round before are still asked"
    assert answers.wanted == [Wanted(run, "before", "comparison", 3, seed=2)]


def test_a_round_without_news_is_refused_and_costs_nothing(
    own: PipelineConfig, stages: dict[str, Made], run: Path, answers: Answers
) -> None:
    say(run, "skip", who="bob")
    with pytest.raises(DataError, match="nobody has judged anything; expected judgements"):
        once_more(own, run)
    say(run, "b", tasks=1)
    once_more(own, run)
    before = ran(stages)
    with pytest.raises(DataError, match="nobody has judged anything since round 2 learnt"):
        once_more(own, run)
    assert ran(stages) == before
    assert len(answers.wanted) == 1


def test_the_rounds_after_learn_from_all_that_was_said_and_are_numbered(
    own: PipelineConfig, stages: dict[str, Made], run: Path, answers: Answers
) -> None:
    for _ in range(3):
        say(run, "a")
        once_more(own, run)
    assert [each.judgements for each in read_rounds(run)] == [3, 6, 9]
    assert [each.kl for each in read_rounds(run)] == [[1.0, 2.0], [2.0, 3.0], [3.0, 4.0]]
    pairs = {(row.source_a, row.source_b) for row in read_tasks(str(run / TASKS))}
    assert pairs == {("policy-1", "sft"), *((policy_name(n), policy_name(n - 1)) for n in (2, 3, 4))}
    assert [wanted.seed for wanted in answers.wanted] == [2, 3, 4], "other prompts each time"
    assert ran(stages) == {"sft": 1, "reward": 4, "rl": 4}


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("reward", {"sft": 1, "reward": 3, "rl": 2}),
        ("rl", {"sft": 1, "reward": 2, "rl": 3}),
        ("write_report", {"sft": 1, "reward": 2, "rl": 2}),
        ("sample", {"sft": 1, "reward": 2, "rl": 2}),
        ("load_tasks", {"sft": 1, "reward": 2, "rl": 2}),
    ],
)
def test_a_round_that_was_interrupted_goes_on_and_does_nothing_twice(
    where: str,
    expected: dict[str, int],
    own: PipelineConfig,
    stages: dict[str, Made],
    run: Path,
    answers: Answers,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise WorkerLost("gone")

    say(run, "a", tasks=2)
    failing = {**stages, "sample": answers}.get(where)
    with monkeypatch.context() as patch:
        if failing is not None:
            patch.setattr(failing, "fails", True)
        else:
            patch.setattr(f"rlhf_dist.stages.again.{where}", broken)
        with pytest.raises(WorkerLost):
            once_more(own, run)
    say(run, "b", tasks=1)
    once_more(own, run)
    assert ran(stages) == expected
    assert len(read_json_lines(run / "feedback" / "judgements.jsonl")) == 2, "what came meanwhile is the next round's"
    (made,) = read_rounds(run)
    assert (made.number, made.judgements, made.tasks) == (2, 2, 3)
    assert made.kl == [1.0, float(expected["rl"])]
    assert len(read_passages(run)) == 1
    with transaction(open_database(database_url(run, None))) as session:
        assert len(session.scalars(select(Task)).all()) == 6
    once_more(own, run)
    assert [each.judgements for each in read_rounds(run)] == [2, 3]


def test_the_pipelines_own_command_goes_on_with_what_people_said_and_its_config_stays_the_users(
    own: PipelineConfig, stages: dict[str, Made], run: Path, answers: Answers
) -> None:
    say(run, "a")
    once_more(own, run)
    before = ran(stages)
    pipeline.run(own, run, Console())
    assert ran(stages) == before
    data = [each.model_dump() for each in own.reward_model.data]
    listed = own.model_dump() | {
        "reward_model": {"data": [*data, {"path": str(run / "feedback" / "judgements.jsonl")}]}
    }
    listed = PipelineConfig.model_validate(listed)
    (_, _, config) = pipeline.supervised_stages(listed, run)[-1]
    assert len(config.data) == 2, "a file that the config names is not read twice"
    with pytest.raises(ConfigError, match="was made with held_out"):
        pipeline.run(override(own, ["reward_model.held_out=0.3"]), run, Console())


def test_without_a_reward_model_nothing_would_learn_from_people(own: PipelineConfig, tmp_path: Path) -> None:
    rule = {"kind": "function", "name": "r", "path": "tests.scoring.rules:length_of"}
    tree = own.model_dump(exclude={"reward_model", "reward", "learner"}, exclude_defaults=True)
    ruled = PipelineConfig(**tree, reward=[rule], learner={"critic": "value_head"})
    with pytest.raises(ConfigError, match="nothing would learn from people; expected a reward of kind model"):
        again(ruled, tmp_path, Console(), prompts=1, database=None)
