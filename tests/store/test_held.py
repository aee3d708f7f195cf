"""Digests, and rows of held weights. Real memory: tests/learner/test_holding.py."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_dist.store import held
from rlhf_dist.store.arrived import tensors_of
from rlhf_dist.store.held import HeldTensor, digest, held_rows, held_table, is_held
from rlhf_dist.store.weights import encode_bucket

HANDLE = {
    "memory": b"\0\1",
    "size": 2**40,
    "offset": 64,
    "counter": b"/torch_1",
    "counter_offset": 3,
    "event": b"",
    "event_sync": True,
}


@given(st.integers(1, 40), st.integers(0, 10**6), st.integers(0, 7))
def test_a_digest_sees_any_flipped_bit(size: int, place: int, bit: int) -> None:
    tensor = torch.arange(size, dtype=torch.uint8)
    before = digest(tensor)
    tensor[place % size] ^= 1 << bit
    assert digest(tensor) != before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_digest_sees_order_and_does_not_depend_on_pieces(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.randn(7, 31).to(dtype)
    whole = digest(tensor)
    assert digest(tensor.flip(0)) != whole
    monkeypatch.setattr(held, "PIECE", 5)
    assert digest(tensor) == whole == digest(tensor.t().contiguous().t())


def test_a_digest_is_the_sum_that_it_says() -> None:
    words = [5, -7, 2**31 - 1]
    expected = sum(word * (2 * place + 1) * held.ODD for place, word in enumerate(words)) % 2**64
    assert digest(torch.tensor(words, dtype=torch.int32)) == expected


def test_rows_come_back_with_handles_of_numbers_and_bytes() -> None:
    rows = [
        HeldTensor("a.weight", "bfloat16", (3, 4), 2**64 - 1, "GPU-1", "", HANDLE, 128, 24),
        HeldTensor("scalar", "float32", (), 0, "host", "/proc/1/fd/3", None, 0, 4),
    ]
    table = held_table(rows)
    assert is_held(table)
    assert held_rows([table]) == rows


def test_what_was_sent_comes_back_too() -> None:
    table = encode_bucket([("a", torch.ones(3))])
    assert not is_held(table)
    assert dict(tensors_of([table]))["a"].tolist() == [1, 1, 1]
