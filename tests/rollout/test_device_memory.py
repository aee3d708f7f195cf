"""What NVML says is made up, also where there is a GPU."""

import sys
import types
from typing import Any

import pytest

from rlhf_dist.rollout import device_memory
from rlhf_dist.rollout.device_memory import DeviceMemory, memory_of_visible, wait_for_memory


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that goes on by sleeping alone."""
    slept: list[float] = []
    monkeypatch.setattr(device_memory.time, "monotonic", lambda: sum(slept))
    monkeypatch.setattr(device_memory.time, "sleep", slept.append)
    return slept


def test_an_engine_waits_until_all_its_devices_are_free(pauses: list[float]) -> None:
    looks = [[(60, 80), (10, 80)], [(10, 80), (60, 80)], [(39, 80), (80, 80)], [(40, 80), (80, 80)], [(0, 80), (0, 80)]]
    left = iter([DeviceMemory(*each) for each in look] for look in looks)
    assert wait_for_memory(0.5, memory=lambda: next(left), within_s=10)
    assert pauses == [0.25, 0.5, 1.0]


def test_a_wait_ends_so_that_vllm_says_what_it_lacks(pauses: list[float]) -> None:
    assert not wait_for_memory(0.9, memory=lambda: [DeviceMemory(1, 80)], within_s=60)
    assert 50 < sum(pauses) <= 60
    assert max(pauses) == 5.0


@pytest.mark.parametrize(
    ("visible", "asked"), [("2,0", [2, 0]), ("GPU-ab,1", ["GPU-ab", 1]), ("", []), (None, [0, 1, 2])]
)
def test_devices_are_those_of_this_process(
    visible: str | None, asked: list[int | str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    handles: list[Any] = []

    def memory(handle: Any) -> Any:
        handles.append(handle)
        return types.SimpleNamespace(free=len(handles), total=9, used=0)

    nvml = types.SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: 3,
        nvmlDeviceGetHandleByIndex=lambda number: number,
        nvmlDeviceGetHandleByUUID=lambda name: name,
        nvmlDeviceGetMemoryInfo=memory,
    )
    monkeypatch.setitem(sys.modules, "vllm.third_party", types.SimpleNamespace(pynvml=nvml))
    assert memory_of_visible() == [DeviceMemory(number + 1, 9) for number in range(len(asked))]
    assert handles == asked
