"""What a stage says in the report beside its curves: a title, a sentence, and a table or a chart."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Passage:
    """One section of a report."""

    title: str
    text: str
    head: tuple[str, ...] = ()
    """Column names of its table."""
    rows: tuple[tuple[str, ...], ...] = ()
    svg: str = ""
    """A chart, drawn by `telemetry.charts`: markup, never anybody's text."""
