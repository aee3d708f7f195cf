"""Checkpoints: each a folder that is complete or absent, with a digest of every file in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf_dist.errors import ModelError
from rlhf_dist.files import as_json, written_aside

DIGESTS = "digests.json"


@contextmanager
def complete_or_absent(folder: Path) -> Iterator[Path]:
    """Write a folder aside; on leaving the block without error it gets its files' digests and takes its name."""
    with written_aside(folder) as aside:
        aside.mkdir()
        yield aside
        digests = {str(file.relative_to(aside)): _digest(file) for file in sorted(aside.rglob("*")) if file.is_file()}
        (aside / DIGESTS).write_text(as_json(digests, indent=1))


def checkpoints(run_dir: Path) -> list[Path]:
    """Checkpoints of a run from which training could go on, newest first."""
    return sorted((folder.parent for folder in (run_dir / "checkpoints").glob("step-*/learner")), reverse=True)


def newest_checkpoint(run_dir: Path) -> Path | None:
    """The newest checkpoint of a run from which training could go on; None where there is none."""
    return next(iter(checkpoints(run_dir)), None)


def verify(folder: Path) -> None:
    """Check every file of a checkpoint against its digest.

    Raises:
        ModelError: names the file that is missing or has changed.
    """
    listing = folder / DIGESTS
    if not listing.is_file():
        raise ModelError(f"{folder}: no {DIGESTS}; expected a complete checkpoint")
    try:
        digests = json.loads(listing.read_text())
    except ValueError as error:
        raise ModelError(f"{listing}: changed since it was written: {error}") from None
    for name, expected in digests.items():
        file = folder / name
        if not file.is_file() or _digest(file) != expected:
            raise ModelError(f"{file}: missing or changed since it was written; expected BLAKE2b {expected}")


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "blake2b").hexdigest()
