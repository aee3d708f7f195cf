"""`rlhf-dist logs`: the structured lines of all actors as text."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from rlhf_dist import files
from rlhf_dist.errors import DataError
from rlhf_dist.run_folder.folder import OVER
from rlhf_dist.run_folder.names import STATUS
from rlhf_dist.run_folder.status import GONE, read_status
from rlhf_dist.telemetry.logs import FOLDER, read_new

POLL_S = 0.5
HEAD = ("time", "level", "actor", "node", "pid", "iteration", "version", "logger", "message", "traceback")
STYLES = {"WARNING": "yellow", "ERROR": "red", "CRITICAL": "bold red"}


def show_logs(run: Path, *, follow: bool, actor: str | None, as_json: bool) -> None:
    """Print what there is, then, on request, what is added until the run has ended.

    Raises:
        DataError: the run has no logs, or none of that actor.
    """
    folder = run / FOLDER
    actors = sorted(file.stem for file in folder.glob("*.jsonl"))
    if not actors:
        raise DataError(f"{folder}: no logs; expected a run folder, given {run}")
    if actor is not None and actor not in actors:
        raise DataError(f"{folder}: no log of {actor!r}; there are {', '.join(actors)}")
    console, offsets = Console(soft_wrap=True), dict[Path, int]()
    while True:
        over = not follow or _ended(run)
        for line in read_new(folder, offsets):
            if actor in (None, line["actor"]):
                console.print(files.as_json(line) if as_json else as_text(line), markup=False, highlight=False)
        if over:
            return
        time.sleep(POLL_S)


def as_text(line: dict[str, Any]) -> Text:
    """One line: time, actor, iteration and version, message, extras."""
    at = " ".join(f"{key[0]}{line[key]}" for key in ("iteration", "version") if line.get(key) is not None)
    extras = " ".join(f"{key}={_short(value)}" for key, value in line.items() if key not in HEAD)
    text = Text(f"{line['time'][11:23]} {line['actor']:<12} {at:<10} {line['message']} {extras}".rstrip())
    text.stylize(STYLES.get(line["level"], ""))
    if "traceback" in line:
        text.append(f"\n{line['traceback']}")
    return text


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _ended(run: Path) -> bool:
    return (run / STATUS).exists() and read_status(run)["state"] in (*OVER, GONE)
