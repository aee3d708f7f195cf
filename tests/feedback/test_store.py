"""The store: what lay in one of an earlier version is there, and all judgements as arrays are what they are one by one."""

import json
import random
import sqlite3
from collections import Counter, defaultdict
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from rlhf_dist.errors import DataError
from rlhf_dist.feedback import assignment, judging, people
from rlhf_dist.feedback.database import (
    Annotator,
    Judgement,
    Shown,
    Task,
    Visit,
    now,
    open_database,
    sqlite_url,
    transaction,
)
from rlhf_dist.feedback.exchange import exported, standing
from rlhf_dist.feedback.guide import Guide, keep_guide, kept_guide, read_guide
from rlhf_dist.feedback.judging import Form
from rlhf_dist.feedback.orders import turned
from rlhf_dist.feedback.serve import check_address, open_feedback
from rlhf_dist.feedback.supervision import overview
from rlhf_dist.feedback.task_files import TaskRow, load_tasks, write_tasks
from rlhf_dist.feedback.verdicts import COMPARISONS, LABELS

OLD = """
CREATE TABLE annotators (id INTEGER PRIMARY KEY, name VARCHAR NOT NULL UNIQUE, supervisor BOOLEAN NOT NULL,
 token_hash VARCHAR NOT NULL UNIQUE,
 created DATETIME NOT NULL);
CREATE TABLE visits (key_hash VARCHAR PRIMARY KEY, annotator_id INTEGER NOT NULL, csrf VARCHAR NOT NULL,
 created DATETIME NOT NULL);
CREATE TABLE tasks (id INTEGER PRIMARY KEY, digest VARCHAR NOT NULL UNIQUE, kind VARCHAR NOT NULL, prompt VARCHAR NOT NULL,
 answer_a VARCHAR NOT NULL, answer_b VARCHAR, source_a VARCHAR NOT NULL, source_b VARCHAR NOT NULL, gold VARCHAR,
 needed INTEGER NOT NULL,
 done INTEGER NOT NULL);
CREATE INDEX open_tasks ON tasks (id) WHERE gold IS NULL AND done < needed;
CREATE TABLE prompt_sources (task_id INTEGER PRIMARY KEY, columns VARCHAR NOT NULL);
CREATE TABLE judgements (id INTEGER PRIMARY KEY, task_id INTEGER NOT NULL, annotator_id INTEGER NOT NULL,
 verdict VARCHAR NOT NULL,
 comment VARCHAR NOT NULL, seconds FLOAT NOT NULL, created DATETIME NOT NULL, withdrawn DATETIME);
CREATE TABLE shown (task_id INTEGER NOT NULL, annotator_id INTEGER NOT NULL, since DATETIME NOT NULL,
 PRIMARY KEY (task_id, annotator_id));
INSERT INTO annotators VALUES (1, 'ann', 0, 'h', '2026-01-01 00:00:00');
INSERT INTO tasks VALUES (1, 'd1', 'comparison', 'p', 'x', 'y', 'ppo', 'sft', NULL, 2, 1),
 (2, 'd2', 'score', 'q', 'z', NULL, 'ppo', '', '4', 1, 1);
INSERT INTO prompt_sources VALUES (1, '{"prompt_messages": [{"role": "user", "content": "p"}]}');
INSERT INTO judgements VALUES (1, 1, 1, 'a_much', 'so', 3.5, '2026-01-01 00:00:00', NULL),
 (2, 2, 1, '4', '', 2, '2026-01-01 00:00:00', NULL);
"""


def test_a_store_of_an_earlier_version_keeps_everything_and_goes_on(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "f.db") as old:
        old.executescript(OLD)
    for _ in range(2):  # the second time there is nothing to do
        engine = open_database(sqlite_url(tmp_path / "f.db"))
        with transaction(engine) as session:
            pair, score = exported(standing(session), form="raw")
        assert (pair["a"], pair["b"], pair["source_a"], pair["margin"], pair["comment"]) == ("x", "y", "ppo", 1.0, "so")
        assert pair["shown_first"] == "ab"[turned(1, 1)]
        assert pair["prompt_messages"] == [{"role": "user", "content": "p"}]
        assert (score["answer"], score["score"], score["gold"]) == ("z", 4, "4")
    with transaction(engine) as session:
        assert load_tasks(session, [TaskRow("comparison", "new", "1", "2")], overlap=None).new == 1
        assert overview(session).judgements == 2


def store(tmp_path: Path, rows: list[TaskRow], *names: str, overlap: int = 2) -> Session:
    write_tasks(tmp_path / "t.jsonl", rows)
    return Session(open_feedback(tmp_path / "t.jsonl", None, overlap=overlap, annotators=[*names]).engine)


def test_the_overview_is_what_a_slow_count_of_all_judgements_says(tmp_path: Path) -> None:
    rng = random.Random(0)
    sources = ("ppo", "sft", "base")
    rows = []
    for n in range(60):
        a, b = rng.sample(sources, 2)
        rows.append(
            TaskRow(
                "comparison",
                f"p{n}",
                "x" * rng.randint(1, 90),
                "y" * rng.randint(1, 90),
                a,
                b,
                rng.choice([None, None, "a"]),
            )
        )
    rows += [TaskRow("ranking", f"r{n}", answers=("k", "l", "m"), sources=sources) for n in range(10)]
    names = [f"n{n}" for n in range(5)]
    with store(tmp_path, rows, *names) as session:
        asked = [assignment.task_of(session, number) for number in session.scalars(select(Task.id)).all()]
        for task in filter(None, asked):
            for who in rng.sample(range(1, 6), 3):
                kind = (
                    {"rank-0": "1", "rank-1": str(rng.randint(1, 3)), "rank-2": "2"} if task.kind == "ranking" else {}
                )
                verdict = rng.choice([*COMPARISONS, "skip"]) if not kind else "ranked"
                judging.record(session, task, who, Form({"verdict": verdict, "active": "0", **kind}, {}), ())
        session.flush()
        gone = rng.sample([*session.scalars(select(Judgement.id))], 12)
        for one in gone:
            judging.withdraw(session, one, by=1)
        seen = overview(session)
        told = exported(standing(session), form="raw")
    means: dict[tuple[str, str], dict[object, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in told:
        if row["gold"] or row["kind"] == "skips":
            continue
        pairs = [(row["source_a"], row["source_b"], row.get("preference"))] if row["kind"] == "comparisons" else []
        if row["kind"] == "rankings":
            ranked = row["sources"]
            pairs = [(x, y, 1.0) for n, x in enumerate(ranked) for y in ranked[n + 1 :]]
        for x, y, label in pairs:
            key = (min(x, y), max(x, y))
            means[key][row["task"]].append(label if x < y else 1 - label)
    expected = {key: np.mean([np.mean(each) for each in tasks.values()]) for key, tasks in means.items()}
    assert {(one.first, one.second): pytest.approx(one.won.rate.mean) for one in seen.contests} == expected
    counts = Counter(
        row["annotator"] for row in {row["judgement"]: row for row in told}.values() if row["kind"] != "skips"
    )
    assert {one.name: one.judged for one in seen.people if one.judged} == counts
    skipped = Counter(row["annotator"] for row in told if row["kind"] == "skips")
    assert {one.name: one.skipped for one in seen.people if one.skipped} == skipped
    assert sum(one.withdrawn for one in seen.people) == 12
    decided = [
        row for row in told if row["kind"] == "comparisons" and "shown_first" in row and row["preference"] != 0.5
    ]
    left = sum((row["preference"] == 1) == (row["shown_first"] == "a") for row in decided)
    assert (sum(one.conduct.left[0] for one in seen.people), sum(one.conduct.left[1] for one in seen.people)) == (
        left,
        len(decided),
    )
    assert 0 < left < len(decided)
    golden = [row for row in told if row["gold"] and row["kind"] == "comparisons"]
    right = sum(LABELS[row["verdict"]] == 1 for row in golden)
    assert (sum(one.conduct.gold[0] for one in seen.people), sum(one.conduct.gold[1] for one in seen.people)) == (
        right,
        len(golden),
    )


def progress(session: Session, who: int) -> assignment.Progress:
    return assignment.progress(session, who, assignment.what_is_there(session))


def ask(session: Session, who: int) -> assignment.Posed | None:
    return assignment.next_task(session, who, assignment.what_is_there(session))[0]


def say(session: Session, task: assignment.Posed, who: int, verdict: str = "a", **more: str) -> None:
    judging.record(session, task, who, Form({"verdict": verdict, **more}, {}), ())
    session.flush()


def test_what_is_undone_comes_back_even_if_others_have_finished_it_meanwhile(tmp_path: Path) -> None:
    with store(tmp_path, [TaskRow("comparison", "p", "x", "y")], "ann", "bob", overlap=1) as session:
        task = ask(session, 1)
        assert task is not None
        say(session, task, 2)  # the lease had ended
        say(session, task, 1)
        assert judging.undo(session, 1, 2) == task.id
        session.flush()
        assert ask(session, 1) == task, "else the judgement is lost"


def test_two_people_meet_tasks_in_different_orders_and_gold_among_them(tmp_path: Path) -> None:
    rows = [TaskRow("comparison", f"p{n}", "x", "y", gold="a" if n < 5 else None) for n in range(45)]
    orders = {}
    with store(tmp_path, rows, "ann", "bob", overlap=2) as session:
        for who in (1, 2):
            met = []
            while (task := ask(session, who)) is not None:
                met.append(task.id)
                say(session, task, who)
            orders[who] = met
            golden = [number for number, one in enumerate(met) if one <= 5]
            assert len(golden) == 5
            assert max(golden) - min(golden) > 15, "spread over the work"
    assert sorted(orders[1]) == sorted(orders[2]) == list(range(1, 46))
    assert sum(a == b for a, b in zip(orders[1], orders[2], strict=True)) < 15


def test_skips_are_no_judgements_and_can_be_asked_again(tmp_path: Path) -> None:
    with store(tmp_path, [TaskRow("comparison", f"p{n}", "x", "y") for n in range(3)], "ann") as session:
        for verdict in ("skip", "a", "skip"):
            say(session, ask(session, 1), 1, verdict)
        found = progress(session, 1)
        assert (found.judged, found.skipped, found.waiting) == (1, 2, 0)
        assert overview(session).only_skipped == 2
        assert assignment.ask_again(session, 1) == 2
        assert progress(session, 1).waiting == 2
        assert ask(session, 1) is not None


def test_a_break_is_no_slow_judgement(tmp_path: Path) -> None:
    with store(tmp_path, [TaskRow("comparison", f"p{n}", "x", "y") for n in range(6)], "ann") as session:
        for since, active in ((3600, "12.0"), (3600, ""), (3600, "7200"), (3600, "nan"), (20, "-1"), (20, "")):
            task = ask(session, 1)
            assert task is not None
            session.execute(update(Shown).values(since=now() - timedelta(seconds=since)))
            say(session, task, 1, "a", active=active)
        known = session.scalars(select(Judgement.active).order_by(Judgement.id)).all()
        assert known[0] == 12.0, "what the browser counted"
        assert known[1:4] == [None] * 3, "nobody knows, and what the browser counted cannot be"
        assert known[4:] == pytest.approx([20, 20], abs=1)
        assert assignment.pace(session, 1) == pytest.approx(20, abs=1)


def test_settings_changed_on_a_store_hold_from_then_on_and_are_told(tmp_path: Path) -> None:
    rows = [TaskRow("comparison", f"p{n}", "x", "y") for n in range(2)]
    store(tmp_path, rows, "ann", overlap=1).close()
    write_tasks(tmp_path / "t.jsonl", [TaskRow("comparison", "p0", "x", "y", gold="b")])
    opened = open_feedback(tmp_path / "t.jsonl", None, overlap=3, annotators=[], guide=Guide(question="Which?"))
    told = " / ".join(opened.notes)
    for part in (
        "2 tasks now want",
        "1 tasks have another gold answer",
        "1 earlier tasks are not in the file",
        "guide is new",
        "3 judgements, and 2 people",
    ):
        assert part in told
    with Session(opened.engine) as session:
        assert [task.needed for task in session.scalars(select(Task))] == [3, 3]
        assert kept_guide(session).question == "Which?"
        assert not keep_guide(session, Guide(question="Which?"))
    again = open_feedback(tmp_path / "t.jsonl", None, overlap=None, annotators=[])
    with Session(again.engine) as session:
        assert [task.needed for task in session.scalars(select(Task))] == [3, 3], "as it was"


def test_a_known_tasks_own_questions_and_prompt_are_what_its_file_says_now(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{n}", "a": "x", "b": "y"} for n in range(2)]
    for own, notes in (([], 0), ([{"name": "polite"}], 1), ([{"name": "polite"}], 0), ([], 1)):
        source = {"prompt_messages": [{"role": "user", "content": "p0"}]} if own else None
        rows[0] |= {"criteria": own, "prompt_source": source}
        (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        opened = open_feedback(tmp_path / "t.jsonl", None, overlap=None, annotators=[])
        assert sum("other questions of their own" in note for note in opened.notes) == notes
        with Session(opened.engine) as session:
            first, second = (task.text for task in session.scalars(select(Task).order_by(Task.id)))
            assert [each["name"] for each in json.loads(first.criteria or "[]")] == [each["name"] for each in own]
            assert (bool(first.columns), second.criteria, second.columns) == (bool(own), "", "")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x: 1", "x is not known"),
        ("question: [1]", "question is"),
        ("criteria: [{name: a, kind: odd}]", "criteria: 0.kind"),
        ("- 1", "mapping"),
        ('question: "a\\0b"', "whole characters"),
        ('guidelines: "a\\ud800"', "whole characters"),
        ('criteria: [{name: "he\\elp"}]', "only what is seen"),
        ('criteria: [{name: a, kind: choice, choices: ["g\\0", b]}]', "only what is seen"),
        ('criteria: [{name: a, ask: "a\\0"}]', "whole characters"),
    ],
)
def test_a_guide_that_cannot_be_is_named(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "g.yaml").write_text(text)
    with pytest.raises(Exception, match=rf"g.yaml: .*{told}"):
        read_guide(tmp_path / "g.yaml")


@pytest.mark.parametrize("name", ["", " ", "a\nb", "a\u202eb", "x" * 81, "a\0", "\u3164"])
def test_names_that_cannot_be_told_apart_are_refused(tmp_path: Path, name: str) -> None:
    with (
        store(tmp_path, [TaskRow("comparison", "p", "x", "y")]) as session,
        pytest.raises(DataError, match="annotator"),
    ):
        people.invite(session, name)


def test_blanks_do_not_make_another_name() -> None:
    assert people.checked_name(" ann\u00a0  b ") == "ann b"


def test_visits_end_after_absence_and_by_sign_out(tmp_path: Path) -> None:
    with store(tmp_path, [TaskRow("comparison", "p", "x", "y")], "ann") as session:
        ann = session.scalars(select(Annotator).where(Annotator.name == "ann")).one()
        key = people.enter(session, ann, None)
        session.flush()
        visit = session.scalars(select(Visit)).one()
        visit.used = now() - people.LONGEST_ABSENCE - timedelta(minutes=1)
        session.flush()
        assert people.visit_of(session, key) is None
        visit.used = now()
        session.flush()
        found = people.visit_of(session, key)
        assert found is not None
        assert (found.name, found.csrf) == ("ann", visit.csrf)
        visit.created = now() - people.LONGEST_VISIT - timedelta(minutes=1)
        session.flush()
        assert people.visit_of(session, key) is None
        people.sign_out(session, ann.id)
        assert session.scalars(select(Visit)).all() == []


@pytest.mark.parametrize(
    ("host", "base"),
    [
        ("0.0.0.0", None),
        ("::", None),
        *(
            ("127.0.0.1", base)
            for base in ("nonsense", "ftp://x", "http://h:port", "https://who:word@h/x", "http://h?q", "http://h:65536")
        ),
        *(("127.0.0.1", f"https://h{path}") for path in ("/a b", "/a%20b", "/\u00e4", "//a", "/a;b")),
    ],
)
def test_links_that_nobody_can_open_are_refused_before_they_are_printed(host: str, base: str | None) -> None:
    with pytest.raises(Exception, match="base-url"):
        check_address(host, base)


@pytest.mark.parametrize(
    "base", ["http://h", "https://h:8443/a/b_c.d~e-f/", "http://[::1]:80/", "HTTP://10.0.0.7:8000"]
)
def test_links_that_people_can_open_are_taken(base: str) -> None:
    check_address("0.0.0.0", base)


def test_texts_of_any_characters_are_kept(tmp_path: Path) -> None:
    odd = "a\0b \u202e \U0001f600 \ufffe"
    with store(tmp_path, [TaskRow("comparison", odd, odd + "1", odd + "2")], "ann") as session:
        task = ask(session, 1)
        assert task is not None
        assert json.loads(task.answers) == [odd + "1", odd + "2"]
        say(session, task, 1, comment="x\r\ny\0\ud800")
        session.commit()
        (row,) = exported(standing(session), form="raw")
    assert (row["prompt"], row["comment"]) == (odd, "x\ny?")
