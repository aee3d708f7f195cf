"""How a command ends that was stopped or failed: one sentence that says how to go on, and the exit code of its kind."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from rlhf_dist.errors import RunError


@contextmanager
def ending_in_words(path: Path) -> Iterator[None]:
    """If the block is ended by a signal or fails, say so in one sentence, with how to go on with the run in `path`."""
    from rlhf_dist.stopping import Stopped, stoppable

    try:
        with stoppable():
            yield
    except Stopped as stop:
        print(f"{stop}; {_how_to_go_on(path)}", file=sys.stderr)
        raise typer.Exit(stop.exit_code) from None
    except RunError as error:
        first, _, details = str(error).partition("\n")
        print(f"the run failed: {first}; {_how_to_go_on(path)}", *filter(None, [details]), sep="\n", file=sys.stderr)
        raise typer.Exit(error.exit_code) from None


def _how_to_go_on(path: Path) -> str:
    from rlhf_dist.checkpoint import newest_checkpoint

    command = [word for word in sys.argv[1:] if word != "--resume"]
    named = any(word.partition("=")[0] == "--run-dir" for word in command)
    if command[0] == "again":
        return f"to go on: {shlex.join(['rlhf-dist', *command])}"
    again = shlex.join(["rlhf-dist", *command, *([] if named else ["--run-dir", str(path)])])
    checkpoint = newest_checkpoint(path)
    if command[0] != "evaluate":
        of = " of PPO" if command[0] in ("demo", "pipeline") else ""
        kept = f"the newest checkpoint is {checkpoint}" if checkpoint else f"there is no checkpoint{of} yet"
        return f"{kept}. To go on: {again} --resume"
    return f"this stage keeps no checkpoints. To begin again, delete {path} and run: {again}"
