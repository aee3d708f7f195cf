"""`quarantine.jsonl`: samples whose reward failed, which were not trained on, each with its cause."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_dist.files import as_json, parsed, storing, whole_lines, write_json_lines
from rlhf_dist.records import Failure, RowKey
from rlhf_dist.run_folder.names import QUARANTINE

MOST = 1_000
"""Samples that are told with their texts; `reward/quarantined` goes on counting."""


class Quarantine:
    """Appends whole lines to the file, which is made with the first of them."""

    def __init__(self, run: Path) -> None:
        """Of the run in this folder."""
        self._file = run / QUARANTINE
        self._told = len(self._rows())

    def rewind(self, iteration: int) -> None:
        """Forget what failed from an iteration on, because a resumed run does it again."""
        rows = self._rows()
        kept = [row for row in rows if row["iteration"] < iteration]
        if self._file.exists():
            write_json_lines(self._file, kept)
        self._told = len(kept)

    def add(self, failures: Mapping[RowKey, Failure]) -> None:
        """Tell an iteration's failures."""
        lines = [as_json({**key._asdict(), **failure._asdict()}) + "\n" for key, failure in failures.items()]
        lines = lines[: max(0, MOST - self._told)]
        if lines:
            with storing(self._file), self._file.open("a") as stream:
                stream.write("".join(lines))
            self._told += len(lines)

    def _rows(self) -> list[dict[str, Any]]:
        data = self._file.read_bytes() if self._file.exists() else b""
        return [parsed(line, f"{self._file}:{number}") for number, line in enumerate(whole_lines(data), start=1)]


def warning(failures: Mapping[RowKey, Failure], left_out: int) -> str:
    """One sentence for the screen about an iteration's failures.

    Args:
        failures: what failed.
        left_out: further samples that were not trained on, since too few of their prompt's were left.
    """
    key, failure = next(iter(failures.items()))
    also = f", nor {left_out} whose prompts have too few left" if left_out else ""
    return (
        f"iteration {key.iteration + 1}: not trained on for lack of a score: {len(failures)} of its samples{also}; answer "
        f"{key.sample_index} to prompt {key.prompt_id}: reward {failure.reward}: {failure.cause} ({QUARANTINE})"
    )
