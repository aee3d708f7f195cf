"""What a person sees while a run goes on: a progress line and a small live table, or plain lines without a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console as RichConsole
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

COLUMNS = {
    "reward": ("critic/score/mean", "{:.3f}"),
    "KL": ("objective/kl", "{:.2f}"),
    "entropy": ("actor/entropy", "{:.2f}"),
    "length": ("response_length/mean", "{:.1f}"),
    "clipped": ("actor/pg_clipfrac", "{:.1%}"),
    "samples/s": ("perf/samples_per_second", "{:.1f}"),
    "seconds": ("timing_s/step", "{:.2f}"),
}
SHOWN_ROWS = 12


class Console:
    """Speaks to the terminal; on a pipe it prints one line per iteration."""

    def __init__(self, console: RichConsole | None = None) -> None:
        """Write to the given rich console, or to standard output."""
        self.rich = console or RichConsole()
        self._live: Live | None = None
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._rows: list[list[str]] = []

    def say(self, text: str) -> None:
        """One line; rich markup is understood."""
        self.rich.print(text, highlight=False)

    @contextmanager
    def progress(self, title: str, total: int) -> Iterator[None]:
        """Show progress towards `total` while the block runs; `advance` and `iteration` move it."""
        columns = (
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=self.rich, auto_refresh=False)
        self._task = self._progress.add_task(title, total=total, note="")
        self._rows = []
        if not self.rich.is_terminal:
            self.say(f"{title}: {total} steps")
            yield
            return
        with Live(self._table(), console=self.rich, refresh_per_second=4) as self._live:
            yield
        self._live = None

    def advance(self, note: str) -> None:
        """One step of a supervised stage."""
        assert self._progress is not None
        assert self._task is not None
        self._progress.update(self._task, advance=1, note=note)
        if self._live is not None:
            self._live.update(self._progress)

    def iteration(self, number: int, metrics: Mapping[str, float]) -> None:
        """One PPO iteration."""
        cells = [form.format(metrics[name]) for name, form in COLUMNS.values()]
        if self._live is None or self._progress is None or self._task is None:
            self.say(f"iteration {number + 1}: " + ", ".join(f"{k} {v}" for k, v in zip(COLUMNS, cells, strict=True)))
            return
        self._rows.append([str(number + 1), *cells])
        self._progress.update(self._task, advance=1)
        self._live.update(self._table())

    def _table(self) -> Table:
        outer = Table.grid()
        if self._rows:
            inner = Table("iteration", *COLUMNS, box=None, header_style="dim")
            for column in inner.columns:
                column.justify = "right"
            for row in self._rows[-SHOWN_ROWS:]:
                inner.add_row(*row)
            outer.add_row(inner)
        outer.add_row(self._progress)
        return outer
