"""Shared by all tests: one thread, so that numbers repeat and the machine's cores are shared fairly."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)
