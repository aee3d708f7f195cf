import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_dist.errors import StoreError, WeightError
from rlhf_dist.store.weights import (
    KEPT_VERSIONS,
    Manifest,
    Moved,
    WeightIndex,
    decode_bucket,
    encode_bucket,
    plan_buckets,
)


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


def versions(*partial: bool) -> WeightIndex:
    index = WeightIndex()
    for version, each in enumerate(partial):
        index.add(Manifest(version, ("a",), 1 if each else 10, (), partial=each))
    return index


def test_an_engine_takes_the_newest_complete_version_before_a_partial_one_unless_it_has_any() -> None:
    index = versions(False, True, True, True)
    assert [each.version for each in index.to_load(has_one=False)] == [0, 3]
    assert [each.version for each in index.to_load(has_one=True)] == [3]
    assert index.num_bytes() == 10 + KEPT_VERSIONS * 1
    index.add(Manifest(4, ("a",), 10, ()))
    assert [[each.version for each in index.to_load(has_one=has_one)] for has_one in (False, True)] == [[4], [4]]
    assert versions().to_load(has_one=False) == []
    with pytest.raises(StoreError, match="weight version 0 is partial; expected a complete one first"):
        versions(True)


def test_versions_are_deltas_on_the_newest_whole_one_of_their_kind_until_so_many_have_passed() -> None:
    index = WeightIndex()
    assert index.base_of(0, partial=False, every=3) is None
    for version in range(7):
        base = index.base_of(version, partial=False, every=3)
        assert (base and base.version) == (None if version % 3 == 0 else version // 3 * 3)
        index.add(Manifest(version, ("a",), 1 if base else 10, (), base=base))
        assert [each.version for each in index.to_load(has_one=False)] == [version], "with its base in it"
        assert index.num_bytes() == [10, 11, 12, 21, 11, 12, 21][version], "a base stays as long as a delta on it"
    assert index.base_of(7, partial=False, every=1) is None
    assert index.base_of(7, partial=True, every=3) is None, "another kind has other buckets"
    index.add(Manifest(7, ("a",), 1, (), partial=True))
    for version in (8, 9):
        base = index.base_of(version, partial=True, every=3)
        assert base is not None
        index.add(Manifest(version, ("a",), 1, (), partial=True, base=base))
        assert [each.version for each in index.to_load(has_one=False)] == [6, version]
        assert (base.version, index.base_of(8, partial=False, every=3)) == (7, index._manifests[6])


def test_what_is_kept_of_a_change_is_1_where_nothing_is_lost_and_adds_up_over_weights() -> None:
    assert Moved().kept is None
    assert Moved(4.0, 0.0, 0.0).kept == 0.0
    assert Moved(4.0, 4.0, 4.0).kept == 1.0
    assert Moved(4.0, 4.0, 4.0).plus(Moved(4.0, 0.0, 0.0)).kept == pytest.approx(0.5**0.5)


def test_decoded_tensors_are_usable_after_the_table_is_gone() -> None:
    tensors = dict(decode_bucket(encode_bucket([("a", torch.full((1000,), 7.0))])))
    np.testing.assert_array_equal(tensors["a"].numpy(), np.full(1000, 7.0, dtype=np.float32))
