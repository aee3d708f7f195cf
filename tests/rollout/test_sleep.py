"""What vLLM is asked for by an engine that shares its device, in which order; on CPUs it cannot sleep."""

import threading
from collections.abc import Callable
from typing import Any

from rlhf_dist.rollout.engine import LoadedWeights
from rlhf_dist.rollout.vllm_engine import VLLMEngine


class Recorder:
    """In the place of `vllm.LLM`: notes each call, with the argument that says what of the engine it is about."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        def call(*_: Any, **named: Any) -> None:
            self.calls.append(" ".join([name, *map(str, named.get("tags", [named.get("level", "")]))]).strip())

        return call


def engine() -> tuple[VLLMEngine, Recorder]:
    made, recorder = VLLMEngine.__new__(VLLMEngine), Recorder()
    made._llm, made._can_sleep, made._asleep = recorder, True, set()
    made._weights, made._children = LoadedWeights(whole=False), None
    made._closed, made._busy, made._closing = False, False, threading.Lock()
    return made, recorder


UPDATE = ["start_weight_update", "update_weights", "finish_weight_update"]


def test_the_cache_is_taken_again_when_the_weights_are_loaded() -> None:
    made, recorder = engine()
    made.sleep()
    made.sleep()
    made.wake()
    made.load_weights([], [], version=1)
    assert recorder.calls == ["sleep 2", "wake_up weights", *UPDATE, "wake_up kv_cache", "reset_prefix_cache"]


def test_an_engine_that_is_awake_takes_nothing() -> None:
    made, recorder = engine()
    made.wake()
    made.load_weights([], [], version=1)
    assert recorder.calls == [*UPDATE, "reset_prefix_cache"]


def test_asleep_there_is_no_version() -> None:
    made, _ = engine()
    made.load_weights([], [], version=3)
    made.sleep()
    assert made.version == -1
