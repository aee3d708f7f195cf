"""What of this machine a run may use."""

from __future__ import annotations

import os
from pathlib import Path

MIB, GIB = 2**20, 2**30
LIMIT = Path("/sys/fs/cgroup/memory.max")
"""What the container that this process is in may use, in bytes, or `max`."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def memory_bytes() -> int:
    """Memory that this process may use: the machine's, or its container's limit."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    text = LIMIT.read_text().strip() if LIMIT.is_file() else "max"
    return machine if text == "max" else min(machine, int(text))
