"""Heavy packages without what they import for others: an actor's start is mostly imports."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without(package: str) -> Iterator[None]:
    """Inside the block the package looks as if it were not installed, unless it was imported before."""
    hidden = package not in sys.modules
    if hidden:
        sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hidden:
            del sys.modules[package]


def import_transformers() -> None:
    """Import transformers' generation, without scikit-learn (for a kind of decoding) and SciPy (for losses of images)."""
    with without("sklearn"), without("scipy"):
        importlib.import_module("transformers.generation.candidate_generator")


def import_deepspeed() -> None:
    """Import DeepSpeed, whose autotuner takes MLflow along (three seconds)."""
    with without("mlflow"):
        importlib.import_module("deepspeed")


def import_vllm() -> None:
    """Import vLLM without SciPy, which it takes along to resample sound."""
    import_transformers()
    with without("scipy"):
        importlib.import_module("vllm")
        importlib.import_module("vllm.entrypoints.llm")
