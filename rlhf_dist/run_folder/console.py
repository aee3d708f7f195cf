"""What a person sees while a command goes on: one live line in a terminal, plain lines on a pipe, never a silence."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console as RichConsole
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rlhf_dist import progress

COLUMNS = {
    "reward": ("critic/score/mean", "{:.3f}"),
    "KL": ("objective/kl", "{:.2f}"),
    "entropy": ("actor/entropy", "{:.2f}"),
    "length": ("response_length/mean", "{:.1f}"),
    "clipped": ("actor/pg_clipfrac", "{:.1%}"),
    "samples/s": ("perf/samples_per_second", "{:.1f}"),
    "seconds": ("timing_s/step", "{:.2f}"),
}
NO_NUMBER = "–"
SHOWN_ROWS = 12
QUIET_S = 8.0
"""On a pipe, a line comes after so many seconds without one."""
BAR = 30
"""Characters of the bar."""


def shown(form: str, value: float | None) -> str:
    """A number in its format; a dash where it is none, which files say as null."""
    return NO_NUMBER if value is None or not math.isfinite(value) else form.format(value)


@dataclass
class Work:
    """What is going on, since when, and how far it is."""

    title: str
    since: float
    """On the monotonic clock."""
    first: int = 0
    """Steps that were done before, by the run that is resumed."""
    done: int = 0
    total: int = 0
    """0: nobody knows."""
    note: str = ""

    def told(self, now: float) -> str:
        """One line: what, how far, how long, and how much longer at the pace so far."""
        spent = now - self.since
        parts = [f"{self.done} of {self.total}"] if self.total else []
        parts += [self.note] if self.note else []
        parts.append(f"{_clock(spent)} so far")
        if self.first < self.done < self.total:
            left = spent / (self.done - self.first) * (self.total - self.done)
            parts.append(f"about {_clock(left)} left")
        return f"{self.title}: {', '.join(parts)}"


class Console:
    """Speaks to the terminal. As a context it also says what is going on while nobody speaks."""

    def __init__(self, console: RichConsole | None = None, *, quiet_s: float = QUIET_S) -> None:
        """Write to the given rich console, or to standard output; on a pipe, break a silence of `quiet_s` seconds."""
        self.rich = console or RichConsole()
        self._quiet_s = quiet_s
        self._spoke = time.monotonic()
        self._work = Work("starting", self._spoke)
        self._rows: list[list[str]] = []
        self._live: Live | None = None
        self._ended = threading.Event()
        self._voice = threading.Thread(target=self._break_silence, daemon=True)

    def __enter__(self) -> Console:
        """Begin to say what is going on."""
        progress.LISTENERS.append(self.counted)
        if self.rich.is_terminal:
            self._live = Live(get_renderable=self._view, console=self.rich, refresh_per_second=4, transient=True)
            self._live.start()
        else:
            self._voice.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Fall silent."""
        progress.LISTENERS.remove(self.counted)
        self._ended.set()
        if self._live is not None:
            self._live.stop()
        elif self._voice.is_alive():
            self._voice.join()

    def say(self, text: str) -> None:
        """One line; rich markup is understood."""
        self._spoke = time.monotonic()
        self.rich.print(text, highlight=False, soft_wrap=True)

    def doing(self, title: str) -> None:
        """From now on something else is going on, of a length that nobody knows."""
        if title != self._work.title:
            self._work = Work(title, time.monotonic())

    def counted(self, what: str, done: int, total: int) -> None:
        """A loop somewhere below is so far; see `progress.counted`."""
        if what != self._work.title:
            self._work = Work(what, time.monotonic(), total=total)
        self._work.done = done

    @contextmanager
    def progress(self, title: str, total: int, *, done: int = 0) -> Iterator[None]:
        """Show progress towards `total` while the block runs; `advance` and `iteration` move it.

        Args:
            title: what is going on.
            total: steps.
            done: those that a run which is resumed has behind it.
        """
        self._work, self._rows = Work(title, time.monotonic(), first=done, done=done, total=total), []
        self.say(f"{title}: {total} steps" + (f", going on after {done}" if done else ""))
        try:
            yield
        finally:
            self._show_rows()

    def advance(self, note: str) -> None:
        """One step of a supervised stage."""
        self._work.done += 1
        self._work.note = note

    def iteration(self, number: int, metrics: Mapping[str, float]) -> None:
        """One PPO iteration."""
        cells = [shown(form, metrics[name]) for name, form in COLUMNS.values()]
        self._work.done = number + 1
        if self._live is None:
            self.say(f"iteration {number + 1}: " + ", ".join(f"{k} {v}" for k, v in zip(COLUMNS, cells, strict=True)))
        else:
            self._rows.append([str(number + 1), *cells])

    def _break_silence(self) -> None:
        """On a pipe: one line whenever nothing was said for a while."""
        while not self._ended.wait(self._quiet_s / 8):
            if time.monotonic() - self._spoke >= self._quiet_s:
                self.say(self._work.told(time.monotonic()))

    def _show_rows(self) -> None:
        """Leave a table that was shown live on the screen."""
        if self._rows:
            self.rich.print(_table(self._rows))
            self._rows = []

    def _view(self) -> Table:
        outer = Table.grid()
        if self._rows:
            outer.add_row(_table(self._rows[-SHOWN_ROWS:]))
        work = self._work
        filled = BAR * work.done // work.total if work.total else 0
        bar = Text.assemble(("━" * filled, "green"), ("━" * (BAR - filled), "dim"), " ")
        outer.add_row((bar if work.total else Text()) + Text(work.told(time.monotonic())))
        return outer


def _table(rows: list[list[str]]) -> Table:
    made = Table("iteration", *COLUMNS, box=None, header_style="dim")
    for column in made.columns:
        column.justify = "right"
    for row in rows:
        made.add_row(*row)
    return made


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
