from hypothesis import given
from hypothesis import strategies as st

from rlhf_dist.store.admission import room


@given(st.integers(1, 64), st.integers(0, 5), st.integers(1, 8))
def test_no_setting_deadlocks_and_staleness_stays_within_its_bound(batch: int, staleness: int, versions: int) -> None:
    granted = 0
    for version in range(versions):
        while room(granted=granted, version=version, batch_rows=batch, max_staleness=staleness):
            assert granted // batch - version <= staleness
            granted += 1
        assert granted >= (version + 1) * batch, "the batch of this version could never complete"


def test_nothing_is_granted_before_the_first_version() -> None:
    assert room(granted=0, version=-1, batch_rows=8, max_staleness=0) == 0
