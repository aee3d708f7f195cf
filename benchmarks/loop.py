"""The loop with people, round after round, by the commands that a user types: does the policy get better by what they say?

The demo's task, from so few comparisons that there is room left. Simulated annotators judge on the page, by HTTP and by what its
HTML shows them: each prefers by the gold rule, Bradley and Terry's way, some more carelessly than others. Whether it helped is
said by the same rule without noise, on held-out prompts that nobody was asked about.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from random import Random
from typing import Any

import httpx
from contract import arguments, publish
from feedback import page

from rlhf_dist.tasks.helpdesk import gold_score

ANNOTATORS = {"ada": 12.0, "ben": 12.0, "cem": 6.0, "dot": 3.0}
"""Name to sharpness k: P(a over b) = sigmoid(k (gold(a) - gold(b))); at 3 a difference of 0.1 is seen in 57 % of the pairs."""
# So few judgements are looked at more than once; the demo has fifteen times as many.
SETTINGS = ["task.comparisons=1024", "task.scores=0", "task.comments=0", "reward_model.epochs=3"]
QUICK = [
    "model={hidden: 64, layers: 2, heads: 2, positions: 128}",
    "task.demonstrations=1024",
    "task.comparisons=128",
    "task.prompts=256",
    "prompts.held_out_limit=32",
    "rl.iterations=2",
    "rl.prompts_per_iteration=32",
    "reward_model.normalise_on=16",
    "rollout.engine=transformers",
]


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "rlhf_dist.cli", *map(str, words)]


def call(*words: object) -> float:
    """Run a command to its end; returns its seconds."""
    began = time.perf_counter()
    subprocess.run(command(*words), check=True)
    return time.perf_counter() - began


class Shown(HTMLParser):
    """The texts that a task's page shows: its prompt, and the answers on the left and on the right."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self._depth = 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._depth:
            self._depth += tag == "div"
        elif tag == "div" and "text" in (dict(attrs).get("class") or "").split():
            self.texts.append("")
            self._depth = 1

    def handle_endtag(self, tag: str) -> None:
        self._depth -= tag == "div" and self._depth > 0

    def handle_data(self, data: str) -> None:
        if self._depth:
            self.texts[-1] += data


def verdict(html: str, sharpness: float, rng: Random) -> str:
    """What a simulated annotator says of a page, by its sides."""
    prompt, left, right = Shown(html).texts
    margin = gold_score(prompt, left) - gold_score(prompt, right)
    if margin == 0:
        return "tie"
    return "a" if rng.random() < 1 / (1 + math.exp(-sharpness * margin)) else "b"


async def judge(link: str, name: str) -> int:
    """Judge until nothing is left; returns how much that was."""
    rng, done = Random(name), 0
    async with httpx.AsyncClient(timeout=60, follow_redirects=True) as browser:
        await browser.get(link)
        html = (await browser.get(httpx.URL(link).join("/?view=raw"))).text  # as it is, not as Markdown
        while "task" in (form := dict(re.findall(r'name="(csrf|task)" value="([^"]*)"', html))):
            said = {**form, "verdict": verdict(html, ANNOTATORS[name], rng), "comment": ""}
            answer = await browser.post(httpx.URL(link).join("/judge"), data=said)
            answer.raise_for_status()
            html, done = answer.text, done + 1
    return done


async def everybody(links: dict[str, str]) -> int:
    return sum(await asyncio.gather(*(judge(links[name], name) for name in ANNOTATORS)))


def measure(run: Path, settings: list[str], *, prompts: int, rounds: int) -> Iterator[dict[str, Any]]:
    """A row for each round from the second on."""
    overrides = [word for setting in settings for word in ("--set", setting)]
    first = call("demo", "--run-dir", run, *overrides)
    print(f"demo: {first:.0f} s")
    call("feedback", "sample", run, "--prompts", prompts, "--against", "self")
    people = [word for name in ANNOTATORS for word in ("--annotator", name)]
    with page(run, *people) as links:
        for number in range(2, rounds + 2):
            began = time.perf_counter()
            judged = asyncio.run(everybody(links))
            judged_s = time.perf_counter() - began
            again_s = call("again", run, "--prompts", prompts)
            found = json.loads((run / "summary.json").read_text())["round"]
            low, high = found["gold_interval"]
            yield {
                "round": number,
                "judged": judged,
                "learnt_from": found["judgements"],
                "win_rate": found["gold_win_rate"],
                "low": low,
                "high": high,
                "gold_before": found["gold_score"][0],
                "gold_after": found["gold_score"][1],
                "kl_before": found["kl"][0],
                "kl_after": found["kl"][1],
                "judging_s": judged_s,
                "again_s": again_s,
            }


def main() -> None:
    options = arguments(__doc__)
    settings, size = (QUICK, {"prompts": 24, "rounds": 1}) if options.quick else ([], {"prompts": 1200, "rounds": 2})
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        rows = list(measure(Path(folder) / "run", [*SETTINGS, *settings], **size))
    keys = ("judged", "win_rate", "low", "high", "gold_before", "gold_after", "again_s")
    figures = {f"round_{row['round']}_{key}": float(row[key]) for row in rows for key in keys}
    publish("loop", figures, rows, options.json)


if __name__ == "__main__":
    main()
