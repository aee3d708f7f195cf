"""What actors are told of their devices; by a real Ray: tests/integration/test_pretended_gpus.py."""

from pathlib import Path
from unittest.mock import MagicMock

import pytest

from rlhf_dist.cluster.allocator import NAMES
from rlhf_dist.cluster.placement import lay_out
from rlhf_dist.stages.places import Where
from tests.cluster.test_placement import config


def where(*, gpus: bool) -> Where:
    return Where(lay_out(config(), gpus=gpus, cores=8.5), MagicMock(), Path(), MagicMock())


def test_threads_and_allocator_are_those_of_the_card_and_on_cpus_those_of_the_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    told = where(gpus=True).torch(3)
    assert (told["OMP_NUM_THREADS"], told["PYTORCH_ALLOC_CONF"]) == ("8", "expandable_segments:True")
    assert "PYTORCH_ALLOC_CONF" not in where(gpus=True).torch(3, lends=True), "engines open its memory"
    on_cpus = where(gpus=False).torch(3)
    assert on_cpus["OMP_NUM_THREADS"] == "3"
    assert "PYTORCH_ALLOC_CONF" not in on_cpus
