"""What people should know of a weight version that was published."""

from __future__ import annotations

from collections.abc import Mapping

LEAST_KEPT = 0.9
"""Of what adapters change, in the dtype of the wire, below which people are warned; see `store.weights.Moved`."""


def notes_on(facts: Mapping[str, float]) -> dict[str, str]:
    """Warnings, by what they are about.

    Args:
        facts: metrics of the version.
    """
    found = {}
    if (kept := facts.get("weights/lora_kept", 1.0)) < LEAST_KEPT:
        found["rounding"] = (
            f"weights/lora_kept is {kept:.2f}: merged and rounded for engines, the adapters' change of the weights is hardly "
            f"theirs any more; expected {LEAST_KEPT:g} at least. Samples are of nearly the same policy until the change has "
            "grown: take weights.wire_dtype float32, or a larger learning rate"
        )
    if spilled := facts.get("weights/spilled_bytes", 0.0):
        found["spilling"] = (
            f"Ray has written {spilled / 2**20:.0f} MiB of its object store to disk, to be read again: it is too small. Raise "
            "cluster.object_store_mib, or start nodes with `ray start --object-store-memory`"
        )
    return found
