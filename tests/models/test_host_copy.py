from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from rlhf_dist.models.host_copy import HostCopy

CARD = torch.device("cuda", 1)
moved: list[Any] = []


class OnCard(torch.Tensor):
    """Lies on a card, as far as anybody can see; on its way there it is written down."""

    device = CARD

    def to(self, device: Any, **_: Any) -> torch.Tensor:
        moved.append(device)
        return self.as_subclass(torch.Tensor).clone()


class Pretended(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.arange(6.0).as_subclass(OnCard)
        self.weight.device = CARD

    def parameters(self, recurse: bool = True) -> Iterator[Any]:
        yield from (self.weight, self.weight)


def test_what_leaves_a_card_comes_back_the_same_and_is_copied_out_once() -> None:
    module = Pretended()
    own, there = HostCopy([module, module]), module.weight.data_ptr()
    homes = []
    for _ in range(2):
        own.leave()
        own.leave()
        homes.append(module.weight.data_ptr())
        own.come_back()
        own.come_back()
        assert module.weight.as_subclass(torch.Tensor).tolist() == [0, 1, 2, 3, 4, 5]
        assert module.weight.data_ptr() not in (there, homes[0])
    assert homes[0] == homes[1] != there
    assert moved == [CARD, CARD], "tied weights go once"


def test_on_a_cpu_nothing_moves() -> None:
    module = nn.Linear(2, 2)
    places = [parameter.data_ptr() for parameter in module.parameters()]
    own = HostCopy([module])
    own.leave()
    assert [parameter.data_ptr() for parameter in module.parameters()] == places
    own.come_back()
    assert [parameter.data_ptr() for parameter in module.parameters()] == places
