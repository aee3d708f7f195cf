import re

import pytest

from rlhf_dist.learner.version_notes import notes_on


@pytest.mark.parametrize(
    ("facts", "about", "says"),
    [
        ({"weights/bytes": 7.0, "weights/spilled_bytes": 0.0}, [], ""),
        ({"weights/lora_kept": 0.9}, [], ""),
        ({"weights/lora_kept": 0.8}, ["rounding"], "weights/lora_kept is 0.80: .* expected 0.9 at least"),
        ({"weights/spilled_bytes": 3.0 * 2**20}, ["spilling"], r"has written 3 MiB .* Raise cluster\.object_store_mib"),
    ],
)
def test_rounded_adapters_and_a_spilled_store_are_told_with_what_helps(
    facts: dict[str, float], about: list[str], says: str
) -> None:
    found = notes_on(facts)
    assert list(found) == about
    assert all(re.search(says, note) for note in found.values())
