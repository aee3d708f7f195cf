"""What a stage has read, by content: `inputs.json`, by which a pipeline sees that a file has changed since.

A file is known by its BLAKE2b digest. One of more than `LARGE` bytes whose size and time are those of before is taken to be the
same without reading it again. What has no path here, as a data set or a model by its name on the hub, is not looked at.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf_dist.config import Job, Section
from rlhf_dist.files import as_json, lines_of, parsed, write_text

INPUTS = "inputs.json"
READ = frozenset({"path", "held_out", "model", "policy", "reference", "critic", "teacher", "classifier"})
"""Settings that name what is read, in whichever section."""
CHOICES = frozenset({"learner.critic"})
"""Settings of such a name that name none, but one of several ways."""
LARGE = 64 * 2**20
Known = Mapping[str, Any]
"""By key: its path, and of each file of it size in bytes, time in nanoseconds, digest, and rows (JSON lines only)."""


def keep_inputs(config: Job, run_dir: Path) -> None:
    """Write down what a stage reads, before it learns from it."""
    write_text(run_dir / INPUTS, as_json(inputs_of(config, kept_inputs(run_dir)), indent=1))


def kept_inputs(folder: Path) -> Known:
    """What `keep_inputs` wrote; nothing where nothing was written, as by earlier versions.

    Raises:
        DataError: the file is damaged; names it.
    """
    file = folder / INPUTS
    return parsed(file.read_bytes(), str(file)) if file.exists() else {}


def inputs_of(config: Job, before: Known) -> Known:
    """Every file that a stage reads, as it is now.

    Args:
        config: the stage's settings.
        before: what was known of them; large files that seem the same are not read again.
    """
    found: dict[str, Any] = {}
    seen: dict[str, dict[str, Any]] = {}
    for key, path in _paths(config):
        if path not in seen:
            known = before.get(key, {}).get("files", {})
            seen[path] = {name: _fingerprint(file, known.get(name, {})) for name, file in _files(Path(path))}
        found[key] = {"path": path, "files": seen[path]}
    return found


def changed(config: Job, before: Known) -> str:
    """What has changed of what a stage has read, or has come to it since, in words; empty: nothing.

    What is no longer there did not change, and where nothing is known of what was read, nothing is said.
    """
    now = inputs_of(config, before) if before else {}
    told = [_told(each["path"], before.get(key, {}).get("files", {}), each["files"]) for key, each in now.items()]
    return "; ".join(dict.fromkeys(filter(None, told)))


def _paths(section: Section, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted key and path of everything on this machine that settings name to be read."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        parts = enumerate(value) if isinstance(value, tuple) else [("", value)]
        for number, each in parts:
            key = f"{prefix}{name}.{number}".rstrip(".")
            if isinstance(each, Section):
                yield from _paths(each, f"{key}.")
            elif isinstance(each, str) and each and name in READ and key not in CHOICES and Path(each).exists():
                yield key, each


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    if path.is_file():
        yield "", path
    for file in sorted(path.rglob("*")) if path.is_dir() else []:
        if file.is_file():
            yield str(file.relative_to(path)), file


def _fingerprint(file: Path, before: Known) -> dict[str, Any]:
    stat = file.stat()
    found: dict[str, Any] = {"bytes": stat.st_size, "time_ns": stat.st_mtime_ns}
    if stat.st_size > LARGE and before.items() >= found.items():
        return dict(before)
    with file.open("rb") as stream:
        found["digest"] = hashlib.file_digest(stream, "blake2b").hexdigest()
    if file.suffix == ".jsonl":
        found["rows"] = len(lines_of(file.read_bytes()))
    return found


def _told(path: str, before: Known, now: Known) -> str:
    """What has changed of one path's files; empty: nothing."""
    names = [name for name in {**before, **now} if _digest(before, name) != _digest(now, name)]
    if not names:
        return ""
    rows = [sum(each.get("rows", 0) for each in files.values()) for files in (before, now)]
    counted = f" ({rows[0]:,} -> {rows[1]:,} rows)" if any(rows) else f" ({names[0]})" if names[0] else ""
    return f"{path} {'has changed' if before else 'is new'}{counted}"


def _digest(files: Known, name: str) -> Any:
    return files.get(name, {}).get("digest")
