"""What a session refuses, and what runs are called on a cluster."""

import pytest
import ray

from rlhf_dist.cluster.session import check_size
from rlhf_dist.errors import EnvironmentProblem


def test_a_cluster_that_is_too_small_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0, "GPU": 2.0})
    check_size(4, 2)
    with pytest.raises(EnvironmentProblem, match=r"has 2 GPUs; this run's actors ask for 3"):
        check_size(1, 3)
    with pytest.raises(EnvironmentProblem, match=r"has 4 CPUs; this run's actors ask for 5"):
        check_size(5, 0)
