import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_dist.errors import StoreError, WeightError
from rlhf_dist.store.weights import Manifest, WeightIndex, decode_bucket, encode_bucket, plan_buckets


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_come_back_bit_for_bit_without_a_copy(dtype: torch.dtype) -> None:
    tensors = {
        "a": torch.randn(3, 4).to(dtype),
        "scalar": torch.tensor(2.0, dtype=dtype),
        "one": torch.ones(1, 1, 5).to(dtype),
    }
    table = encode_bucket(tensors.items())
    found = dict(decode_bucket(table))
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], tensor)
        assert found[name].data_ptr() == tensor.data_ptr(), "the bytes were copied"


@given(st.integers(0, 4 * 12 - 1), st.integers(0, 7))
def test_any_flipped_bit_is_found_and_the_tensor_named(byte: int, bit: int) -> None:
    table = encode_bucket([("weight.x", torch.arange(12.0))])
    data = bytearray(table["data"][0].as_py())
    data[byte] ^= 1 << bit
    broken = table.set_column(4, table.schema.field("data"), pa.array([bytes(data)], pa.large_binary()))
    with pytest.raises(WeightError, match="weight weight.x: checksum"):
        dict(decode_bucket(broken))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 100))
def test_buckets_keep_order_and_bound(sizes: list[int], bound: int) -> None:
    named = [(str(number), size) for number, size in enumerate(sizes)]
    buckets = plan_buckets(named, bucket_bytes=bound)
    assert [name for bucket in buckets for name in bucket] == [name for name, _ in named]
    assert all(len(bucket) == 1 or sum(sizes[int(name)] for name in bucket) <= bound for bucket in buckets)


def test_two_newest_versions_are_kept_and_old_ones_refused() -> None:
    index = WeightIndex()
    for version in range(4):
        index.add(Manifest(version, ("a",), 4, ()))
    assert index.newest is not None
    assert (index.newest.version, index.num_bytes()) == (3, 2 * 4)
    with pytest.raises(StoreError, match="version 3 published after version 3"):
        index.add(Manifest(3, ("a",), 4, ()))


def test_decoded_tensors_are_usable_after_the_table_is_gone() -> None:
    tensors = dict(decode_bucket(encode_bucket([("a", torch.full((1000,), 7.0))])))
    np.testing.assert_array_equal(tensors["a"].numpy(), np.full(1000, 7.0, dtype=np.float32))
