"""Lending itself, with NIXL: tests/integration/test_lending.py."""

import sys

import pytest

from rlhf_dist.errors import EnvironmentProblem
from rlhf_dist.store.lent import check_lending


@pytest.mark.parametrize(
    ("module", "install"),
    [
        ("nixl", r"`pip install 'nixl'`"),
        ("ray.experimental.rdt.nixl_tensor_transport", r"`pip install 'ray\[default\]>=2.56'`"),
    ],
)
def test_what_is_missing_is_named_with_what_to_install(
    module: str, install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = type(sys)("nixl")
    monkeypatch.setitem(sys.modules, "nixl", found)
    monkeypatch.setitem(sys.modules, "nixl._api", found)
    monkeypatch.setitem(sys.modules, module, None)
    if module == "nixl":
        monkeypatch.delitem(sys.modules, "nixl._api")
    with pytest.raises(
        EnvironmentProblem, match=f"weights.transport sharded_rdt reads .*{install}.*or take transport store"
    ):
        check_lending()
