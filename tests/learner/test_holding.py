"""Versions that ranks hold, in host memory; on a card only memory and its handles are others."""

import mmap
import os
import types
from pathlib import Path

import pytest
import torch

from rlhf_dist.config import Lora
from rlhf_dist.errors import WeightError
from rlhf_dist.learner import holding as room
from rlhf_dist.learner.holding import Holding
from rlhf_dist.learner.publication import Publication
from rlhf_dist.learner.published import published
from rlhf_dist.store.held import HeldTensor, held_rows, held_table, open_held
from rlhf_dist.store.weights import Sent
from tests.learner.test_published import Sharded, adapted, everything

CPU = torch.device("cpu")
NAMED = {
    "matrix": torch.randn(3, 5),
    "scalar": torch.tensor(2.0),
    "half": torch.randn(7).bfloat16(),
    "turned": torch.randn(4, 6).t(),
}


def files() -> int:
    """Files that hold versions of this process."""
    found = [file for file in Path("/proc/self/fd").iterdir() if file.exists()]
    return len({file.stat().st_ino for file in found if "rlhf_dist-held" in os.readlink(file)})


def test_held_tensors_are_read_where_they_lie_until_the_next_version() -> None:
    holding = Holding(CPU)
    rows = holding.keep(NAMED, partial=False)
    found = dict(open_held(rows))
    for name, tensor in NAMED.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name], tensor)
    assert 0 < holding.num_bytes < 1024
    with open(rows[0].file, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[rows[0].offset] ^= 1
    assert not torch.equal(found["matrix"], NAMED["matrix"]), "it was copied"
    with pytest.raises(WeightError, match="weight matrix: digest .* no longer holds this version"):
        dict(open_held(rows))
    holding.begin(partial=False)
    assert holding.num_bytes == 0
    with pytest.raises(WeightError, match="not there any more"):
        dict(open_held(rows))


def test_a_complete_version_stays_below_partial_ones_and_takes_them_along() -> None:
    before, holding = files(), Holding(CPU)
    complete = holding.keep(NAMED, partial=False)
    for _ in range(2):
        holding.begin(partial=True)
        partial = holding.keep({"matrix": NAMED["matrix"] + 1}, partial=True)
    assert torch.equal(dict(open_held(complete))["matrix"], NAMED["matrix"])
    assert torch.equal(dict(open_held(partial))["matrix"], NAMED["matrix"] + 1)
    assert files() == before + 2
    holding.begin(partial=False)
    assert files() == before


def test_of_several_holders_one_that_is_here_is_read() -> None:
    holdings = [Holding(CPU), Holding(CPU)]
    near, far = (holding.keep(NAMED, partial=False) for holding in holdings)
    far = [row._replace(where="GPU-far", file="/nowhere") for row in far]
    assert torch.equal(dict(open_held([*far, *near]))["matrix"], NAMED["matrix"])
    with pytest.raises(WeightError, match="no learner rank holds half where this engine is .*, but on GPU-far"):
        dict(open_held(far))


@pytest.mark.parametrize("partial", [False, True])
def test_every_rank_holds_everything_and_one_tells_of_it(partial: bool) -> None:
    model = adapted(Lora(rank=2, targets=("q_proj",)))
    plan = plan_of(model)
    expected = everything(published(model))
    told = []
    holdings = [Holding(CPU), Holding(CPU)]
    for rank, holding in enumerate(holdings):
        *tables, sent = plan.held(holding, tells=rank == 0, partial=partial)
        assert isinstance(sent, Sent)
        found = dict(open_held(held_rows(tables)))
        assert found.keys() <= expected.keys() if partial else found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name].bfloat16()) for name in found)
        told.append(sent)
    names = [name for bucket in told[0].names for name in bucket]
    assert sorted(names) == sorted(found)
    assert told[0].num_bytes == sum(tensor.nbytes for tensor in found.values())
    assert told[0].moved.wanted > 0
    assert (told[1].names, told[1].num_bytes) == ([], 0)


def test_a_version_that_is_not_finite_is_told_of() -> None:
    model = adapted(Lora(rank=2))
    with torch.no_grad():
        next(iter(model.hugging_face.parameters())).view(-1)[0] = torch.inf
    *_, sent = plan_of(model).held(Holding(CPU), tells=True)
    assert len(sent.odd) == 1


def plan_of(model: Sharded) -> Publication:
    return Publication.plan(model, dtype=torch.bfloat16, bucket_bytes=20_000)  # type: ignore[arg-type]


def test_a_cards_memory_is_named_by_the_drivers_handle_and_nobody_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The order of torch's own handle, as torch.multiprocessing opens it; the driver is made up."""
    freed = []
    storage = types.SimpleNamespace(_share_cuda_=lambda: (0, b"memory", 64, 512, b"/counter", 2, b"event", True))
    monkeypatch.setattr(
        room.torch, "empty", lambda *size, **named: types.SimpleNamespace(untyped_storage=lambda: storage)
    )
    monkeypatch.setattr(
        room.torch.UntypedStorage, "_release_ipc_counter", lambda *given, **named: freed.append((given, named))
    )
    memory = room._on_card(64, torch.device("cuda:0"))
    assert memory.handle == {
        "memory": b"memory",
        "size": 64,
        "offset": 512,
        "counter": b"/counter",
        "counter_offset": 2,
        "event": b"event",
        "event_sync": True,
    }
    assert freed == [((b"/counter", 2), {"device": torch.device("cuda:0")})]
    row = HeldTensor("a", "uint8", (64,), 0, "GPU-1", memory.file, memory.handle, 0, 64)
    assert held_rows([held_table([row])]) == [row]
