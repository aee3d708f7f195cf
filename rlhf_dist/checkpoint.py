"""Checkpoints: each a folder that is complete or absent, with a digest of every file in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import xxhash

from rlhf_dist.errors import ModelError
from rlhf_dist.files import as_json, remove_folder, write_text, written_aside

DIGESTS = "digests.json"
LEARNER = "learner"
"""What only going on needs: optimiser states and schedules."""
FAST = "xxh3-128 "
"""How digests begin that are made at the speed of memory; those of earlier versions are BLAKE2b, and nothing before them."""
PIECE = 2**22
"""Bytes that are read at once."""
Told = Callable[[Path], Mapping[str, str]]
"""Waits until others have written their files below a folder, and tells their digests by absolute path."""


class Digest:
    """Of bytes that come in pieces. It shows what a disk has damaged, not what somebody has forged."""

    def __init__(self) -> None:
        """Of nothing yet."""
        self._state = xxhash.xxh3_128()

    def update(self, piece: bytes | memoryview) -> None:
        """Take the next piece."""
        self._state.update(piece)

    def text(self) -> str:
        """As it stands in `digests.json`."""
        return FAST + self._state.hexdigest()


@contextmanager
def complete_or_absent(folder: Path, told: Told | None = None) -> Iterator[Path]:
    """Write a folder aside; on leaving the block without error it gets its files' digests and takes its name.

    Args:
        folder: what is made, or replaced.
        told: of files that others write, which are not read again.
    """
    with written_aside(folder) as aside:
        aside.mkdir()
        yield aside
        known = told(aside.absolute()) if told is not None else {}
        files = [file for file in sorted(aside.rglob("*")) if file.is_file()]
        digests = {str(file.relative_to(aside)): known.get(str(file.absolute())) or _digest(file) for file in files}
        (aside / DIGESTS).write_text(as_json(digests, indent=1))


def steps(run_dir: Path) -> dict[int, Path]:
    """All checkpoints of a run by the iterations that they have behind them, newest first.

    What people put beside them (`step-000003.bak`, `step-000003.tar`) is none.
    """
    named = ((each.name.removeprefix("step-"), each) for each in (run_dir / "checkpoints").glob("step-*"))
    found = {int(number): each for number, each in named if number.isdecimal() and each.is_dir()}
    return dict(sorted(found.items(), reverse=True))


def checkpoints(run_dir: Path) -> list[Path]:
    """Checkpoints of a run from which training could go on, newest first."""
    return [folder for folder in steps(run_dir).values() if (folder / LEARNER).is_dir()]


def newest_checkpoint(run_dir: Path) -> Path | None:
    """The newest checkpoint of a run from which training could go on; None where there is none."""
    return next(iter(checkpoints(run_dir)), None)


def verify(folder: Path) -> None:
    """Check every file of a checkpoint against its digest.

    Raises:
        ModelError: names the file that is missing or has changed.
    """
    for name, expected in _digests(folder).items():
        file = folder / name
        try:
            whole = file.is_file() and _digest(file, fast=expected.startswith(FAST)) == expected
        except OSError as error:
            raise ModelError(f"{file}: cannot be read: {error.strerror or error}") from None
        if not whole:
            raise ModelError(f"{file}: missing or changed since it was written; expected {expected}")


def prune(run_dir: Path, newest: int, *, last: int, best: int, values: Mapping[int, float]) -> None:
    """Delete what need not be kept: the newest `last` stay as they are, of the others the best policies, without `learner/`.

    A checkpoint that lacks a file counts for nothing and is deleted.

    Args:
        run_dir: the run folder.
        newest: iterations behind the checkpoint that was just written, which always stays.
        last: checkpoints that stay whole, at least 1.
        best: policies of older ones that stay.
        values: what makes a policy good, by iterations behind it; higher is better, one without a value is worst.
    """
    found = {step: folder for step, folder in steps(run_dir).items() if step <= newest}
    whole = [step for step, folder in found.items() if step == newest or _has_all(folder)]
    going_on = [step for step in whole if (found[step] / LEARNER).is_dir()][:last]
    others = [step for step in whole if step not in going_on and step in values]
    kept = sorted(others, key=lambda step: (values[step], step), reverse=True)[:best]
    for step, folder in found.items():
        if step in kept:
            _forget_learner(folder)
        elif step not in going_on:
            remove_folder(folder)


def forget_after(run_dir: Path, iteration: int) -> None:
    """Delete the checkpoints of iterations that a resumed run does again: damaged ones, or it would go on from them."""
    for step, folder in steps(run_dir).items():
        if step > iteration:
            remove_folder(folder)


def _forget_learner(folder: Path) -> None:
    """Keep the policy only. In this order, whatever stops it leaves a folder whose digests are true."""
    if (folder / LEARNER).is_dir():
        kept = {name: digest for name, digest in _digests(folder).items() if Path(name).parts[0] != LEARNER}
        write_text(folder / DIGESTS, as_json(kept, indent=1))
        remove_folder(folder / LEARNER)


def _has_all(folder: Path) -> bool:
    """Whether all files are there; whether they are what they were, only `verify` knows, by reading all of them."""
    try:
        return all((folder / name).is_file() for name in _digests(folder))
    except ModelError:
        return False


def _digests(folder: Path) -> dict[str, str]:
    listing = folder / DIGESTS
    if not listing.is_file():
        raise ModelError(f"{folder}: no {DIGESTS}; expected a complete checkpoint")
    try:
        return {str(name): str(digest) for name, digest in json.loads(listing.read_bytes()).items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise ModelError(f"{listing}: changed since it was written: {error}") from None
    except OSError as error:
        raise ModelError(f"{listing}: cannot be read: {error.strerror or error}") from None


def _digest(file: Path, *, fast: bool = True) -> str:
    with file.open("rb") as stream:
        if not fast:
            return hashlib.file_digest(stream, "blake2b").hexdigest()
        digest = Digest()
        while piece := stream.read(PIECE):
            digest.update(piece)
        return digest.text()
