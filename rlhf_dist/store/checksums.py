"""Checksums of tensors' bytes, piece by piece: threads share a large tensor, and who else looks finds a piece in the cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from itertools import chain
from typing import Any

import numpy as np
import xxhash

PIECE = 2**20
"""Bytes, which a core's cache holds; a multiple of every element's size. Smaller ones cost calls (benchmarks/weight_sync.py)."""
AT_ONCE = 4
"""Pieces that a thread takes."""

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Look = Callable[[int, Bytes], None]


def checksums(tensors: Sequence[Bytes], *, threads: Executor | None = None, look: Look | None = None) -> list[int]:
    """Of each tensor the XXH3-64 of the XXH3-64s of its pieces, little-endian.

    Args:
        tensors: their bytes.
        threads: read several pieces at once.
        look: is shown each piece, and the number of its tensor, when it has just been read.
    """
    pieces = [
        (number, tensor[start : start + PIECE])
        for number, tensor in enumerate(tensors)
        for start in range(0, len(tensor), PIECE)
    ]

    def digests(some: Sequence[tuple[int, Bytes]]) -> list[int]:
        found = []
        for number, piece in some:
            found.append(xxhash.xxh3_64_intdigest(piece.data))
            if look is not None:
                look(number, piece)
        return found

    runs = [pieces[start : start + AT_ONCE] for start in range(0, len(pieces), AT_ONCE)]
    each = chain.from_iterable((map if threads is None else threads.map)(digests, runs))
    counts = [-(-len(tensor) // PIECE) for tensor in tensors]
    return [xxhash.xxh3_64_intdigest(np.fromiter(each, np.dtype("<u8"), count).data) for count in counts]
