"""What a stage says in the report beside its curves: a title, a sentence, and a table or a chart."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf_dist.files import as_json, read_as, write_text

FILE = "sections.json"


@dataclass(frozen=True)
class Passage:
    """One passage of a report."""

    title: str
    text: str
    head: tuple[str, ...] = ()
    """Column names of its table."""
    rows: tuple[tuple[str, ...], ...] = ()
    svg: str = ""
    """A chart, drawn by `run_folder.charts`: markup, never anybody's text."""


def write_passages(folder: Path, passages: Sequence[Passage]) -> None:
    """Leave them in a run folder, for its report."""
    write_text(folder / FILE, as_json([dataclasses.asdict(each) for each in passages]))


def read_passages(folder: Path) -> list[Passage]:
    """Those that a stage left, if it did; they are ours, so their charts are markup.

    Raises:
        DataError: the file is damaged.
    """
    file = folder / FILE
    if not file.exists():
        return []
    return read_as(list[Passage], file)
