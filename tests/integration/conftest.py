"""Fixtures of the integration tests: what costs seconds to start is started once and shared."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf_dist.cluster.session import session
from rlhf_dist.config import Cluster
from tests.runs import Folders, train


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One Ray for all tests of this process; the sessions of runs nest in it."""
    with session(Cluster(object_store_mib=1024), cpus=8, gpus=0, namespace="rlhf/tests"):
        yield


@pytest.fixture(scope="session")
def plain(ray_session: None, folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished RL run for all who only read one: vLLM, one rollout worker, one learner rank."""
    config = folders.config(prompts={"held_out": str(folders.prompts), "held_out_limit": 4}, checkpoint_every=1)
    return train(config, tmp_path_factory.mktemp("plain"))
