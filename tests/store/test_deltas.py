from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_dist.errors import WeightError
from rlhf_dist.store.deltas import apply_delta, encode_delta, whole_tables
from rlhf_dist.store.weights import BUCKET, Manifest, WeightIndex, cells_of, decode_bucket, encode_bucket

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool)


def sent(table: pa.Table) -> pa.Table:
    """As it comes out of shared memory: written and read."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return pa.ipc.open_stream(sink.getvalue()).read_all()


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


@st.composite
def pairs(draw: st.DrawFn) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Tensors of any bits, NaN among them, and what became of them when some elements changed, none or all."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    old, new = {}, {}
    for number in range(draw(st.integers(0, 4))):
        dtype = draw(st.sampled_from(DTYPES))
        shape = draw(st.lists(st.integers(0, 40), max_size=2))
        width = int(np.prod(shape)) * dtype.itemsize
        before = rng.integers(0, 2 if dtype == torch.bool else 256, width, dtype=np.uint8)
        changes = rng.random(width) < draw(st.sampled_from([0.0, 0.02, 1.0]))
        after = np.where(changes, before ^ 1, before)
        old[str(number)], new[str(number)] = (
            torch.frombuffer(bytearray(array), dtype=dtype).view(shape) if width else torch.empty(shape, dtype=dtype)
            for array in (before, after)
        )
    return old, new


@given(pairs(), st.sampled_from([None, ThreadPoolExecutor(2)]))
def test_a_delta_on_its_base_is_the_new_bucket_bit_for_bit(pair: tuple, threads: ThreadPoolExecutor | None) -> None:
    old, new = pair
    base = sent(encode_bucket(old.items()))
    delta = sent(encode_delta(base, new.items(), threads=threads))
    result = apply_delta(base, delta, threads=threads)
    assert result.schema == BUCKET
    found = dict(decode_bucket(sent(result)))
    assert list(found) == list(new)
    for name, tensor in new.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert bits(found[name]) == bits(tensor), name
    assert delta.nbytes <= sent(encode_bucket(new.items())).nbytes + 64 * len(new)


def learnt(steps: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Weights of a usual size in bf16, before and after steps of 1e-6."""
    torch.manual_seed(0)
    before = torch.randn(200, 300) * 0.02
    return {"w": before.bfloat16()}, {"w": (before + steps * 1e-6).bfloat16()}


def test_of_a_step_of_reinforcement_learning_a_twentieth_is_sent_and_a_tensor_that_changed_everywhere_is_sent_whole() -> (
    None
):
    old, new = learnt(1)
    base = encode_bucket(old.items())
    assert encode_delta(base, new.items()).nbytes < base.nbytes / 20
    random = [{"w": torch.randint(2**62, (500,))} for _ in range(2)]
    (row,) = cells_of(encode_delta(encode_bucket(random[0].items()), random[1].items()))
    assert (row.changed, row.data.size) == (None, 500 * 8)


def test_a_base_whose_bits_changed_is_found_by_the_results_checksum() -> None:
    old, new = learnt(4)
    delta = encode_delta(encode_bucket(old.items()), new.items())
    old["w"][7, 7] += 1
    with pytest.raises(WeightError, match="weight w: checksum"):
        dict(decode_bucket(apply_delta(encode_bucket(old.items()), delta)))


@pytest.mark.parametrize(
    "other",
    [{"x": torch.zeros(2, 3)}, {"w": torch.zeros(3, 2)}, {"w": torch.zeros(2, 3).bfloat16()}, {}],
    ids=["name", "shape", "dtype", "number"],
)
def test_a_delta_on_another_bucket_is_refused(other: dict[str, torch.Tensor]) -> None:
    base, own = encode_bucket(other.items()), {"w": torch.zeros(2, 3)}
    with pytest.raises(WeightError, match=r"a delta on another bucket: w float32 \(2, 3\); its base has"):
        encode_delta(base, own.items())
    delta = encode_delta(encode_bucket(own.items()), own.items())
    with pytest.raises(WeightError, match=r"a delta on another bucket: w float32 \(2, 3\); its base has"):
        apply_delta(base, delta)


class Published:
    """A model in fp16 whose layer `merged` is sent alone, as what adapters change is, after the first version."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        self.master = {name: torch.randn(40, 50) * 0.02 for name in ("merged", "frozen")}
        self.restart()

    def restart(self) -> None:
        """The store is new; the learner goes on."""
        self.index = WeightIndex()

    def publish(self, version: int) -> None:
        partial, every = self.index.newest is not None, 3
        self.master["merged"] += torch.randn(40, 50).sign() * 1e-5
        names = ("merged",) if partial else tuple(self.master)
        tensors = {name: self.master[name].half() for name in names}
        base = self.index.base_of(version, partial=partial, every=every)
        table = encode_bucket(tensors.items()) if base is None else encode_delta(base.buckets[0], tensors.items())
        self.index.add(Manifest(version, names, 0, (sent(table),), partial=partial, base=base))


@pytest.mark.parametrize("lag", [1, 2, 3, 5])
@pytest.mark.parametrize("restarts_at", [None, 4, 5, 8])
def test_a_reader_that_missed_versions_has_the_newest_also_from_a_store_that_began_anew(
    lag: int, restarts_at: int | None
) -> None:
    model, own = Published(), dict[str, torch.Tensor]()
    for version in range(12):
        if version == restarts_at:
            model.restart()
            own.clear()  # as a worker forgets what it had from another store
        model.publish(version)
        if version % lag == 0:
            for manifest in model.index.to_load(has_one=bool(own)):
                for table in whole_tables(manifest, list):
                    own |= dict(decode_bucket(table))
            assert {name: bits(tensor) for name, tensor in own.items()} == {
                name: bits(tensor.half()) for name, tensor in model.master.items()
            }, version
