"""Waiting for GPU memory that a dead engine's processes still hold: they end, and the driver takes back, some seconds after it.

vLLM raises where less is free than its fraction of a device, in whichever of its processes looks first; in a process where it
raised no second engine can be built. So memory is looked at before, through NVML, which makes no CUDA context of its own.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import NamedTuple

log = logging.getLogger(__name__)

WAIT_S = 120.0
"""Then vLLM may say itself what it lacks."""
FIRST_S, LONGEST_S = 0.25, 5.0
"""Between two looks, doubled each time."""


class DeviceMemory(NamedTuple):
    """Of one GPU, in bytes."""

    free: int
    total: int


def memory_of_visible() -> list[DeviceMemory]:
    """Of the GPUs that this process sees, by index or UUID in `CUDA_VISIBLE_DEVICES`; all of them without it."""
    from vllm.third_party import pynvml

    pynvml.nvmlInit()
    try:
        named = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = [str(number) for number in range(pynvml.nvmlDeviceGetCount())] if named is None else named.split(",")
        handles = [
            pynvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else pynvml.nvmlDeviceGetHandleByUUID(name)
            for name in names
            if name
        ]
        found = [pynvml.nvmlDeviceGetMemoryInfo(handle) for handle in handles]
    finally:
        pynvml.nvmlShutdown()
    return [DeviceMemory(each.free, each.total) for each in found]


def wait_for_memory(
    fraction: float, *, memory: Callable[[], list[DeviceMemory]] = memory_of_visible, within_s: float = WAIT_S
) -> bool:
    """Wait until so much of each visible GPU is free; whether it was in time.

    Args:
        fraction: of all of its memory; vLLM's `gpu_memory_utilization`.
        memory: tells it.
        within_s: seconds to wait at most.
    """
    deadline, pause = time.monotonic() + within_s, FIRST_S
    while lacking := [each for each in memory() if each.free < fraction * each.total]:
        if time.monotonic() + pause > deadline:
            return False
        if pause == FIRST_S:
            log.info("waiting for GPU memory", extra={"free": lacking[0].free, "needed": fraction * lacking[0].total})
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_S)
    return True
