"""One more round with people: learn from what they said of a run's answers, compare, and ask them about the new policy.

Whatever is done is left out, so the same command goes on with a round that was interrupted:

    people judge ──► judgements.jsonl ──► reward model ──► PPO ──► rounds.json ──► tasks of the new policy ──► people judge
"""

from __future__ import annotations

import filecmp
import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.markup import escape

from rlhf_dist.config import PipelineConfig
from rlhf_dist.config.pipeline import OWN_REWARD
from rlhf_dist.errors import ConfigError, DataError
from rlhf_dist.feedback.database import open_database, transaction
from rlhf_dist.feedback.exchange import exported, standing, write_rows
from rlhf_dist.feedback.serve import TASKS, database_url
from rlhf_dist.feedback.task_files import TaskRow, load_tasks, read_tasks, write_tasks
from rlhf_dist.files import as_json, lines_of, write_text
from rlhf_dist.run_folder.console import Console
from rlhf_dist.run_folder.names import SUMMARY
from rlhf_dist.run_folder.passages import Passage, read_passages, write_passages
from rlhf_dist.run_folder.report import write_report
from rlhf_dist.stages import pipeline
from rlhf_dist.stages.feedback_sample import Wanted, sample
from rlhf_dist.stages.pipeline import JUDGEMENTS
from rlhf_dist.stages.rounds import Round, compared, digest_of, keep_round, policy_number, read_rounds, run_before

TITLE = "Against the policy before"


def again(config: PipelineConfig, run: Path, console: Console, *, prompts: int, database: str | None) -> None:
    """Go through a round, or go on with the one that was interrupted.

    Args:
        config: the pipeline's settings.
        run: its folder, which this process holds.
        console: where to speak.
        prompts: how many the new policy and the one before answer for the next round.
        database: SQLAlchemy's URL of people's judgements; None: SQLite beside the tasks.

    Raises:
        DataError: nobody has judged anything since the round before.
        ConfigError: the pipeline trains no reward model, which would learn from people.
    """
    if not config.trains_reward_model:
        raise ConfigError(
            f"{run}: no reward is the pipeline's own model, so nothing would learn from people; expected a reward of kind model "
            f"whose path is {OWN_REWARD}"
        )
    if _has_learnt(run) and _has_asked(run):
        _listen(run, database)
    if not _has_learnt(run):
        pipeline.run(config, run, console, resume=True)
        _compare(run)
    console.say(escape(read_rounds(run)[-1].told()))
    if not _has_asked(run):
        _ask(run, prompts, database)
    console.say(
        f"{read_rounds(run)[-1].tasks} new tasks; show them to people with: rlhf-dist feedback serve {escape(str(run))}"
    )


def _has_learnt(run: Path) -> bool:
    """Whether a policy has come of all that was taken from people."""
    file, rounds = run / JUDGEMENTS, read_rounds(run)
    return not file.exists() or (bool(rounds) and rounds[-1].digest == digest_of(file))


def _has_asked(run: Path) -> bool:
    """Whether people have tasks of the newest policy."""
    return all(each.tasks is not None for each in read_rounds(run))


def _listen(run: Path, database: str | None) -> None:
    """Take what people have said, in all rounds, unless it is what was taken before."""
    with TemporaryDirectory() as folder:
        heard, known = Path(folder) / JUDGEMENTS.name, run / JUDGEMENTS
        said = _heard(run, heard, database)
        if not said or (known.exists() and filecmp.cmp(heard, known, shallow=False)):
            since = f" since round {policy_number(run)} learnt from all that was said" if said else ""
            raise DataError(
                f"{run}: nobody has judged anything{since}; expected judgements. Show people the tasks with: rlhf-dist feedback "
                f"serve {run}"
            )
        write_text(known, heard.read_text(encoding="utf-8"))


def _heard(run: Path, out: Path, database: str | None) -> int:
    """Write what can be learnt from; returns the number of rows. Skips and gold questions are no news."""
    with transaction(open_database(database_url(run, database)), reads=True) as session:
        rows = exported(standing(session), form="raw")
    learnt = [row for row in rows if row["kind"] not in ("skips", "choices") and row["gold"] is None]
    write_rows(out, learnt)
    return len(learnt)


def _compare(run: Path) -> None:
    """Say in rounds.json, summary and report how the new policy compares with the one before."""
    heard = run / JUDGEMENTS
    made = Round(
        number=policy_number(run) + 1,
        judgements=len(lines_of(heard.read_bytes())),
        digest=digest_of(heard),
        **compared(run_before(run), run),
    )
    told = {key: value for key, value in vars(made).items() if key not in ("digest", "tasks")}
    summary = json.loads((run / SUMMARY).read_text()) | {"round": told}
    others = [each for each in read_passages(run) if each.title != TITLE]
    write_passages(run, [Passage(TITLE, f"{made.told()}."), *others])
    write_text(run / SUMMARY, as_json(summary, indent=2))
    write_report(run, summary)
    keep_round(run, made)


def _ask(run: Path, prompts: int, database: str | None) -> None:
    """Ask people about the new policy and the one before, beside the tasks that they have."""
    made = read_rounds(run)[-1]
    rows = sample(Wanted(run, "before", "comparison", prompts, seed=made.number)).rows
    write_tasks(run / TASKS, [*read_tasks(str(run / TASKS)), *rows])
    _load(run, rows, database)
    keep_round(run, replace(made, tasks=len(rows)))


def _load(run: Path, rows: list[TaskRow], database: str | None) -> None:
    """Into the database, so that a page that is being served goes on; each is judged as often as those before."""
    with transaction(open_database(database_url(run, database))) as session:
        load_tasks(session, rows, overlap=None)
