"""Rows of data files, and which of them are held out."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from rlhf_dist.errors import DataError
from rlhf_dist.files import parsed
from rlhf_dist.progress import counted

SUFFIXES = (".jsonl", ".parquet", ".arrow")


def read_rows(path: str, *, split: str = "train") -> list[dict[str, Any]]:
    """Rows of a data file, or of a data set that `datasets` finds under that name.

    Raises:
        DataError: the file is missing, empty or malformed; names file and line.
    """
    file = Path(path)
    if not file.exists():
        if file.suffix in SUFFIXES or file.is_absolute() or path.startswith("."):
            raise DataError(f"{path}: no such file; expected JSONL, Parquet or Arrow")
        return _read_dataset(path, split)
    readers = {".jsonl": _read_jsonl, ".parquet": _read_parquet, ".arrow": _read_arrow}
    if file.suffix not in readers:
        raise DataError(f"{path}: unknown kind of file {file.suffix!r}; expected one of {', '.join(SUFFIXES)}")
    rows = readers[file.suffix](file)
    if not rows:
        raise DataError(f"{path}: the file is empty; expected at least one row")
    return rows


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


def _read_jsonl(file: Path) -> list[dict[str, Any]]:
    lines = counted(file.read_bytes().splitlines(), f"reading {file}")
    return [parsed(line, f"{file}:{number}") for number, line in enumerate(lines, start=1)]


def _read_parquet(file: Path) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[dict[str, Any]] = pq.read_table(file).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{file}: not a readable Parquet file: {error}") from error
    return rows


def _read_arrow(file: Path) -> list[dict[str, Any]]:
    import pyarrow as pa

    with pa.memory_map(str(file)) as source:
        for opener in (pa.ipc.open_file, pa.ipc.open_stream):
            try:
                rows: list[dict[str, Any]] = opener(source).read_all().to_pylist()
            except pa.ArrowInvalid:
                source.seek(0)
            else:
                return rows
    raise DataError(f"{file}: neither an Arrow IPC file nor a stream")


def _read_dataset(name: str, split: str) -> list[dict[str, Any]]:
    import datasets

    try:
        return list(datasets.load_dataset(name, split=split))
    except (OSError, ValueError, ConnectionError) as error:
        raise DataError(f"{name}: no such file, and `datasets` cannot load it: {error}") from error
