"""What users may add to vLLM's arguments."""

from __future__ import annotations

from difflib import get_close_matches

from rlhf_dist.config import Rollout
from rlhf_dist.errors import ConfigError

OURS = {
    "disable_log_stats": "",
    "distributed_executor_backend": "",
    "dtype": "weights.wire_dtype",
    "enable_prefix_caching": "rollout.prefix_caching",
    "enable_sleep_mode": "cluster.placement",
    "enforce_eager": "rollout.compile",
    "gpu_memory_utilization": "rollout.gpu_memory_fraction",
    "kv_cache_memory_bytes": "rollout.gpu_memory_fraction (kv_cache_gib on CPUs)",
    "load_format": "",
    "logprobs_mode": "",
    "max_model_len": "prompts.max_tokens and rollout.max_new_tokens",
    "max_num_seqs": "rollout.max_concurrent",
    "model": "policy",
    "seed": "seed",
    "skip_tokenizer_init": "rollout.stop",
    "tensor_parallel_size": "rollout.tensor_parallel",
    "trust_remote_code": "",
    "weight_transfer_config": "",
}
"""Arguments that are set here, and the settings that say what they would; empty: none does."""


def check_engine_args(rollout: Rollout) -> None:
    """Refuse arguments that the installed vLLM does not know, and those that are ours to set.

    Raises:
        ConfigError: names the key, and what is expected.
    """
    if not rollout.engine_args:
        return
    if rollout.engine != "vllm":
        raise ConfigError(f"rollout.engine_args are vLLM's, and rollout.engine is {rollout.engine}; expected none")
    for name in rollout.engine_args:
        if name in OURS:
            instead = f"`{OURS[name]}` instead" if OURS[name] else "it left out"
            raise ConfigError(f"rollout.engine_args.{name} is the engine's own to set; expected {instead}")
    known = _known()
    for name in rollout.engine_args:
        if name not in known:
            close = get_close_matches(name, known, 1)
            raise ConfigError(
                f"rollout.engine_args.{name}: the installed vLLM has no such argument; "
                + (f"did you mean `{close[0]}`?" if close else "expected a field of vllm.engine.arg_utils.EngineArgs")
            )


def _known() -> list[str]:
    """Fields of vLLM's EngineArgs; to import it takes seconds, so only where somebody asks."""
    import dataclasses

    from rlhf_dist.imports import import_vllm

    import_vllm()
    from vllm.engine.arg_utils import EngineArgs

    return [field.name for field in dataclasses.fields(EngineArgs)]
