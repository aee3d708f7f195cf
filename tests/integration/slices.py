"""One of two processes that share a model: vLLM's own models and loaders, without an engine around them."""

from __future__ import annotations

import os
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rlhf_dist.rollout.places import MappedTensor


class Version(NamedTuple):
    """A model's folder, and where its weights lie."""

    folder: str
    places: list[MappedTensor]
    quantization: str | None
    """Of vLLM, which it does to weights as they arrive."""


class Loaded(NamedTuple):
    """What one process has of a model."""

    differing: list[str]
    """Parameters that are not those that vLLM reads from the folder's files."""
    copied: int
    """Bytes that were copied from the places."""


def load_each(rank: int, meeting: Path, versions: dict[str, Version], told: Connection) -> None:
    """Tell for each model what this process loaded."""
    os.environ.update(
        VLLM_PLUGINS="", VLLM_LOGGING_LEVEL="ERROR", GLOO_SOCKET_IFNAME="lo", VLLM_DIST_IDENT=meeting.name
    )
    torch.set_num_threads(1)
    import vllm.model_executor.layers.utils as layers
    from vllm.config import set_current_vllm_config
    from vllm.distributed import ensure_model_parallel_initialized, init_distributed_environment
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.worker.cpu_model_runner import _set_torch_accelerator_to_noop

    _set_torch_accelerator_to_noop()
    layers.dispatch_cpu_unquantized_gemm = lambda *given, **named: None  # leaves weights as they are: to compare
    for name, version in versions.items():
        config = EngineArgs(
            model=version.folder,
            skip_tokenizer_init=True,
            dtype="float32" if version.quantization is None else "bfloat16",
            enforce_eager=True,
            max_model_len=64,
            tensor_parallel_size=2,
            distributed_executor_backend="mp",
            quantization=version.quantization,
        ).create_engine_config()
        with set_current_vllm_config(config):
            init_distributed_environment(2, rank, f"file://{meeting}", rank, "gloo")
            ensure_model_parallel_initialized(2, 1)
            told.send((name, _load(config, version.places)))


def _load(config: Any, places: list[MappedTensor]) -> Loaded:
    from vllm.model_executor.model_loader import get_model

    from rlhf_dist.rollout.vllm_weight_engine import ArrowEngine, ArrowUpdate

    model = get_model(vllm_config=config)
    expected = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    engine = ArrowEngine.__new__(ArrowEngine)
    engine.model, engine.model_config = model, config.model_config
    with _Copied() as copied:
        engine.start_weight_update()
        engine.receive_weights(ArrowUpdate(places=places))
        engine.finish_weight_update()
    found = dict(model.named_parameters())
    differing = [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)]
    return Loaded(differing, copied.bytes)


class _Copied(TorchDispatchMode):
    """Counts what is copied out of the files in which versions lie."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.copy_.default and args[0].device.type != "meta":
            self.bytes += args[1].nbytes * _in_a_version(args[1].data_ptr())
        return func(*args, **(kwargs or {}))


def _in_a_version(address: int) -> bool:
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if "rlhf_dist-weights" in line]
    spans = [[int(each, 16) for each in span.split("-")] for span, *_ in lines]
    return any(start <= address < end for start, end in spans)
