from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from rlhf_dist.cluster.threads import helpers


@pytest.fixture
def three() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_helpers_compute_alone_and_whoever_comes_after_them_as_the_caller_does(three: None) -> None:
    threads = helpers(2)
    assert {*threads.map(lambda _: torch.get_num_threads(), range(8))} == {1}
    assert torch.get_num_threads() == 3
    assert ThreadPoolExecutor(1).submit(torch.get_num_threads).result() == 3
