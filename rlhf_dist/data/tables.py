"""Rows of data files, each with its place, and which of them are held out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

from rlhf_dist.config import DataFile
from rlhf_dist.data.folders import data_files, has_splits, is_saved
from rlhf_dist.errors import DataError
from rlhf_dist.files import lines_of, parsed, shown
from rlhf_dist.progress import counted

SUFFIXES = (".jsonl", ".parquet", ".arrow")
Row = tuple[str, dict[str, Any]]
"""Where it stands, as `FILE:LINE` (of Parquet and Arrow files the row's number, from 1), and its columns."""


def read_rows(path: str, *, split: str = "train", subset: str | None = None) -> list[dict[str, Any]]:
    """Rows of a data file, of a folder of them, or of a data set that `datasets` finds under that name.

    Raises:
        DataError: the file is missing, empty or malformed; names file and line.
    """
    return [row for _, row in _rows(path, split, subset)]


def read_table(settings: DataFile, path: str | None = None) -> list[Row]:
    """The same rows, as settings name them, each with its place.

    Args:
        settings: path, split and subset.
        path: another file than `settings.path`, of the same form; if it has no splits, all of it.
    """
    if path is None or path == settings.path:
        return _rows(settings.path, settings.split, settings.subset)
    with _readable(path):
        parts = has_splits(Path(path))
    return _rows(path, settings.split if parts else "train", settings.subset if parts else None)


def _rows(path: str, split: str, subset: str | None) -> list[Row]:
    with _readable(path):
        return _found(path, split, subset)


@contextmanager
def _readable(path: str | Path) -> Iterator[None]:
    """What the operating system refuses is said of the file that it names, or of this one."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{error.filename or path}: cannot be read: {error.strerror or error}") from error


def _found(path: str, split: str, subset: str | None) -> list[Row]:
    if not path:
        raise DataError("path is empty; expected a JSONL, Parquet or Arrow file, a folder, or a `datasets` name")
    file = Path(path)
    if not has_splits(file):
        _check_whole(path, split, subset)
    if file.is_dir():
        rows = _read_folder(file, split, subset)
    elif file.exists():
        rows = [*_read_file(file)]
    elif file.suffix in SUFFIXES or file.is_absolute() or path.startswith((".", "~")) or path.count("/") > 1:
        raise DataError(f"{path}: no such file or folder; expected JSONL, Parquet or Arrow")
    else:
        rows = _placed(path, _read_dataset(path, split, subset))
    if not rows:
        raise DataError(f"{path}: the file is empty; expected at least one row")
    return rows


def _check_whole(path: str, split: str, subset: str | None) -> None:
    """One file is one split, so that another's name would read the same rows again, as held out from themselves."""
    for name, value in (("split", split if split != "train" else None), ("subset", subset)):
        if value is not None:
            raise DataError(
                f"{path}: one file or data set without {name}s, asked for the {name} {value!r}; expected no {name}, or a folder "
                f"or name of a data set that has {name}s. For held-out rows give a share, or a file of their own"
            )


def held_out(keys: Sequence[str], share: float) -> list[bool]:
    """Which rows are for evaluation only: those with the lowest digests of their keys, so equal keys stay together.

    Args:
        keys: of each row, e.g. its prompt. The choice depends on nothing else, so it survives new rows and a new order.
        share: of the distinct keys, rounded, at least one of them and at most all but one.

    Raises:
        DataError: there is only one distinct key.
    """
    distinct = sorted(set(keys), key=lambda key: blake2b(key.encode(), digest_size=8).digest())
    if len(distinct) < 2:
        raise DataError(f"{len(keys)} rows with {len(distinct)} distinct prompts; expected two, one to be held out")
    chosen = set(distinct[: min(max(1, round(share * len(distinct))), len(distinct) - 1)])
    return [key in chosen for key in keys]


def _read_file(file: Path) -> Iterator[Row]:
    readers = {".jsonl": _read_jsonl, ".parquet": _read_parquet, ".arrow": _read_arrow}
    if file.suffix not in readers:
        hint = " (one JSON object per line)" if file.suffix == ".json" else ""
        raise DataError(
            f"{file}: unknown kind of file {file.suffix!r}; expected one of {', '.join(SUFFIXES)}{hint}. `datasets` reads "
            "others, and its to_json writes .jsonl"
        )
    with _readable(file):
        yield from readers[file.suffix](file)


def _placed(path: str | Path, rows: Iterable[dict[str, Any]]) -> list[Row]:
    return [(f"{path}:{number}", row) for number, row in enumerate(rows, start=1)]


def _without_nulls(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of Arrow, which gives all mappings of a column the keys of each other, as nulls, and templates render those."""
    return {name: _own(value) for name, value in row.items()}


def _own(value: Any) -> Any:
    """A nested value without such keys, but for a message's content, which may be null."""
    if isinstance(value, dict):
        return {
            key: _own(each)
            for key, each in value.items()
            if each is not None or (key == "content" and value.get("role") is not None)
        }
    return [_own(each) for each in value] if isinstance(value, list) else value


def _read_jsonl(file: Path) -> Iterator[Row]:
    data = file.read_bytes()
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{file}:1: the file is UTF-16; expected UTF-8")
    lines = counted(lines_of(data), f"reading {file}")
    for number, line in enumerate(lines, start=1):
        where = f"{file}:{number}"
        yield where, parsed(line, where)


def _read_parquet(file: Path) -> list[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = file.read_bytes()
    try:
        table = pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise DataError(f"{file}: not a readable Parquet file: {_told(error)}") from error
    return _table_rows(file, table)


def _read_arrow(file: Path) -> list[Row]:
    """An Arrow IPC file, or a stream, whichever it says it is."""
    import pyarrow as pa

    with pa.memory_map(str(file)) as source:
        errors = []
        for opener in (pa.ipc.open_file, pa.ipc.open_stream):
            try:
                return _table_rows(file, opener(source).read_all())
            except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
                errors.append(error)
                source.seek(0)
    begins = file.read_bytes()[:6] == b"ARROW1"
    found = f": {_told(errors[0])}" if begins else ""
    raise DataError(f"{file}: neither an Arrow IPC file nor a stream that can be read{found}")


def _table_rows(file: Path, table: Any) -> list[Row]:
    """Rows of an Arrow table, after a look at every value: what a damaged file holds is not always Unicode, or in bounds."""
    import pyarrow as pa

    damage = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError)
    try:
        table.validate(full=True)
        return _placed(file, map(_without_nulls, table.to_pylist()))
    except damage as error:
        for number in range(table.num_rows):
            for name in dict.fromkeys(table.column_names):
                try:
                    one = table.slice(number, 1).select([name])
                    one.validate(full=True)
                    one.to_pylist()
                except damage as its:
                    told = f"{file}:{number + 1}: the row is damaged in the column {name!r}: {_told(its)}"
                    raise DataError(told) from its
        raise DataError(f"{file}: the file is damaged: {_told(error)}") from error


def _read_folder(folder: Path, split: str, subset: str | None) -> list[Row]:
    """A folder of `save_to_disk`, or one of data files as data sets on the hub have them."""
    if is_saved(folder):
        if subset is not None:
            raise DataError(
                f"{folder}: asked for the subset {subset!r}; expected none, as save_to_disk keeps no subsets"
            )
        return _load_from_disk(folder, split)
    files = data_files(folder, SUFFIXES, split=split, subset=subset)
    return [row for file in files for row in _read_file(file)]


def _load_from_disk(folder: Path, split: str) -> list[Row]:
    import datasets
    import pyarrow as pa

    try:
        found = datasets.load_from_disk(str(folder))
        if isinstance(found, datasets.DatasetDict):
            if split not in found:
                raise DataError(f"{folder}: has no split {split!r}; expected one of {', '.join(found)}")
            found = found[split]
        return _table_rows(folder, _table_of(found))
    except (pa.ArrowException, OSError, ValueError, TypeError, LookupError, SystemError, MemoryError) as error:
        raise DataError(f"{folder}: a data set that cannot be read: {_told(error)}") from error


def _table_of(data: Any) -> Any:
    """A data set's rows as Arrow has them, with nothing read through damaged places: that ends the process."""
    if data._indices is None:
        return data.data.table
    for each in (data.data, data._indices):
        each.table.validate(full=True)
    return data.with_format("arrow")[:]


def _read_dataset(name: str, split: str, subset: str | None) -> list[dict[str, Any]]:
    import datasets
    import pyarrow as pa

    try:
        return [*map(_without_nulls, datasets.load_dataset(name, subset, split=split))]
    except (
        OSError,
        ValueError,
        RuntimeError,
        LookupError,
        pa.ArrowException,
        datasets.exceptions.DatasetsError,
    ) as error:
        hint = ". Set `subset`" if "Config name is missing" in str(error) else ""
        raise DataError(f"{name}: no such file, and `datasets` cannot load it: {_told(error)}{hint}") from error


def _told(error: BaseException) -> str:
    """What an error of a library says, on one line."""
    return shown(" ".join(str(error).split()) or type(error).__name__, most=300)[1:-1]
