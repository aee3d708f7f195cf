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

    def start(self, *people: str, overlap: int = 2) -> None:
        command = [sys.executable, "-m", "rlhf_dist.cli", "feedback", "serve", str(self.folder / "tasks.jsonl")]
        names = [word for name in people for word in ("--annotator", name)]
        guide = ["--guide", str(self.folder / "guide.yaml")] if (self.folder / "guide.yaml").exists() else []
        self.process = subprocess.Popen(
            [*command, *names, *guide, "--overlap", str(overlap), "--port", str(self.port)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for line in self.process.stdout:
            if found := re.match(r"(\w+): (http\S+)$", line):
                self.links[found[1]] = found[2]
            if line.startswith("serving on"):
                break
        while self.process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError("the server ended")

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
    made.start("ann", "bob")
    yield made
    made.kill()


MARKDOWN = """# Plan

| step | time |
|---|---|
| one | 3 s |

```python
print("hi")
```

Area $\\pi r^2$, ![a picture](https://evil.example/x.png), [a link](javascript:alert(1)), <b onclick="x()">bold</b>.
"""
LONG = "\n\n".join(f"Paragraph {n}. " + "Many words that fill the lines of a page. " * 12 for n in range(14))
ARABIC = "مرحبا! هذا جواب (مع أقواس) وكلمة English."
CHAT = {
    "prompt_messages": [{"role": role, "content": f"I am {role}"} for role in ("system", "user", "assistant", "user")]
}
ONE_OF_EACH = [
    TaskRow("comparison", "Markdown, please", MARKDOWN, MARKDOWN.replace("3 s", "5 s"), "ppo", "sft"),
    TaskRow("comparison", "Long, please", LONG, LONG.replace("Many", "Some"), "ppo", "sft"),
    TaskRow("comparison", "بالعربية", ARABIC, ARABIC.replace("جواب", "رد"), "ppo", "sft"),
    TaskRow("ranking", "Rank them", answers=("first", "second", "third"), sources=("ppo", "sft", "base")),
    TaskRow("score", "shown by its turns", "fair enough", source_a="ppo", prompt_source=json.dumps(CHAT)),
    TaskRow("comment", "Say something", "something", source_a="ppo"),
    TaskRow(
        "comparison",
        "With criteria",
        "short and right",
        "long and wrong",
        "ppo",
        "sft",
        criteria=json.dumps([{"name": "helpful", "scale": [1, 7]}, {"name": "harmless", "kind": "comparison"}]),
    ),
]
PEOPLE = [f"p{number}" for number in range(10)]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests, each of which has a person of its own."""
    folder = tmp_path_factory.mktemp("page")
    write_tasks(folder / "tasks.jsonl", ONE_OF_EACH)
    (folder / "guide.yaml").write_text("guidelines: |\n  **Right** first, then short.\n")
    made = Server(folder)
    made.start(*PEOPLE, overlap=len(PEOPLE))  # what some have open is held for them, and must not be missing for others
    yield made
    made.kill()


def reach(page: Any, prompt: str) -> None:
    """Skip until the task with this prompt comes."""
    for _ in range(20):
        if prompt in page.inner_text(".prompt"):
            return
        with page.expect_navigation():
            page.click("button[value=skip]")
    raise AssertionError(f"no task with {prompt}")


def key(page: Any, pressed: str, code: str) -> None:
    """A key as another layout or Caps Lock sends it."""
    page.evaluate(
        "([key, code]) => document.body.dispatchEvent(new KeyboardEvent('keydown', {key, code, bubbles: true}))",
        [pressed, code],
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def visit(browser: Any, link: str, *, width: int = 1280) -> Any:
    page = browser.new_context(viewport={"width": width, "height": 800}).new_page()
    page.set_default_timeout(30_000)  # a busy machine is no failure
    page.goto(link)
    return page


def press(page: Any, key: str) -> None:
    with page.expect_navigation():
        page.keyboard.press(key)


def prefer(page: Any, text: str) -> str:
    """Judge by arrow for the answer with this text; returns the prompt."""
    prompt = page.inner_text(".prompt .text")
    press(page, "ArrowLeft" if text in page.inner_text("[data-answer=A]") else "ArrowRight")
    return prompt


def test_two_judge_by_keyboard_while_the_server_is_killed_and_nothing_is_lost(server: Server, browser: Any) -> None:
    ann, bob = visit(browser, server.links["ann"]), visit(browser, server.links["bob"])
    assert ann.title() == "Which answer is better?"
    reach(ann, SCRIPT)
    assert ann.inner_text(".prompt .text") == SCRIPT, "shown as text"
    ann.keyboard.press("c")
    ann.keyboard.type(f"I say {SCRIPT}")
    ann.keyboard.press("Escape")
    press(ann, "3")
    skipped = 15 - len(TASKS) - 1 + int(re.findall(r"\d+", ann.inner_text("header [role=status]"))[0]) - 1
    assert skipped == 0, "a skip is no judgement"
    press(bob, "s")
    done = [prefer(ann, "good") for _ in range(2)]
    for _ in range(3):
        prefer(bob, "good")

    press(ann, "u")
    assert ann.inner_text(".prompt .text") == done.pop(), "undo brings the task back"
    server.kill()
    ann.keyboard.press("ArrowLeft")  # into the void
    server.start()
    for page in (ann, bob):
        page.goto(f"http://127.0.0.1:{server.port}/")
    left = int(re.findall(r"\d+", ann.inner_text("header [role=status]"))[1]) - len(done) - 1
    done += [prefer(ann, "good") for _ in range(left) if ann.locator("form.judge").count()]
    if "All done" not in ann.inner_text("main"):
        assert "before their eyes" in ann.inner_text("main"), "bob has one"
    for _ in range(5):
        prefer(bob, "good")
    bob.go_back()
    stored = server.stored()
    by = {
        name: [row for row in stored if row["annotator"] == name and row["kind"] != "skips"] for name in ("ann", "bob")
    }
    assert len(by["ann"]) == 1 + len(done)
    assert len(by["bob"]) == 8
    for rows in by.values():
        assert len({row["prompt"] for row in rows}) == len(rows), "each once"
        assert {row["verdict"] for row in rows if row["prompt"] != SCRIPT} == {"a"}
    (script,) = [row for row in by["ann"] if row["prompt"] == SCRIPT]
    assert (script["verdict"], script["comment"]) == ("tie", f"I say {SCRIPT}")


def test_the_page_fits_a_phone_and_works_without_a_mouse_or_scripts(server: Server, browser: Any) -> None:
    page = visit(browser, server.links["ann"], width=360)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    tops = [page.locator(f"[data-answer={side}]").bounding_box()["y"] for side in "AB"]
    assert tops[1] > tops[0], "one below the other"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    names = page.locator("button:visible").all_inner_texts()
    assert all(name.strip() for name in names)
    assert page.locator("h1").count() == 1
    press(page, "d")
    shade = page.evaluate("getComputedStyle(document.querySelector('mark')).backgroundColor")
    assert shade != "rgba(0, 0, 0, 0)", "differences are marked"
    press(page, "s")
    assert page.locator("mark").count(), "and in the next task, too"
    page.locator("summary", has_text="A").first.click()
    assert not page.locator("[data-answer=A]").is_visible(), "an answer folds"
    assert [row["kind"] for row in server.stored()] == ["skips"]

    plain = browser.new_context(java_script_enabled=False).new_page()
    plain.goto(server.links["bob"])
    plain.click("button[value=tie]")
    assert "1 of" in plain.inner_text("header")


def test_a_supervisor_sees_reads_withdraws_invites_and_exports(server: Server, browser: Any) -> None:
    ann, bob = visit(browser, server.links["ann"]), visit(browser, server.links["bob"])
    for page in (ann, bob):
        for _ in range(15):
            if SCRIPT in page.inner_text(".prompt .text"):
                press(page, "3")
            else:
                prefer(page, "good")
    boss = visit(browser, server.links["supervisor"])
    told = boss.inner_text("main")
    assert "30\njudgements" in told
    assert re.search(r"ppo\s+sft\s+96\.7%", told), told
    with boss.expect_navigation():
        boss.click("text=By reliability")
    assert "above guessing" in boss.inner_text("main")
    boss.fill("#name", "eve")
    with boss.expect_navigation():
        boss.click("text=Make a link")
    link = boss.inner_text("code")
    boss.context.grant_permissions(["clipboard-read", "clipboard-write"])
    boss.click("text=Copy")
    assert boss.evaluate("navigator.clipboard.readText()") == link
    boss.reload()
    assert link in boss.inner_text("main"), "loaded again it is the same invitation"
    assert "All done" in visit(browser, link).inner_text("main")
    with boss.expect_download() as download:
        boss.click("text=TRL preferences, Parquet")
    import pyarrow.parquet as pq

    assert pq.read_table(download.value.path()).num_rows == 28

    boss.goto(boss.url.split("/supervise")[0] + "/supervise/judgements")
    boss.select_option("[name=person]", label="bob")
    with boss.expect_navigation():
        boss.click("button:has-text('Show')")
    assert boss.locator("tbody tr").count() == 15
    with boss.expect_navigation():
        boss.locator("button.small").first.click()
    assert boss.locator("tbody tr").count() == 14, "the filter is kept"
    boss.check("input[required]")
    with boss.expect_navigation():
        boss.click("text=withdraw everything")
    assert boss.locator("tr.gone").count() == 15
    assert bob.goto(f"http://127.0.0.1:{server.port}/").status == 200
    assert "0 of 15" in bob.inner_text("header")
    with boss.expect_navigation():
        boss.click("text=Sign bob out")
    assert bob.goto(f"http://127.0.0.1:{server.port}/").status == 403
    boss.goto(boss.url.split("/supervise")[0] + "/supervise/tasks/1")
    assert "ann" in boss.inner_text("main")
    assert len(server.stored()) == 15


def test_markdown_is_rendered_and_nothing_runs_or_is_loaded(shared: Server, browser: Any) -> None:
    page = visit(browser, shared.links["p0"])
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    reach(page, "Markdown, please")
    answer = page.locator("[data-answer=A]")
    assert answer.locator("table td", has_text=" s").inner_text() in ("3 s", "5 s")
    assert "monospace" in answer.locator("pre code").evaluate("each => getComputedStyle(each).fontFamily")
    assert answer.locator("math").count() == 1
    assert answer.locator("img, script, b[onclick], a[href^=javascript]").count() == 0
    assert "<b onclick" in answer.inner_text(), "markup is text"
    press(page, "r")
    assert "| step | time |" in page.locator("[data-answer=A]").inner_text()
    assert "# Plan" in page.locator("[data-answer=A]").inner_text()
    assert all(url.startswith(f"http://127.0.0.1:{shared.port}/") for url in asked)


@pytest.mark.parametrize("size", [(1280, 800), (390, 844)])
def test_choices_and_heads_stay_in_view_whatever_the_answers_length(
    shared: Server, browser: Any, size: tuple[int, int]
) -> None:
    width, height = size
    page = visit(browser, shared.links["p1"], width=width)
    page.set_viewport_size({"width": width, "height": height})
    reach(page, "Long, please")
    for scrolled in (0, 900):
        page.evaluate("y => window.scrollTo(0, y)", scrolled)
        for value in ("a_much", "a", "tie", "b", "b_much", "skip"):
            box = page.locator(f"button[value={value}]").bounding_box()
            assert box["y"] >= 0, (scrolled, value)
            assert box["y"] + box["height"] <= height, (scrolled, value)
    head = page.locator(".side summary").first.bounding_box()
    assert 0 <= head["y"] < 120, "whose words these are"


def test_keys_work_with_caps_lock_and_on_other_layouts(shared: Server, browser: Any) -> None:
    page = visit(browser, shared.links["p2"])
    reach(page, "Long, please")
    with page.expect_navigation():
        key(page, "&", "Digit1")  # unshifted on a French keyboard
    with page.expect_navigation():
        key(page, "U", "KeyU")  # Caps Lock
    assert "Long, please" in page.inner_text(".prompt")
    with page.expect_navigation():
        key(page, "ы", "KeyS")  # Russian
    with page.expect_navigation():
        key(page, "\u0433", "KeyU")
    key(page, "C", "KeyC")
    assert page.evaluate("document.activeElement.id") == "comment"
    page.keyboard.type("sus 123")
    assert "Long, please" in page.inner_text(".prompt"), "letters in a text are letters"


def test_a_draft_outlives_a_reload_and_a_lost_session_and_a_stopped_navigation_leaves_a_live_page(
    shared: Server, browser: Any
) -> None:
    page = visit(browser, shared.links["p3"])
    reach(page, "Say something")
    page.keyboard.press("c")
    page.keyboard.type("what I mean is")
    page.reload()
    assert page.input_value("#comment") == "what I mean is"
    page.context.clear_cookies()
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("text=Not invited")
    page.goto(shared.links["p3"])
    assert page.input_value("#comment") == "what I mean is"
    held: list[Any] = []
    page.route("**/judge", lambda route: held.append(route))  # a slow server
    page.click("button[value=said]", no_wait_after=True)
    page.wait_for_timeout(200)
    page.context.new_cdp_session(page).send("Page.stopLoading")
    page.unroute("**/judge")
    page.wait_for_timeout(4200)
    with page.expect_navigation():
        page.click("button[value=said]")
    stored = [row for row in shared.stored() if row["annotator"] == "p3" and row["kind"] == "comments"]
    assert [row["comment"] for row in stored] == ["what I mean is"]


def test_rankings_criteria_and_marked_passages_are_given_by_keyboard_and_exported(shared: Server, browser: Any) -> None:
    page = visit(browser, shared.links["p4"])
    reach(page, "Rank them")
    shown = [page.inner_text(f"[data-answer={letter}]") for letter in "ABC"]
    for digit in "213":
        page.keyboard.press(digit)
    press(page, "Enter")  # on Send, to which the last number led
    reach(page, "With criteria")
    for digit in ("2", "7", "3", "1"):  # the better one, helpful of A and of B, the more harmless one
        page.keyboard.press(digit)
    left = page.inner_text("[data-answer=A]")
    page.evaluate("getSelection().selectAllChildren(document.querySelector('[data-side=\"1\"] p'))")
    page.keyboard.press("m")
    page.keyboard.type("this is it")
    with page.expect_navigation():
        page.keyboard.press("Control+Enter")
    rows = [row for row in shared.stored() if row["annotator"] == "p4" and row["kind"] not in ("skips",)]
    ranking, verdict, *ratings = rows
    assert ranking["answers"] == [shown[1], shown[0], shown[2]]
    better = "a" if left == "short and right" else "b"
    assert (verdict["kind"], verdict["verdict"]) == ("comparisons", better)
    (mark,) = verdict["marks"]
    assert mark["answer"] != better
    assert mark["text"] == verdict[mark["answer"]]
    assert (mark["start"], mark["comment"]) == (0, "this is it")
    scores = {row["answer"]: row["score"] for row in ratings if row["kind"] == "scores"}
    assert scores[left] == 7
    assert {row["criterion"] for row in ratings} == {"helpful", "harmless"}
    assert {tuple(row["scale"]) for row in ratings if row["kind"] == "scores"} == {(1.0, 7.0)}
    (harmless,) = [row for row in ratings if row["kind"] == "comparisons"]
    assert harmless["verdict"] == better


def test_right_to_left_texts_and_conversations_are_shown_as_such(shared: Server, browser: Any) -> None:
    page = visit(browser, shared.links["p5"])
    reach(page, "بالعربية")
    for mode in ("f", "r"):
        press(page, mode)
        direction = "each => getComputedStyle(each.querySelector('p') || each).direction"
        assert page.locator("[data-answer=A]").evaluate(direction) == "rtl"
    page = visit(browser, shared.links["p7"])
    reach(page, "I am assistant")
    assert page.locator(".turn h3").all_inner_texts() == ["System", "User", "Assistant", "User"]
    assert "im_start" not in page.inner_text("main")


def test_accessibility_has_no_violations_on_any_page(shared: Server, browser: Any) -> None:
    from axe_playwright_python.sync_playwright import Axe

    def check(page: Any) -> None:
        found = Axe().run(page).response["violations"]
        assert [(each["id"], each["nodes"][0]["html"]) for each in found] == [], page.url

    page = visit(browser, shared.links["p6"])
    for _ in ONE_OF_EACH:
        for width, height in ((390, 844), (1280, 800)):
            page.set_viewport_size({"width": width, "height": height})
            check(page)
        press(page, "s")
    check(page)
    page.emulate_media(color_scheme="dark")
    check(page)
    boss = visit(browser, shared.links["supervisor"])
    for path in ("", "/judgements", "/judgements?person=1", "/tasks", "/tasks/1"):
        boss.goto(f"http://127.0.0.1:{shared.port}/supervise{path}")
        check(boss)
