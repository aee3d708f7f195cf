"""The feedback page in a real browser, on a real server that is killed and started again."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlhf_dist.feedback.task_files import TaskRow, write_tasks

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")

SCRIPT = "<script>document.title = 'owned'</script>"
TASKS = [TaskRow("comparison", f"prompt {n}", f"good answer {n}", f"bad answer {n}", "ppo", "sft") for n in range(14)]


class Server:
    """`rlhf-dist feedback serve` in a process of its own."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.folder = folder
        self.links: dict[str, str] = {}

    def start(self) -> None:
        command = [sys.executable, "-m", "rlhf_dist.cli", "feedback", "serve", str(self.folder / "tasks.jsonl")]
        names = ["--annotator", "ann", "--annotator", "bob", "--overlap", "2", "--port", str(self.port)]
        self.process = subprocess.Popen([*command, *names], stdout=subprocess.PIPE, text=True)
        for line in self.process.stdout:
            if found := re.match(r"(\w+): (http\S+)$", line):
                self.links[found[1]] = found[2]
            if line.startswith("serving on"):
                break
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()

    def stored(self) -> list[dict[str, Any]]:
        out = self.folder / "out.jsonl"
        command = [
            sys.executable,
            "-m",
            "rlhf_dist.cli",
            "feedback",
            "export",
            str(self.folder / "tasks.jsonl"),
            str(out),
        ]
        subprocess.run(command, check=True, capture_output=True)
        return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    write_tasks(tmp_path / "tasks.jsonl", [TaskRow("comparison", SCRIPT, SCRIPT, "plain", "ppo", "sft"), *TASKS])
    made = Server(tmp_path)
    made.start()
    yield made
    made.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def visit(browser: Any, link: str, *, width: int = 1280) -> Any:
    page = browser.new_context(viewport={"width": width, "height": 800}).new_page()
    page.goto(link)
    return page


def press(page: Any, key: str) -> None:
    with page.expect_navigation():
        page.keyboard.press(key)


def prefer(page: Any, text: str) -> str:
    """Judge by arrow for the answer with this text; returns the prompt."""
    prompt = page.inner_text(".prompt .text")
    press(page, "ArrowLeft" if text in page.inner_text("section[aria-labelledby=left]") else "ArrowRight")
    return prompt


def test_two_judge_by_keyboard_while_the_server_is_killed_and_nothing_is_lost(server: Server, browser: Any) -> None:
    ann, bob = visit(browser, server.links["ann"]), visit(browser, server.links["bob"])
    assert ann.inner_text(".prompt .text") == SCRIPT, "shown as text"
    assert ann.title() == "Which answer is better?"
    ann.keyboard.press("c")
    ann.keyboard.type(f"I say {SCRIPT}")
    ann.keyboard.press("Escape")
    press(ann, "3")
    press(bob, "s")
    done = [prefer(ann, "good") for _ in range(4)]
    for _ in range(3):
        prefer(bob, "good")

    press(ann, "u")
    assert ann.inner_text(".prompt .text") == done.pop(), "undo brings the task back"
    server.kill()
    ann.keyboard.press("ArrowLeft")  # into the void
    server.start()
    ann.goto(f"http://127.0.0.1:{server.port}/")
    bob.goto(f"http://127.0.0.1:{server.port}/")
    for _ in range(7):
        done.append(prefer(ann, "good"))
        prefer(bob, "good")
    ann.go_back()
    assert ann.inner_text(".prompt .text") not in done, "the back button offers nothing twice"

    stored = server.stored()
    by = {name: [row for row in stored if row["annotator"] == name] for name in ("ann", "bob")}
    assert len(by["ann"]) == 1 + len(done) == 11
    assert len(by["bob"]) == 3 + 7
    for rows in by.values():
        assert len({row["prompt"] for row in rows}) == len(rows), "each once"
        assert {row["verdict"] for row in rows if row["prompt"] != SCRIPT} == {"a"}
    (script,) = [row for row in by["ann"] if row["prompt"] == SCRIPT]
    assert (script["verdict"], script["comment"]) == ("tie", f"I say {SCRIPT}")


def test_the_page_fits_a_phone_and_works_without_a_mouse_or_scripts(server: Server, browser: Any) -> None:
    page = visit(browser, server.links["ann"], width=360)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    tops = [page.locator(f"section[aria-labelledby={side}]").bounding_box()["y"] for side in ("left", "right")]
    assert tops[1] > tops[0], "one below the other"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    names = page.locator("button").all_inner_texts()
    assert all(name.strip() for name in names)
    assert page.locator("h1").count() == 1
    page.keyboard.press("d")
    shade = page.evaluate("getComputedStyle(document.querySelector('mark')).backgroundColor")
    assert shade != "rgba(0, 0, 0, 0)", "differences are marked"
    page.focus("input[type=checkbox]")
    page.keyboard.press("Enter")
    page.wait_for_timeout(300)
    assert server.stored() == [], "Enter on what is no verdict judges nothing"

    plain = browser.new_context(java_script_enabled=False).new_page()
    plain.goto(server.links["bob"])
    plain.click("button[value=tie]")
    assert "1 of" in plain.inner_text("header")


def test_a_supervisor_sees_invites_and_exports(server: Server, browser: Any) -> None:
    ann, bob = visit(browser, server.links["ann"]), visit(browser, server.links["bob"])
    for page in (ann, bob):
        press(page, "3")
        for _ in range(5):
            prefer(page, "good")
    boss = visit(browser, server.links["supervisor"])
    told = boss.inner_text("main")
    assert "12\njudgements" in told
    assert re.search(r"ppo\s+sft\s+91\.7%", told), told
    boss.fill("#name", "eve")
    boss.click("text=Make a link")
    assert "Which answer is better?" in visit(browser, boss.inner_text("code")).inner_text("main")
    with boss.expect_download() as download:
        boss.click("text=TRL preferences, Parquet")
    import pyarrow.parquet as pq

    assert pq.read_table(download.value.path()).num_rows == 10
