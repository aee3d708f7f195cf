"""The doors: under which names and paths the page answers, how much a form may bring, whose cookie is whose."""

import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from rlhf_dist.feedback.app import make_app
from rlhf_dist.feedback.serve import Opened, open_feedback
from rlhf_dist.feedback.task_files import TaskRow, write_tasks


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    write_tasks(tmp_path / "t.jsonl", [TaskRow("comparison", "p", "x", "y")])
    return open_feedback(tmp_path / "t.jsonl", None, overlap=1, annotators=["ann", "bob"])


@pytest.mark.parametrize("stripped", [False, True])
def test_a_base_url_with_a_path_works_whether_the_proxy_strips_it_or_not(opened: Opened, stripped: bool) -> None:
    app = make_app(opened.engine, base_url="https://rate.example/rlhf/")
    client = TestClient(app, base_url="https://rate.example", follow_redirects=False)
    prefix = "" if stripped else "/rlhf"
    joined = client.get(f"{prefix}/join/{opened.invitations['supervisor']}")
    assert joined.headers["location"] == "/rlhf/supervise"
    assert "Path=/rlhf/" in joined.headers["set-cookie"]
    assert "Secure" in joined.headers["set-cookie"]
    cookie = {"cookie": joined.headers["set-cookie"].partition(";")[0]}
    page = client.get(f"{prefix}/supervise", headers=cookie).text
    links = re.findall(r'(?:href|src|action)="(/[^"]*)"', page)
    assert links
    assert all(link.startswith("/rlhf/") for link in links)
    assert client.get(f"{prefix}/style.css").status_code == 200
    form = {name: re.search(rf'name="{name}" value="([^"]*)"', page)[1] for name in ("csrf", "token")}
    made = client.post(f"{prefix}/supervise/invite", data={**form, "name": "eve"}, headers=cookie).text
    assert f"https://rate.example/rlhf/join/{form['token']}" in made


def test_two_pages_on_one_host_have_cookies_of_their_own(opened: Opened, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    write_tasks(tmp_path / "other" / "t.jsonl", [TaskRow("comparison", "p", "x", "y")])
    other = open_feedback(tmp_path / "other" / "t.jsonl", None, overlap=1, annotators=["ann"])
    names = set()
    for each in (opened, other, opened):
        client = TestClient(make_app(each.engine), base_url="http://127.0.0.1", follow_redirects=False)
        names.add(client.get(f"/join/{each.invitations['ann']}").headers["set-cookie"].partition("=")[0])
    assert len(names) == 2


def test_anothers_link_asks_before_the_browser_becomes_somebody_else(opened: Opened) -> None:
    client = TestClient(make_app(opened.engine), base_url="http://127.0.0.1")
    client.get(f"/join/{opened.invitations['ann']}")
    asked = client.get(f"/join/{opened.invitations['bob']}").text
    assert "Go on as bob?" in asked
    assert ">ann<" in client.get("/").text
    csrf = re.search(r'name="csrf" value="([^"]*)"', asked)[1]
    assert ">bob<" in client.post(f"/join/{opened.invitations['bob']}", data={"csrf": csrf}).text


def test_sign_out_ends_the_visit(opened: Opened) -> None:
    client = TestClient(make_app(opened.engine), base_url="http://127.0.0.1")
    page = client.get(f"/join/{opened.invitations['ann']}").text
    csrf = re.search(r'name="csrf" value="([^"]*)"', page)[1]
    assert "signed out" in client.post("/leave", data={"csrf": csrf}).text
    assert client.get("/").status_code == 403


def test_bodies_are_bounded_whether_they_tell_their_size_or_not(opened: Opened) -> None:
    client = TestClient(make_app(opened.engine), base_url="http://127.0.0.1")
    assert client.post("/judge", content=b"x" * 300_000).status_code == 413
    kind = {"content-type": "application/x-www-form-urlencoded"}
    assert client.post("/judge", content=iter([b"x" * 100_000] * 4), headers=kind).status_code == 413
    files = {"file": ("f", b"x" * 1000)}
    assert client.post("/judge", data={"csrf": "x"}, files=files).status_code in (400, 403)


def test_another_name_is_told_which_names_there_are(opened: Opened) -> None:
    client = TestClient(make_app(opened.engine, hosts=["127.0.0.1", "localhost"]), base_url="http://evil.example")
    answer = client.get("/")
    assert answer.status_code == 400
    assert "127.0.0.1, localhost" in answer.text
    assert "--base-url" in answer.text
