from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import xxhash

from rlhf_dist.store import checksums as room
from rlhf_dist.store.checksums import checksums

PIECE = 8


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "PIECE", PIECE)


def arrays(*sizes: int) -> list[np.ndarray[tuple[int], np.dtype[np.uint8]]]:
    return [np.arange(size, dtype=np.uint8) + number for number, size in enumerate(sizes)]


def test_a_checksum_is_that_of_its_pieces_checksums_whoever_makes_them() -> None:
    tensors = arrays(0, 5, 8, 100)
    (*_, last) = tensors
    each = [xxhash.xxh3_64_intdigest(last[start : start + PIECE].tobytes()) for start in range(0, 100, PIECE)]
    alone = checksums(tensors)
    assert alone[-1] == xxhash.xxh3_64_intdigest(b"".join(one.to_bytes(8, "little") for one in each))
    with ThreadPoolExecutor(3) as threads:
        assert checksums(tensors, threads=threads) == alone
    assert len(set(alone)) == len(tensors)


def test_any_changed_byte_changes_its_tensors_checksum_and_no_other() -> None:
    tensors = arrays(20, 20)
    before = checksums(tensors)
    for place in range(20):
        tensors[1][place] ^= 1
        found = checksums(tensors)
        assert (found[0], found[1] != before[1]) == (before[0], True), place
        tensors[1][place] ^= 1


def test_who_looks_sees_every_piece_once_with_its_tensors_number() -> None:
    seen: list[tuple[int, bytes]] = []
    tensors = arrays(10, 17)
    checksums(tensors, look=lambda number, piece: seen.append((number, piece.tobytes())))
    assert [b"".join(piece for number, piece in seen if number == wanted) for wanted in (0, 1)] == [
        tensor.tobytes() for tensor in tensors
    ]
