"""Which generation engine a process builds, and how."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch

from rlhf_dist.cluster.threads import device_of_this_process, environment_of
from rlhf_dist.config import Rollout
from rlhf_dist.data.ends import added_tokens
from rlhf_dist.errors import ConfigError
from rlhf_dist.imports import import_transformers
from rlhf_dist.models import load_tokenizer, resolve
from rlhf_dist.models.attention import with_cache
from rlhf_dist.planning.sharing import OWN_CARD, SharedCard
from rlhf_dist.records import Sampling
from rlhf_dist.rollout.agreement import Expected
from rlhf_dist.rollout.device_memory import memory_of_visible
from rlhf_dist.rollout.engine import RolloutEngine

BATCHED_TOKENS = 4096
"""Of one step of an engine on a CPU, at least; prompts are read whole."""


@dataclass(frozen=True)
class EngineSpec:
    """Which engine, on what."""

    kind: str
    model: str
    dtype: str
    max_sequence: int
    max_concurrent: int
    tensor_parallel: int
    threads: int
    options: dict[str, Any]
    """Further arguments of vLLM."""
    on_cuda: dict[str, Any]
    """The same, of an engine that has GPUs; they go before."""
    on_cpu: dict[str, Any]
    """The same, of one that has none."""
    log_dir: str
    """Where the worker's log file goes."""
    attention: str = "sdpa"
    """Attention kernels of models that are computed by transformers (`learner.attention`)."""
    shared: SharedCard | None = None
    """Who has the GPU, too; None: it is the engine's own."""
    fixed: bool = False
    """Generate with the folder's own weights, instead of those that a store hands out."""

    def build(self, sampling: Sampling) -> RolloutEngine:
        """Start the engine in this process."""
        import_transformers()
        device, model = device_of_this_process(self.threads), resolve(self.model)
        if self.kind == "vllm":
            from rlhf_dist.rollout.vllm_engine import VLLMEngine

            expected = self._expected(model, device)
            engine = VLLMEngine(
                model,
                sampling,
                dtype=self.dtype,
                max_sequence=self.max_sequence,
                max_concurrent=self.max_concurrent,
                tensor_parallel=self.tensor_parallel,
                engine_options=self._options_on(device) | ({"load_format": "auto"} if self.fixed else {}),
            )
            if expected is not None:
                expected.check(engine)
            return engine
        from rlhf_dist.rollout.transformers_engine import TransformersEngine

        return TransformersEngine(
            model,
            sampling,
            dtype=self.dtype,
            max_concurrent=self.max_concurrent,
            device=device,
            attention=with_cache(self.attention),
        )

    def _options_on(self, device: str) -> dict[str, Any]:
        if device != "cuda":
            return self.on_cpu | self.options
        room = {}
        if self.shared is not None:
            # Not asked of CUDA: of an engine over several GPUs this process computes nothing, and would take memory for that.
            room = self.shared.engine_options(min(each.total for each in memory_of_visible()))
        return self.on_cuda | self.options | room

    def _expected(self, model: str, device: str) -> Expected | None:
        """What to compare the engine with; None where a learner will be, or where no single device has room for the model."""
        if not self.fixed or self.tensor_parallel > 1:
            return None
        asked = {"dtype": self.dtype, "attention": self.attention, "device": device}
        expected = Expected.by_transformers(model, **asked, longest=self.max_sequence)
        if device != "cpu":
            torch.cuda.empty_cache()
        return expected


def engine_spec(
    rollout: Rollout,
    model: str,
    *,
    dtype: str,
    max_sequence: int,
    seed: int,
    log_dir: str,
) -> EngineSpec:
    """The engine that the settings ask for, on a model's folder; lengths in tokens."""
    return EngineSpec(
        kind=rollout.engine,
        model=model,
        dtype=dtype,
        max_sequence=max_sequence,
        max_concurrent=rollout.max_concurrent,
        tensor_parallel=rollout.tensor_parallel,
        threads=rollout.threads,
        options={"enable_prefix_caching": rollout.prefix_caching, "seed": seed, **rollout.engine_args},
        on_cuda={
            "enforce_eager": not compiles(rollout, on_gpu=True),
            "gpu_memory_utilization": rollout.gpu_memory_fraction or OWN_CARD,
        },
        on_cpu={
            "enforce_eager": not compiles(rollout, on_gpu=False),
            "kv_cache_memory_bytes": int(rollout.kv_cache_gib * 2**30),
            # Where a seeded prompt is read in two steps, vLLM turns its generator back, which one on a CPU cannot be.
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(BATCHED_TOKENS, max_sequence),
        },
        log_dir=log_dir,
    )


def compiles(rollout: Rollout, *, on_gpu: bool) -> bool:
    """Whether vLLM compiles the model: on GPUs a step of a small one is launching kernels, which CUDA graphs save."""
    return on_gpu if rollout.compile is None else rollout.compile


def environment(rollout: Rollout, *, on_gpu: bool, threads: int) -> dict[str, str]:
    """Variables of an engine's process.

    Args:
        rollout: its settings.
        on_gpu: it has GPUs, as far as Ray knows.
        threads: CPU threads that it, or each of its processes, may use.
    """
    if rollout.engine == "transformers":
        return environment_of(threads)
    from rlhf_dist.rollout.vllm_engine import ENVIRONMENT

    # An engine is one actor, so its processes are on one machine: their collectives listen there only, unless the user says.
    if rollout.batch_invariant and not on_gpu:
        raise ConfigError(
            "rollout.batch_invariant is true, but the engines are on CPUs, where vLLM has no such kernels; expected false (in "
            "fp32 on a CPU samples come out token for token alike in any company)"
        )
    loopback = {name: os.environ.get(name, "lo") for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")}
    # Binding would pin the engines of several workers to the same cores.
    found = ENVIRONMENT | loopback | environment_of(threads) | {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    if on_gpu:
        return found | ({"VLLM_BATCH_INVARIANT": "1"} if rollout.batch_invariant else {})
    # vLLM compiles two small functions of its sampler even where its model runs eagerly: 2 to 5 s before the first sample.
    return found | ({} if compiles(rollout, on_gpu=on_gpu) else {"TORCH_COMPILE_DISABLE": "1"})


def sampling_of(rollout: Rollout, ends: tuple[int, ...], model: str = "") -> Sampling:
    """How answers are drawn, and which tokens end them.

    Args:
        rollout: the settings.
        ends: tokens that end the model's answers.
        model: its folder; a stop string that is one of its tokenizer's own tokens ends answers as such, since engines look
            for strings in text that has no special tokens.
    """
    added = added_tokens(load_tokenizer(model)) if model and rollout.stop else {}
    stops = [added[text] for text in rollout.stop if text in added]
    return Sampling(
        max_new_tokens=rollout.max_new_tokens,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
        stop=tuple(text for text in rollout.stop if text not in added),
        eos_token_ids=tuple(dict.fromkeys([*ends, *stops])),
    )
