"""How torch takes memory of a card."""

from __future__ import annotations

import os

NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""In torch's order."""


def growing() -> dict[str, str]:
    """Variables of a process whose tensors have ever other sizes: its segments grow; the user's own settings win.

    Not for engines, whose memory goes to sleep: vLLM has its own pool for that, which such segments cannot be in. Nor for ranks
    that hand memory to others, for whom a segment is slow to open, and where containers forbid it cannot be.
    """
    own = {name: os.environ[name] for name in NAMES if name in os.environ}
    return own or {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
