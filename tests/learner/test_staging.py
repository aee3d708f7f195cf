"""Host buffers by turns. What a card would do is recorded: no card is needed to see in which order it is asked."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from rlhf_dist.learner import staging
from rlhf_dist.learner.staging import ALIGNED, Staging

CPU = torch.device("cpu")


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"a": torch.full((3, 5), value), "b": torch.full((7,), value).bfloat16(), "none": torch.empty(0)}


def test_two_takes_are_good_at_once_and_the_third_lies_where_the_first_did() -> None:
    stage = Staging(CPU)
    kept = [stage.take(tensors(value), lasting=False)() for value in (1.0, 2.0)]
    for value, found in zip((1.0, 2.0), kept, strict=True):
        assert all(torch.equal(found[name], tensor) for name, tensor in tensors(value).items())
    third = stage.take(tensors(3.0), lasting=False)()
    assert third["a"].data_ptr() == kept[0]["a"].data_ptr()
    assert torch.equal(kept[0]["a"], tensors(3.0)["a"])
    assert torch.equal(kept[1]["a"], tensors(2.0)["a"])
    assert stage.num_bytes == 2 * 2 * ALIGNED, "no more than two of the largest"


def test_what_lasts_in_host_memory_is_not_copied() -> None:
    stage, own = Staging(CPU), tensors(1.0)
    found = stage.take(own, lasting=True)()
    assert all(found[name] is own[name] for name in own)
    assert stage.num_bytes == 0


class Card:
    """Records what is asked of a card; its copies happen at once."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def wait_stream(self, other: str) -> None:
        self.asked.append(f"wait for {other}")

    def record(self, stream: Any) -> None:
        assert stream is self
        self.asked.append("mark")

    def synchronize(self) -> None:
        self.asked.append("await the mark")

    @contextmanager
    def entered(self, stream: Any) -> Iterator[None]:
        self.asked.append("on its stream")
        yield
        self.asked.append("off its stream")

    def tensor(self, name: str) -> torch.Tensor:
        made: Any = torch.ones(4)
        made.record_stream = lambda stream: self.asked.append(f"{name} is in use")
        return made  # type: ignore[no-any-return]


@pytest.mark.parametrize("lasting", [False, True])
def test_a_card_copies_beside_what_it_computes_keeps_what_it_reads_and_is_awaited_only_when_asked(
    lasting: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = Card()
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: card)
    monkeypatch.setattr(torch.cuda, "Event", lambda: card)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "what was computed")
    monkeypatch.setattr(torch.cuda, "stream", card.entered)
    pinned = []

    def empty(size: int, *, dtype: torch.dtype, pin_memory: bool) -> torch.Tensor:
        pinned.append(pin_memory)
        return torch.zeros(size, dtype=dtype)

    monkeypatch.setattr(staging.torch, "empty", empty)
    stage = Staging(torch.device("cuda"))
    wait = stage.take({name: card.tensor(name) for name in ("a", "b")}, lasting=lasting)
    begun = ["wait for what was computed", "on its stream", "a is in use", "b is in use", "off its stream", "mark"]
    assert card.asked == begun
    found = wait()
    assert card.asked == [*begun, "await the mark"]
    assert torch.equal(found["b"], torch.ones(4))
    assert pinned
    assert all(pinned)
