"""What is not finite: found by a rank, told by the group with the names of the samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
import torch

from rlhf_dist.errors import NumbersError

NAMED = 3
"""Samples, metrics and tensors that a message names; the others are counted."""


@dataclass(frozen=True)
class NotFinite:
    """Why an optimiser step was left out, as one rank knows it."""

    step: int
    """Optimiser step of the run, counted from 1."""
    what: str
    """E.g. `the critic's loss is nan`."""
    samples: tuple[Any, ...]
    """The first of those that it came from: row keys, or numbers of examples."""
    count: int
    """All of those."""
    vague: bool = False
    """Only the gradient says so: one of the mini-batch's losses may be the cause, on this rank or another."""


def found_in(step: int, what: str, samples: Sequence[Any], *, vague: bool = False) -> NotFinite:
    """What a rank found, with as many samples as a message names."""
    return NotFinite(step, what, tuple(samples[:NAMED]), len(samples), vague)


def told(found: Sequence[NotFinite], name: Callable[[Any], str] = str) -> str:
    """A sentence on what all ranks found in one update.

    Args:
        found: at least one.
        name: of a sample.
    """
    precise = {each.step for each in found if not each.vague}
    kept = [each for each in found if not (each.vague and each.step in precise)]
    together: dict[tuple[int, str], list[NotFinite]] = {}
    for each in kept:
        together.setdefault((each.step, each.what), []).append(each)
    parts = []
    for (step, what), own in together.items():
        samples = [name(sample) for each in own for sample in each.samples]
        parts.append(f"{what} in optimiser step {step}, with {_some(samples, sum(each.count for each in own))}")
    return _some(parts, len(parts), between="; ")


def check_metrics(metrics: Mapping[str, float], what: str) -> None:
    """Let no number into a run that is not one.

    Raises:
        NumbersError: names metrics.
    """
    odd = [name for name, value in metrics.items() if not abs(value) < float("inf")]
    if odd:
        raise NumbersError(
            f"{what}: {_some([f'{name} is {metrics[name]}' for name in odd], len(odd))}; expected numbers"
        )


def odd_tensors(tensors: Iterable[tuple[str, torch.Tensor]]) -> list[str]:
    """Names of the tensors that hold NaN or infinity.

    A sum over finite numbers costs one pass and no memory, and whatever is not finite is still in it; only where a sum is not
    finite, which large numbers may bring about too, is each number looked at.
    """
    floats = [(name, tensor) for name, tensor in tensors if tensor.is_floating_point() and tensor.numel()]
    if not floats or bool(torch.stack([tensor.sum().float() for _, tensor in floats]).isfinite().all()):
        return []
    return [name for name, tensor in floats if not bool(tensor.isfinite().all())]


class OddPieces:
    """Finds NaN and infinity in tensors whose pieces somebody else reads anyway, as `store.checksums` does."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Nothing was seen yet.

        Args:
            tensors: by name.
        """
        self._tensors = [*tensors.items()]
        self._suspects: set[int] = set()
        """Numbers of those with a piece whose sum is not finite."""

    def look(self, number: int, piece: np.ndarray[Any, Any]) -> None:
        """See some bytes of a tensor; from any thread."""
        dtype = self._tensors[number][1].dtype
        if dtype.is_floating_point and not isfinite(torch.from_numpy(piece).view(dtype).sum()):
            self._suspects.add(number)

    def names(self) -> list[str]:
        """Of the tensors that are not finite."""
        return odd_tensors(self._tensors[number] for number in sorted(self._suspects))


def check_tensors(tensors: Iterable[tuple[str, torch.Tensor]], what: str) -> None:
    """Refuse tensors that hold NaN or infinity.

    Args:
        tensors: by name.
        what: is to be done with them, for the message.

    Raises:
        NumbersError: names them.
    """
    if odd := odd_tensors(tensors):
        raise not_finite_weights(odd, what)


def not_finite_weights(names: Sequence[str], what: str) -> NumbersError:
    """The error of weights that hold NaN or infinity."""
    return NumbersError(f"{what}: {_some(names, len(names))} not finite; expected finite weights. Nothing was written")


def _some(names: Sequence[str], count: int, between: str = ", ") -> str:
    shown = between.join(names[:NAMED])
    return shown if count <= min(NAMED, len(names)) else f"{shown} and {count - min(NAMED, len(names))} more"
