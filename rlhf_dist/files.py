"""Files that are whole or absent, JSON that every reader takes, and JSON lines with their place in every message."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from rlhf_dist.errors import DataError, EnvironmentProblem, RunError, StorageError, UserError

T = TypeVar("T")
DEEPEST = 100
"""Levels of nesting in a line of JSON; no data set has as many, and what is deeper exhausts Python's stack."""
ASIDE = ".partial"
"""How the names of what is not whole end; they begin with a dot."""
TRIAL = 65_536
"""Bytes, of more than the files that a run writes before it starts anything."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO)
"""What disks say that take nothing."""
CLOSED = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTCONN)
"""What paths say that nothing can be written at."""
TOLD = re.compile(r"\b(?:os error |errno )(\d+)", re.IGNORECASE)
"""An error's number in a text: safetensors (`os error 28`) and Arrow (`errno 28`) raise errors of their own, and so does Ray."""


@contextmanager
def storing(target: Path) -> Iterator[None]:
    """What the disk refuses inside the block becomes one sentence.

    Args:
        target: what is being written.

    Raises:
        StorageError: names the path, what the disk said and how much of it is free.
    """
    try:
        yield
    except (UserError, StorageError):
        raise
    except Exception as error:
        reason = _refusal(error, os.path.abspath(target.parent))
        if reason is None:
            raise
        raise StorageError(f"{target}: cannot be written: {reason}; {free(target)}") from error


def check_writable(folder: Path, hint: str) -> None:
    """Make a folder if need be, and write and remove some bytes in it, before anything expensive starts.

    Args:
        folder: where something will be written.
        hint: what would be better, for the message.

    Raises:
        EnvironmentProblem: names the folder and what the disk said.
    """
    trial = folder / f".trial{ASIDE}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial.write_bytes(b"0" * TRIAL)
        trial.unlink()
    except OSError as error:
        with suppress(OSError):
            trial.unlink()
        raise unwritable(folder, error, hint) from error


def unwritable(path: Path, error: OSError, hint: str) -> EnvironmentProblem:
    """The sentence about a folder or file that cannot be written, said before anything starts."""
    return EnvironmentProblem(f"{path}: cannot be written: {error.strerror or error}; {free(path)}. {hint}")


def free(path: Path) -> str:
    """How much the disk that a path is on has left, or would be on."""
    try:
        return f"{shutil.disk_usage(_nearest(path)).free / 2**20:,.0f} MiB are free on its disk"
    except OSError as error:
        return f"its disk does not answer ({error.strerror or error})"


def _nearest(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    return next((each for each in [path, *path.absolute().parents] if os.path.exists(each)), Path("/"))


def _refusal(error: BaseException | None, folder: str) -> str | None:
    """What the disk said of a folder, by the number of an error or of what caused it, else by what its text says; or None."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            ours = error.filename is None or os.path.abspath(os.fsdecode(error.filename)).startswith(folder)
            if ours and error.errno in (*FULL, *CLOSED):
                return os.strerror(error.errno)
            if ours and error.errno == errno.ENOENT and not os.path.isdir(folder):
                return "its folder is gone"
        elif found := [int(number) for number in TOLD.findall(str(error)) if int(number) in FULL]:
            return os.strerror(found[-1])
        error = error.__cause__
    return None


def sweep(folder: Path) -> None:
    """Delete what writers that were killed left half done, below a folder that nobody else writes into."""
    for path in [*folder.rglob(f".*{ASIDE}")]:
        with suppress(OSError):
            _remove(path)


@contextmanager
def written_aside(target: Path, *, durable: bool = True) -> Iterator[Path]:
    """A path beside `target` for a new file or folder, which takes the target's name when the block ends without error.

    So nobody reads half of it, whatever dies when. The order is: contents, fsync of all, rename, fsync of the parent (Pillai et
    al., OSDI 2014). A block that fails leaves nothing beside the target.

    Args:
        target: what is made, or replaced.
        durable: whether a power cut right afterwards must not lose it; False for what is written again every second.

    Raises:
        StorageError: the disk is full, read-only or gone.
    """
    aside = target.with_name(f".{target.name}.partial")
    try:
        with storing(target):
            _remove(aside)
            target.parent.mkdir(parents=True, exist_ok=True)
            yield aside
            if durable:
                for path in [*aside.rglob("*"), aside]:
                    _sync(path)
            if aside.is_dir():
                remove_folder(target)
            aside.replace(target)
            if durable:
                _sync(target.parent)
    except BaseException:
        with suppress(OSError):
            _remove(aside)
        raise


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Replace a text file in one step."""
    with written_aside(path, durable=durable) as aside:
        aside.write_text(text, encoding="utf-8")


def as_json(value: Any, **options: Any) -> str:
    """JSON as RFC 8259 has it, which knows no NaN and no Infinity: numbers that are not finite become null.

    Args:
        value: what `json.dumps` takes.
        options: of `json.dumps`.
    """
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False, **options)


def as_exact_json(value: Any, where: str, **options: Any) -> str:
    """The same for what is read again to go on with, where a null would be no number.

    Raises:
        RunError: a number is not finite; begins with `where`.
    """
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError as error:
        raise RunError(f"{where}: {value} has a number that is not finite; expected finite ones: {error}") from None


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace a JSON-lines file in one step."""
    write_text(path, "".join(as_json(row) + "\n" for row in rows))


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file.

    Raises:
        DataError: the file is not there, or a line is no JSON object; names file and line.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected one JSON object per line")
    return [parsed(line, f"{path}:{number}") for number, line in enumerate(path.read_bytes().splitlines(), start=1)]


def readable_rows(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of a JSON-lines file that a run has written, and what is wrong with the lines that cannot be read.

    A last line that does not end was being written when the machine stopped: it is no row, and nothing is wrong with it.
    """
    rows, wrong = [], []
    for number, line in enumerate(whole_lines(path.read_bytes()) if path.exists() else [], start=1):
        try:
            rows.append(parsed(line, f"{path}:{number}"))
        except DataError as error:
            wrong.append(str(error))
    return rows, wrong


def lines_of(data: bytes) -> list[bytes]:
    """A file's lines, without a byte order mark, and without empty ones at its end, which editors leave there."""
    lines = data.removeprefix(b"\xef\xbb\xbf").splitlines()
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def whole_lines(data: bytes) -> list[bytes]:
    """Lines that end; what follows the last end is being written, or was when the machine stopped."""
    return data[: data.rfind(b"\n") + 1].splitlines()


def parsed(line: bytes, where: str) -> dict[str, Any]:
    """One line of JSON.

    Raises:
        DataError: it is empty or no JSON object; begins with `where`.
    """
    if not line.strip():
        raise DataError(f"{where}: an empty line; expected a JSON object")
    try:
        row = json.loads(line)
    except RecursionError:
        raise DataError(f"{where}: JSON nested too deep to read; expected at most {DEEPEST} levels") from None
    except ValueError as error:
        raise DataError(f"{where}: not valid JSON: {error}") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: found {type(row).__name__}; expected a JSON object")
    if line.count(b"[") + line.count(b"{") > DEEPEST:
        check_depth(row, where)
    if b"\\u" in line or b"\xed" in line:
        check_text(row, where)
    return row


def read_as(kind: type[T], file: Path) -> T:
    """A JSON file that a run has written, as what it holds, a dataclass or a list of them; nothing is left over.

    Raises:
        DataError: the file is missing, or not of this shape; names the first place, what was found and what was expected.
    """
    try:
        return TypeAdapter(kind).validate_json(file.read_bytes(), strict=True, extra="forbid")
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "it"
        raise DataError(
            f"{file}: not what this version writes: {place} is {shown(first['input'])}: {first['msg']}"
        ) from None


def shown(value: Any, *, most: int = 200) -> str:
    """A value as error messages show it: short, however large it is."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


def check_depth(value: Any, where: str) -> None:
    """Check that a value is nested no deeper than `DEEPEST`; the levels are counted without recursion.

    Raises:
        DataError: it is; begins with `where`.
    """
    depth, level = 0, [value]
    while level:
        depth += 1
        inner = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, (dict, list))]
        level = [each for values in inner for each in values]
        if depth > DEEPEST:
            raise DataError(f"{where}: JSON nested too deep; expected at most {DEEPEST} levels")


def check_text(row: Any, where: str) -> None:
    """Check that texts are Unicode: halves of a surrogate pair pass JSON, but neither a tokenizer nor Arrow.

    Raises:
        DataError: there is such a half; begins with `where`, and names the column.
    """
    for name, value in row.items() if isinstance(row, dict) else [("", row)]:
        try:
            as_json({name: value}, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(error.object[error.start]):04x}"
            told = f"a lone surrogate {half} in the column {name!r}, half of a character; expected whole ones"
            raise DataError(f"{where}: {told}") from None


def remove_folder(folder: Path) -> None:
    """Delete a folder (or a file) so that nobody ever finds a part of it under its name."""
    if folder.is_dir():
        doomed = folder.with_name(f".{folder.name}.old{ASIDE}")
        _remove(doomed)
        folder.replace(doomed)
        _remove(doomed)
    else:
        _remove(folder)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def shipped_config(name: str) -> Path:
    """A config of `configs/`: beside the package in a checkout, inside it when installed."""
    package = Path(__file__).parent
    inside = package / "configs" / name
    return inside if inside.exists() else package.parent / "configs" / name
