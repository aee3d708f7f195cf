"""Folders of data: what `datasets` saves, and files in the places where data sets on the hub have them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from rlhf_dist.errors import DataError

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""What files call the splits that every data set may have."""
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}")


def is_saved(folder: Path) -> bool:
    """Whether `Dataset.save_to_disk` or `DatasetDict.save_to_disk` made a folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def has_splits(path: Path) -> bool:
    """Whether a path may hold several splits: a folder of files, a saved `DatasetDict`, or a name on the hub."""
    return not path.is_file() and not ((path / "state.json").is_file() and not (path / "dataset_dict.json").is_file())


def data_files(folder: Path, suffixes: Sequence[str], *, split: str, subset: str | None) -> list[Path]:
    """The data files of one split, in order.

    A file is of the split that its name or a folder's on the way says, as in `data/train-00000-of-00001.parquet`; where no
    file says any, all are `train`.

    Raises:
        DataError: there are none, or no such split or subset; names what there is.
    """
    base = folder if subset is None else folder / subset
    if not base.is_dir():
        subsets = sorted(each.name for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
        raise DataError(
            f"{folder}: has no subset {subset!r}; expected one of {', '.join(subsets) or 'none, as it has no folders'}"
        )
    files = sorted(
        file
        for file in _walked(base)
        if file.suffix in suffixes and not any(part.startswith(".") for part in file.relative_to(base).parts)
    )
    if not files:
        raise DataError(f"{base}: no data files; expected some of {', '.join(suffixes)}, or a folder of save_to_disk")
    names = {file: _split_of(file.relative_to(base), split) for file in files}
    if not any(names.values()):
        names = dict.fromkeys(files, "train")
    _check_one_subset(base, [file for file in files if names[file] == split], subset)
    found = [file for file in files if names[file] == split]
    if not found:
        there = ", ".join(sorted({name for name in names.values() if name}))
        raise DataError(f"{base}: no files of the split {split!r}; expected one of {there}")
    return found


def _walked(base: Path) -> Iterator[Path]:
    """All files below a folder; one that cannot be opened is an error, and no folder without files."""

    def refuse(error: OSError) -> None:
        raise error

    for folder, _, names in os.walk(base, onerror=refuse):
        yield from (Path(folder, name) for name in names)


def _split_of(file: Path, wanted: str) -> str:
    """The split that a path names; empty: none."""
    stem, folders = file.name.rpartition(".")[0].lower(), [part.lower() for part in file.parts[:-1]]
    if stem == wanted or wanted in folders or stem.startswith((f"{wanted}-", f"{wanted}.")):
        return wanted
    words = [*re.split(r"[-_. ]", stem), *folders]
    if (shard := _SHARD.fullmatch(stem)) is not None:
        words = [shard[1]]  # `train_sft-00000-of-00002` is of the split train_sft, and not of train
    known = next((name for name, spelled in SPLITS.items() if any(word in spelled for word in words)), "")
    return known or (shard[1] if shard else "")


def _check_one_subset(base: Path, files: Sequence[Path], subset: str | None) -> None:
    """Files of one split in several folders are several subsets, whose rows are not to be mixed in silence."""
    folders = {file.relative_to(base).parts[0] for file in files if len(file.relative_to(base).parts) > 1}
    if subset is None and len(folders) > 1:
        raise DataError(f"{base}: has the subsets {', '.join(sorted(folders))}; expected `subset` to say which one")
