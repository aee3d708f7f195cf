"""What holds of a run whatever happened to it; each check returns a sentence for each thing that does not."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from rlhf_dist.chaos.sight import lives, until
from rlhf_dist.checkpoint import verify
from rlhf_dist.data.prompts import PromptSampler
from rlhf_dist.errors import DataError, ModelError
from rlhf_dist.run_folder.names import POLICY, STATUS, experience_file, experience_files
from rlhf_dist.store.kept import read_kept
from rlhf_dist.store.schema import keys_of

MAY_BE_NULL = frozenset({"critic/vf_explained_var"})
"""Metrics that have no value where all returns are alike."""
SHM = Path("/dev/shm")
AGENTS_S = 150.0
"""Ray's agents outlive a driver that was killed by up to 100 s."""


def metrics_are_whole(rows: Sequence[Mapping[str, Any]], iterations: int | None = None) -> list[str]:
    """Every iteration once, in order, with finite numbers; `iterations`: so many, where the run is over."""
    broken = []
    numbers = [row["iteration"] for row in rows]
    expected = list(range(len(rows) if iterations is None else iterations))
    if numbers != expected:
        wrong = next(
            (at for at, (one, other) in enumerate(zip(numbers, expected, strict=False)) if one != other), len(numbers)
        )
        broken.append(
            f"metrics.jsonl: {len(numbers)} rows, from row {wrong} on not iterations 0 to {len(expected) - 1}"
        )
    for row in rows:
        odd = [name for name, value in row.items() if name not in MAY_BE_NULL and not _finite(value)]
        if odd:
            broken.append(
                f"metrics.jsonl: {odd[0]} of iteration {row['iteration']} is {row[odd[0]]}; expected a finite number"
            )
    return broken


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def rows_are_trained_once(path: Path, prompts: PromptSampler, iterations: int) -> list[str]:
    """Every iteration has each answer to each of its prompts exactly once."""
    missing = sorted(set(range(iterations)) - experience_files(path).keys())
    broken = [f"experience: iteration {number} is not there" for number in missing]
    for iteration in sorted(set(range(iterations)) - set(missing)):
        file = experience_file(path, iteration)
        try:
            batches = read_kept(file).to_batches()
        except DataError as error:
            broken.append(str(error))
            continue
        found = Counter(key for batch in batches for key in keys_of(batch))
        wanted = Counter(key for task in prompts.batch(iteration) for key in task.row_keys())
        for key, count in sorted(((wanted - found) + (found - wanted)).items()):
            broken.append(f"{file}: row {tuple(key)} is there {found[key]} times, expected {wanted[key]} ({count} off)")
    return broken


def digests_are_true(path: Path) -> list[str]:
    """Every checkpoint, pruned ones too, and the policy are as they were written."""
    broken = []
    for folder in [*sorted((path / "checkpoints").glob("step-*")), path / POLICY]:
        try:
            verify(folder)
        except ModelError as error:
            broken.append(str(error))
    return broken


def policy_is_finite(path: Path) -> list[str]:
    """The policy loads, and has no NaN and no infinity."""
    from safetensors import safe_open

    broken = []
    files = sorted((path / POLICY).glob("*.safetensors"))
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            odd = [name for name in tensors.keys() if not tensors.get_tensor(name).isfinite().all()]  # noqa: SIM118
        broken += [f"{file}: {name} has a number that is not finite" for name in odd[:1]]
    return broken if files else [f"{path / POLICY}: no weights"]


def folder_is_tidy(path: Path) -> list[str]:
    """Nothing is half written, and the status says that the run is over."""
    broken = [f"{file}: left half written" for file in sorted(path.rglob("*.partial"))]
    state = json.loads((path / STATUS).read_text())["state"]
    return broken if state == "finished" else [*broken, f"{path / STATUS}: says {state!r}, expected 'finished'"]


def processes_are_gone(seen: Iterable[psutil.Process]) -> list[str]:
    """No process of the run is left, Ray's daemons in."""
    everybody = list(seen)
    until(lambda: not any(map(lives, everybody)), timeout_s=AGENTS_S)
    return [f"process {each.pid}, {_called(each)}, outlives the run" for each in everybody if lives(each)]


def _called(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())[:80] or process.name()
    except psutil.NoSuchProcess:
        return "which has just ended"


def shared_memory() -> set[str]:
    """Names in `/dev/shm`."""
    return {entry.name for entry in SHM.iterdir()} if SHM.is_dir() else set()


def shared_memory_is_free(before: set[str], *, patience_s: float = 30.0) -> list[str]:
    """Nothing is in `/dev/shm` that was not there before and that no living process, of another program, has mapped."""

    def left() -> set[str]:
        new = shared_memory() - before
        return new - _mapped(new) if new else new

    until(lambda: not left(), timeout_s=patience_s)
    return [f"{SHM / name}: left behind" for name in sorted(left())]


def _mapped(names: set[str]) -> set[str]:
    """Those of the names that a living process has mapped or open."""
    found: set[str] = set()
    for process in psutil.process_iter():
        try:
            maps = Path(f"/proc/{process.pid}/maps").read_text()
            held = {Path(file.path).name for file in process.open_files() if file.path.startswith(str(SHM))}
        except (OSError, psutil.Error):
            continue
        found |= {name for name in names if name in held or f"{SHM}/{name}" in maps}
    return found
