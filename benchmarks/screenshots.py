"""What people see: the feedback page in Chromium, on a desktop and a phone, and axe-core's verdict on every picture.

Pictures go to benchmarks/results/feedback-*.png; `violations` must be 0.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from contract import arguments, publish
from feedback import page as serving

from rlhf_dist.feedback.task_files import TaskRow, write_tasks

RESULTS = Path(__file__).parent / "results"
SIZES = {"desktop": (1280, 800), "phone": (390, 844)}
MARKDOWN = """Do this:

1. **Restart** the router
2. Run `ping -c 3 router`

```python
def area(r):
    return 3.14159 * r ** 2
```

| step | time |
|------|-----:|
| one  | 3 s  |
| two  | 14 s |

The area is $\\pi r^2$, and
$$\\int_0^1 x^2\\,dx = \\frac{1}{3}$$
"""
LONG = "\n\n".join(f"Paragraph {n}. " + "Many words that fill the lines of a page. " * 9 for n in range(12))
ARABIC = "مرحبا! هذا جواب قصير (مع أقواس) يحتوي على كلمة English في الوسط.\n\n- أولا\n- ثانيا"
TASKS = {
    "markdown": TaskRow(
        "comparison", "How do I fix it?", MARKDOWN, MARKDOWN.replace("Restart", "Reboot"), "ppo", "sft"
    ),
    "long": TaskRow("comparison", "Tell me a lot.", LONG, LONG.replace("Many", "Some"), "ppo", "sft"),
    "right-to-left": TaskRow("comparison", "اكتب جوابا قصيرا.", ARABIC, ARABIC.replace("قصير", "آخر"), "ppo", "sft"),
    "ranking": TaskRow(
        "ranking",
        "Which capital?",
        answers=("It is *Paris*.", "It is Lyon.", "Perhaps Paris."),
        sources=("ppo", "sft", "x"),
    ),
}
GUIDE = """guidelines: |
  **Right** first, then short.

  *By far* means that you would not send the other one at all.
"""


@contextmanager
def served(folder: Path, rows: list[TaskRow]) -> Iterator[dict[str, str]]:
    """`rlhf-dist feedback serve` of some tasks; yields the links."""
    folder.mkdir()
    write_tasks(folder / "tasks.jsonl", rows)
    (folder / "guide.yaml").write_text(GUIDE)
    people = ("--annotator", "ada", "--annotator", "ben", "--overlap", "2")
    with serving(folder / "tasks.jsonl", "--guide", folder / "guide.yaml", *people) as links:
        yield links


def picture(page: Any, name: str) -> Iterator[dict[str, Any]]:
    """A picture and axe-core's verdict at each size."""
    from axe_playwright_python.sync_playwright import Axe

    for size, (width, height) in SIZES.items():
        page.set_viewport_size({"width": width, "height": height})
        page.screenshot(path=RESULTS / f"feedback-{name}-{size}.png")
        found = Axe().run(page).response["violations"]
        wide = page.evaluate("document.documentElement.scrollWidth")
        yield {"page": name, "size": size, "violations": len(found), "overflow_px": wide - width}


def judged(browser: Any, link: str) -> Any:
    """Somebody who judges all there is, the first answer by far."""
    page = browser.new_page()
    page.goto(link)
    while page.locator("form.comparison").count():
        page.click("button[value=a_much]")
        page.wait_for_load_state()
    return page


def pictures(browser: Any, root: Path) -> Iterator[dict[str, Any]]:
    for name, row in TASKS.items():
        with served(root / name, [row]) as links:
            page = browser.new_page()
            page.goto(links["ada"])
            yield from picture(page, name)
    rows = [TaskRow("comparison", f"p{n}", f"a good answer {n}", f"bad {n}", "ppo", "sft") for n in range(12)]
    with served(root / "supervise", rows) as links:
        done = [judged(browser, links[name]) for name in ("ada", "ben")]
        yield from picture(done[0], "done")
        boss = browser.new_page()
        boss.goto(links["supervisor"])
        yield from picture(boss, "supervise")


def main() -> None:
    options = arguments(__doc__)
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        rows = list(pictures(browser, Path(folder)))
        browser.close()
    figures = {key: float(sum(row[key] for row in rows)) for key in ("violations", "overflow_px")}
    publish("screenshots", {**figures, "pictures": float(len(rows))}, rows, options.json)


if __name__ == "__main__":
    main()
