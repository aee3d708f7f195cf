"""The page over HTTP, in this process: who may do what, and what is stored."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from rlhf_dist.errors import DataError, EnvironmentProblem, StorageError
from rlhf_dist.feedback import exchange, people
from rlhf_dist.feedback.app import make_app
from rlhf_dist.feedback.database import Annotator, Judgement, Task, Visit, open_database, transaction
from rlhf_dist.feedback.orders import turned as is_flipped
from rlhf_dist.feedback.serve import open_feedback
from rlhf_dist.feedback.supervision import overview
from rlhf_dist.feedback.task_files import TaskRow, read_tasks, write_tasks

TASKS = [TaskRow("comparison", f"prompt {n}", f"good {n}", f"bad {n}", "ppo", "sft") for n in range(4)]


class Page:
    """A browser of one annotator."""

    def __init__(self, engine: Engine, token: str) -> None:
        self.client = TestClient(make_app(engine), base_url="http://127.0.0.1", follow_redirects=True)
        self.response = self.client.get(f"/join/{token}")

    @property
    def text(self) -> str:
        return self.response.text

    def field(self, name: str) -> str:
        return re.search(rf'name="{name}" value="([^"]*)"', self.text)[1]

    def send(self, verdict: str, *, comment: str = "", **changes: str):
        form = {"csrf": self.field("csrf"), "task": self.field("task"), "verdict": verdict, "comment": comment}
        self.response = self.client.post("/judge", data={**form, **changes})
        return self.response

    def undo(self):
        self.response = self.client.post(
            "/undo", data={"csrf": self.field("csrf"), "judgement": self.field("judgement")}
        )
        return self.response

    def better(self, text: str) -> str:
        """The verdict that prefers the answer with this text, as the page shows it."""
        first, _ = re.findall(r'<div class="text [^>]*data-answer="\w"[^>]*>(.*?)</div>', self.text, re.S)
        return "a" if text in re.sub("<.*?>", "", first) else "b"


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[tuple[Engine, dict[str, str]]]:
    write_tasks(tmp_path / "tasks.jsonl", TASKS)
    made = open_feedback(tmp_path / "tasks.jsonl", None, overlap=2, annotators=["ann", "bob", "cat"])
    yield made.engine, made.invitations
    made.engine.dispose()


def judgements(engine: Engine) -> list[Judgement]:
    with Session(engine) as session:
        return list(session.scalars(select(Judgement).order_by(Judgement.id)))


def test_a_judgement_is_stored_by_the_tasks_own_sides_whatever_side_was_shown(opened) -> None:
    engine, tokens = opened
    flips = set()
    for name in ("ann", "bob"):
        page = Page(engine, tokens[name])
        for _ in TASKS:
            page.send(page.better("good"))
        assert "All done" in page.text
    for one in judgements(engine):
        assert one.verdict == "a"
        flips.add(is_flipped(one.task_id, one.annotator_id))
    assert flips == {True, False}, "both sides were seen"
    with Session(engine) as session:
        (one,) = overview(session).contests
    assert (one.first, one.second, one.won.rate.mean, one.won.wins) == ("ppo", "sft", 1.0, 4)


def test_a_task_goes_to_as_many_annotators_as_it_needs(opened) -> None:
    engine, tokens = opened
    for name in ("ann", "bob"):
        page = Page(engine, tokens[name])
        for _ in TASKS:
            page.send("tie")
    third = Page(engine, tokens["cat"])
    assert "All done" in third.text
    assert "nothing left to judge" in third.text


def test_what_is_before_anothers_eyes_is_not_given_to_a_third_and_not_called_done(tmp_path: Path) -> None:
    write_tasks(tmp_path / "t.jsonl", TASKS[:2])
    made = open_feedback(tmp_path / "t.jsonl", None, overlap=1, annotators=["ann", "bob", "cat"])
    first, second, third = (Page(made.engine, made.invitations[name]) for name in ("ann", "bob", "cat"))
    assert first.field("task") != second.field("task")
    again = first.client.get("/")
    assert f'name="task" value="{first.field("task")}"' in again.text, "a reload shows the same task"
    assert "Nothing for you now" in third.text
    assert "last 2 tasks" in third.text
    assert "0 of 2" in third.text
    first.send("a")
    second.send("a")
    assert "All done" in third.client.get("/").text


def test_double_submission_and_a_stale_page_store_one_judgement(opened) -> None:
    engine, tokens = opened
    page = Page(engine, tokens["ann"])
    form = {"csrf": page.field("csrf"), "task": page.field("task"), "verdict": "a", "comment": ""}
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda _: page.client.post("/judge", data=form).status_code, range(8)))
    assert statuses == [200] * 8
    assert page.client.post("/judge", data={**form, "verdict": "b"}).status_code == 200
    (one,) = judgements(engine)
    assert one.verdict in ("a", "b")
    with Session(engine) as session:
        assert session.get(Task, one.task_id).done == 1


def test_undo_shows_the_task_again_once_and_keeps_what_was_withdrawn(opened) -> None:
    engine, tokens = opened
    page = Page(engine, tokens["ann"])
    task = page.field("task")
    page.send("a")
    form = {"csrf": page.field("csrf"), "judgement": page.field("judgement")}
    page.undo()
    assert page.field("task") == task
    page.client.post("/undo", data=form)
    page.send("b")
    stored = judgements(engine)
    assert [one.withdrawn is None for one in stored] == [False, True]
    with Session(engine) as session:
        assert session.get(Task, int(task)).done == 1
        assert len(exchange.exported(session.scalars(select(Judgement)), form="raw")) == 1, (
            "what was withdrawn is no feedback"
        )


def test_nobody_undoes_what_another_said(opened) -> None:
    engine, tokens = opened
    Page(engine, tokens["ann"]).send("a")
    bob = Page(engine, tokens["bob"])
    bob.client.post("/undo", data={"csrf": bob.field("csrf"), "judgement": "1"})
    assert judgements(engine)[0].withdrawn is None


def test_only_who_is_invited_comes_in_and_only_supervisors_supervise(opened) -> None:
    engine, tokens = opened
    stranger = TestClient(make_app(engine), base_url="http://127.0.0.1")
    for path in ("/", "/supervise", "/supervise/export.jsonl", "/join/guess"):
        assert stranger.get(path).status_code == 403, path
    ann = Page(engine, tokens["ann"])
    for path in ("/supervise", "/supervise/export.jsonl"):
        assert ann.client.get(path).status_code == 403
    form = {"csrf": ann.field("csrf"), "name": "eve", "token": people.new_token()}
    invited = ann.client.post("/supervise/invite", data=form)
    assert invited.status_code == 403
    boss = Page(engine, tokens["supervisor"])
    assert "How it goes" in boss.text
    form = {"csrf": boss.field("csrf"), "name": "eve", "token": boss.field("token")}
    link = boss.client.post("/supervise/invite", data=form).text
    token = re.search(r"/join/([\w-]+)", link)[1]
    eve = Page(engine, token)
    assert "Which answer is better?" in eve.text
    assert f"/join/{token}" in boss.client.post("/supervise/invite", data=form).text, "a page loaded again"
    other = {**form, "token": people.new_token()}
    again = boss.client.post("/supervise/invite", data=other)
    assert (again.status_code, "eve has an invitation already" in again.text) == (422, True)
    eve.client.get(f"/join/{token}")
    assert eve.send("a").status_code == 200, "the link opened once more leaves open forms as they are"
    boss.client.post("/supervise/invite", data={**other, "replace": "true"})
    assert eve.client.get("/").status_code == 403


def test_whatever_a_supervisors_address_says_is_a_page_or_a_sentence(opened) -> None:
    engine, tokens = opened
    boss = Page(engine, tokens["supervisor"])
    large = "9" * 20
    for query in (
        "verdict=%00",
        f"person={large}",
        "person=99",
        "state=%00",
        "remarks=%00",
        f"before={large}",
        "before=-1",
    ):
        assert boss.client.get(f"/supervise/judgements?{query}").status_code in (200, 422), query
    for path in (f"tasks/{large}", "tasks/99", f"tasks?after={large}", "tasks?which=%00", "export.jsonl?form=%00"):
        assert boss.client.get(f"/supervise/{path}").status_code == 422, path
    for name in ("withdraw", "withdraw-all", "sign-out"):
        for number, status in ((large, 422), ("99", 200)):
            form = {"csrf": boss.field("csrf"), "judgement": number, "person": number}
            assert boss.client.post(f"/supervise/{name}", data=form).status_code == status, (name, number)


def test_a_form_of_another_page_is_refused(opened) -> None:
    engine, tokens = opened
    page, other = Page(engine, tokens["ann"]), Page(engine, tokens["bob"])
    assert page.send("a", csrf=other.field("csrf")).status_code == 403
    assert page.client.post("/judge", data={"task": "1", "verdict": "a"}).status_code == 403
    assert judgements(engine) == []


def test_tokens_are_kept_as_digests_and_the_cookie_is_out_of_reach_of_scripts(opened) -> None:
    engine, tokens = opened
    client = TestClient(make_app(engine), base_url="http://127.0.0.1", follow_redirects=False)
    answer = client.get(f"/join/{tokens['ann']}")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    key = re.match(r"feedback-\w+=([^;]+)", cookie)[1]
    with Session(engine) as session:
        stored = [*session.scalars(select(Annotator.token_hash)), *session.scalars(select(Visit.key_hash))]
    assert tokens["ann"] not in stored
    assert key not in stored
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_a_new_invitation_ends_the_old_one(opened) -> None:
    engine, tokens = opened
    page = Page(engine, tokens["ann"])
    from rlhf_dist.feedback.people import invite

    with Session(engine) as session, session.begin():
        invite(session, "ann")
    assert page.client.get("/").status_code == 403
    assert page.client.get(f"/join/{tokens['ann']}").status_code == 403


def test_answers_are_text_and_never_markup(tmp_path: Path) -> None:
    row = TaskRow("comparison", "<b>p</b>", "<script>alert(1)</script>", "<img src=x onerror=alert(1)>")
    write_tasks(tmp_path / "tasks.jsonl", [row])
    made = open_feedback(tmp_path / "tasks.jsonl", None, overlap=1, annotators=["<i>ann</i>"])
    page = Page(made.engine, made.invitations["<i>ann</i>"])
    for mark in ("<script>alert", "<img", "<b>p", "<i>ann"):
        assert mark not in page.text
    plain = re.sub(r"</?mark>", "", page.text)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in plain
    page.send("a", comment="<script>alert(2)</script>")
    boss = Page(made.engine, made.invitations["supervisor"])
    assert "<script>alert" not in boss.text


BAD = {
    "odd verdict": ({"verdict": "left"}, "verdict is &#39;left&#39;"),
    "no such task": ({"task": "99"}, "there is no task &#39;99&#39;"),
    "long comment": ({"comment": "x" * 5001}, "at most 5000"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_judgement_that_cannot_be_is_refused_with_a_sentence(case: str, opened) -> None:
    engine, tokens = opened
    changes, message = BAD[case]
    page = Page(engine, tokens["ann"])
    response = page.send(changes.pop("verdict", "a"), **changes)
    assert response.status_code == 422
    assert message in response.text
    assert judgements(engine) == []


def test_scores_and_comments_are_taken_and_exported(tmp_path: Path) -> None:
    write_tasks(tmp_path / "t.jsonl", [TaskRow("score", "p", "x"), TaskRow("comment", "p", "y")])
    made = open_feedback(tmp_path / "t.jsonl", None, overlap=1, annotators=["ann"])
    page = Page(made.engine, made.invitations["ann"])
    for _ in range(2):
        if 'class="judge score"' in page.text:
            page.send("4")
        else:
            assert page.send("said").status_code == 422, "a comment task wants a comment"
            page.response = page.client.get("/")
            page.send("said", comment=" fine\r\nindeed\0 ")
    with Session(made.engine) as session:
        rows = exchange.exported(exchange.standing(session), form="raw")
    score, comment = sorted(rows, key=lambda row: row["kind"], reverse=True)
    assert (score["kind"], score["score"], score["answer"]) == ("scores", 4, "x")
    assert (comment["kind"], comment["comment"], comment["annotator"]) == ("comments", "fine\nindeed", "ann")


def test_exports_open_in_trl_form_and_leave_out_ties_skips_and_gold(opened, tmp_path: Path) -> None:
    engine, tokens = opened
    page = Page(engine, tokens["ann"])
    for verdict in (page.better("good"), "tie", "skip"):
        page.send(verdict)
    flipped = is_flipped(int(page.field("task")), 1)
    page.send("b_much" if not flipped else "a_much")
    boss = Page(engine, tokens["supervisor"]).client
    rows = [json.loads(line) for line in boss.get("/supervise/export.jsonl?form=trl").text.splitlines()]
    assert [(row["chosen"][:4], row["rejected"][:4], row["margin"]) for row in rows] == [
        ("good", "bad ", 0.0),
        ("bad ", "good", 1.0),
    ]
    import datasets

    file = tmp_path / "feedback.parquet"
    file.write_bytes(boss.get("/supervise/export.parquet?form=trl").content)
    assert datasets.load_dataset("parquet", data_files=str(file), split="train")[0]["annotator"] == "ann"
    raw = [json.loads(line) for line in boss.get("/supervise/export.jsonl").text.splitlines()]
    assert [row.get("preference") for row in raw] == [1.0, 0.5, None, 0.0]
    assert [row["kind"] for row in raw] == ["comparisons", "comparisons", "skips", "comparisons"]


def test_every_button_says_what_it_does(tmp_path: Path) -> None:
    write_tasks(tmp_path / "t.jsonl", [TaskRow("score", "p", "good")])
    made = open_feedback(tmp_path / "t.jsonl", None, overlap=1, annotators=["ann"])
    labels = re.findall(r"<button name=.*?<span>(.*?)</span>", Page(made.engine, made.invitations["ann"]).text)
    assert labels == ["1 Useless", "2", "3 Fair", "4", "5 Perfect", "Skip"]


def test_gold_questions_go_to_everybody_and_count_for_quality(tmp_path: Path) -> None:
    write_tasks(tmp_path / "t.jsonl", [TaskRow("comparison", "p", "good", "bad", gold="a")])
    made = open_feedback(tmp_path / "t.jsonl", None, overlap=1, annotators=["ann", "bob"])
    for name, wanted in (("ann", "good"), ("bob", "bad")):
        page = Page(made.engine, made.invitations[name])
        page.send(page.better(wanted))
    with Session(made.engine) as session:
        golden = {one.name: one.conduct.gold for one in overview(session).people}
        rows = exchange.exported(exchange.standing(session), form="raw")
        assert [(row["gold"], row["preference"]) for row in rows] == [("a", 1.0), ("a", 0.0)], "said to be gold's"
        assert exchange.exported(exchange.standing(session), form="trl") == [], "they are no feedback"
    assert golden == {"ann": (1, 1), "bob": (0, 1), "supervisor": (0, 0)}


def test_a_page_on_loopback_answers_under_its_own_name_only(opened) -> None:
    engine, _ = opened
    client = TestClient(make_app(engine, hosts=["127.0.0.1"]), base_url="http://evil.example")
    assert client.get("/").status_code == 400


def test_loading_twice_adds_nothing_and_bad_tasks_are_named(opened, tmp_path: Path) -> None:
    again = open_feedback(tmp_path / "tasks.jsonl", None, overlap=2, annotators=["ann"])
    assert (again.loaded.new, again.invitations) == (0, {})
    (tmp_path / "bad.jsonl").write_text('{"kind": "comparison", "prompt": "p", "a": "x"}\n')
    with pytest.raises(DataError, match=r"bad.jsonl:1: b is None; expected text"):
        read_tasks(str(tmp_path / "bad.jsonl"))
    with pytest.raises(DataError, match="no such file; expected tasks, as `rlhf-dist feedback sample`"):
        open_feedback(tmp_path, None, overlap=1, annotators=[])
    with pytest.raises(EnvironmentProblem, match="expected a URL of SQLAlchemy's"):
        open_database("nonsense")


def test_on_a_full_disk_nothing_is_lost_and_it_is_said(opened: tuple[Engine, dict[str, str]]) -> None:
    engine, tokens = opened
    page = Page(engine, tokens["ann"])
    shown = page.response

    def room(pages: int) -> None:
        with engine.connect() as connection:
            connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")

    room(1)  # it keeps what it has, and gets no more
    assert page.send("a", comment="c" * 5_000).status_code == 503
    assert "Not stored" in page.text
    with (
        pytest.raises(StorageError, match=r"database sqlite:.*: database or disk is full"),
        transaction(engine) as session,
    ):
        session.add(Annotator(name="n" * 100_000, supervisor=False, token_hash="t"))
    room(1_000_000)
    page.response = shown
    assert page.send("a", comment="c" * 5_000).status_code == 200
    with Session(engine) as session:
        assert [len(each.comment) for each in session.scalars(select(Judgement))] == [5_000]
