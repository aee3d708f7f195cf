"""Structured logs: one JSON object per line, one file per actor, with the iteration and weight version in each line."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rlhf_dist.errors import DataError
from rlhf_dist.files import as_json, parsed, whole_lines
from rlhf_dist.secrets import masked

CONTEXT: dict[str, int] = {}
"""`iteration` and `version` of this process now; they go into each line."""

_FOREIGN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "vllm_process_name"}
"""Attributes of a record that are not its extras."""


class JsonLines(logging.Formatter):
    """A record as one JSON object: time (UTC), level, who and where, iteration, version, message, extras; no secrets."""

    def __init__(self, actor: str) -> None:
        """Write lines of an actor."""
        super().__init__()
        self._who = {"actor": actor, "node": _node(), "pid": os.getpid()}
        if gpus := os.environ.get("CUDA_VISIBLE_DEVICES"):
            self._who["gpus"] = gpus

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        extras = {key: value for key, value in vars(record).items() if key not in _FOREIGN and key[0] != "_"}
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            **self._who,
            "iteration": CONTEXT.get("iteration"),
            "version": CONTEXT.get("version"),
            "logger": record.name,
            "message": record.getMessage(),
            **extras,
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return masked(as_json(line, default=str))


FOLDER = "logs"
"""Name of the folder of log files within a run's."""


def log_dir(run: Path) -> str:
    """Where the actors of a run write their logs."""
    return str(run.absolute() / FOLDER)


def to_file(folder: str, actor: str) -> None:
    """From now on, write this process's log to `<folder>/<actor>.jsonl`: ours from INFO on, others' from WARNING on.

    A node that does not see the folder goes on without: a log must not stop a worker.
    """
    root, ours = logging.getLogger(), logging.getLogger("rlhf_dist")
    for old in [handler for handler in root.handlers if isinstance(handler.formatter, JsonLines)]:
        root.removeHandler(old)
        with suppress(OSError):
            old.close()
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        handler = _LogFile(Path(folder) / f"{actor}.jsonl")
    except OSError as error:
        ours.warning("no log file: %s", error)
        return
    handler.setFormatter(JsonLines(actor))
    root.addHandler(handler)
    ours.setLevel(logging.INFO)


class _LogFile(logging.FileHandler):
    """A log file that a full or lost disk silences: a log stops no run, and says nothing of its own trouble between the lines."""

    def __init__(self, file: Path) -> None:
        """Append to a file, on a line of its own though the last one was torn."""
        if _is_torn(file):
            with file.open("a") as stream:
                stream.write("\n")
        super().__init__(file)

    def handleError(self, record: logging.LogRecord) -> None:
        """The line is lost."""


def _is_torn(file: Path) -> bool:
    if not file.exists():
        return False
    with file.open("rb") as stream:
        stream.seek(-min(1, file.stat().st_size), os.SEEK_END)
        return stream.read(1) not in (b"", b"\n")


def _node() -> str:
    """This machine's address in the Ray cluster, else its name."""
    import ray

    return str(ray.util.get_node_ip_address()) if ray.is_initialized() else socket.gethostname()


def _line_of(file: Path, line: bytes) -> dict[str, Any]:
    """A line as it was logged; one that was torn, as text."""
    try:
        found = parsed(line, str(file))
    except DataError:
        found = {"message": f"(a torn line) {line.decode(errors='replace')}"}
    return {"time": "", "actor": file.stem, "level": "WARNING", "message": "", **found}


def read_new(folder: Path, offsets: dict[Path, int]) -> Iterator[dict[str, Any]]:
    """Whole lines that were added to any log file since the offsets, oldest first; moves the offsets on."""
    lines = []
    for file in filter(os.path.isfile, sorted(folder.glob("*.jsonl"))):
        with file.open("rb") as stream:
            stream.seek(offsets.get(file, 0))
            chunk = stream.read()
        offsets[file] = offsets.get(file, 0) + chunk.rfind(b"\n") + 1
        lines += [_line_of(file, line) for line in whole_lines(chunk)]
    yield from sorted(lines, key=lambda line: str(line["time"]))
