"""DeepSpeed's own config: what the learner's settings come to, and what users may add to it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from rlhf_dist.config import Learner
from rlhf_dist.errors import ConfigError
from rlhf_dist.imports import import_deepspeed
from rlhf_dist.planning.zero_buffers import zero_buffers

MAY_BE_GIVEN = frozenset({"communication_data_type", *zero_buffers(1, 3)})
"""Of what is set here, what users may set otherwise."""
INSTEAD = {
    "bf16": "learner.precision",
    "fp16": "learner.precision",
    "torch_autocast": "learner.precision",
    "amp": "learner.precision",
    "gradient_clipping": "learner.policy.max_grad_norm",
    "optimizer": "learner.policy and learner.value",
    "scheduler": "learner.policy.schedule",
    "stage": "learner.zero_stage",
    "offload_optimizer": "learner.cpu_offload",
    "cpu_offload": "learner.cpu_offload",
    "train_batch_size": "learner.micro_batch_tokens",
    "train_micro_batch_size_per_gpu": "learner.micro_batch_tokens",
}
"""Settings of ours that say what these of DeepSpeed would."""


def settings_of(learner: Learner, *, clip: float, hidden: int) -> dict[str, Any]:
    """DeepSpeed's config.

    Gradients of micro-batches add up, and are summed over ranks, in fp32: in bf16 a sum stops growing at 256 times its addend.
    Without ZeRO DeepSpeed cannot (`learner.zero_stage` 0 is refused in bf16).

    Args:
        learner: its settings.
        clip: norm that gradients are scaled down to.
        hidden: the model's hidden size.
    """
    stage, given = learner.zero_stage, learner.deepspeed
    zero: dict[str, Any] = {"stage": stage, **zero_buffers(hidden, stage)}
    if learner.cpu_offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": learner.precision == "bf16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "gradient_clipping": clip,
        "steps_per_print": 10**9,
        **given,
        "zero_optimization": {**zero, **given.get("zero_optimization", {})},
    }


def frozen_settings(learner: Learner, *, hidden: int, on_host: bool) -> dict[str, Any]:
    """The same for a model that is only asked: ZeRO-3 without an optimiser, whatever the stage of what is trained.

    Args:
        learner: its settings.
        hidden: the model's hidden size.
        on_host: its weights are in host memory.
    """
    given = learner.deepspeed.get("zero_optimization", {})
    zero: dict[str, Any] = {**zero_buffers(hidden, 3), **given, "stage": 3}
    # Of weights that DeepSpeed keeps whole, small ones by default, nothing could be given back between two passes.
    zero["stage3_param_persistence_threshold"] = 0
    if on_host:
        zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": learner.precision == "bf16"},
        "steps_per_print": 10**9,
        **learner.deepspeed,
        "zero_optimization": zero,
    }


def check_deepspeed(learner: Learner) -> None:
    """Refuse settings that the installed DeepSpeed does not know, and those that are ours to set.

    Raises:
        ConfigError: names the key, and what is expected.
    """
    given = learner.deepspeed
    if not given:
        return
    zero = given.get("zero_optimization", {})
    if not isinstance(zero, dict):
        raise ConfigError(f"learner.deepspeed.zero_optimization is {zero!r}; expected settings by name")
    ours = settings_of(learner.model_copy(update={"deepspeed": {}}), clip=1.0, hidden=1)
    fixed = (INSTEAD.keys() | ours.keys() | ours["zero_optimization"].keys()) - MAY_BE_GIVEN - {"zero_optimization"}
    for key, name in (*((name, name) for name in given), *((f"zero_optimization.{name}", name) for name in zero)):
        if name in fixed:
            instead = f"`{INSTEAD[name]}` instead" if name in INSTEAD else "it left out"
            raise ConfigError(f"learner.deepspeed.{key} is the learner's own to set; expected {instead}")
    _check_by_deepspeed(settings_of(learner, clip=1.0, hidden=1), given)


def _check_by_deepspeed(settings: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Have DeepSpeed read the settings; what it does not ask for, it does not know."""
    from pydantic import ValidationError

    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # it is asked for names alone
    import_deepspeed()
    from deepspeed.runtime.config import DeepSpeedConfig

    told = _Asked(settings)
    try:
        DeepSpeedConfig(told)
    except (ValidationError, AssertionError, ValueError) as error:
        reason = " ".join(str(error).split(" [type=")[0].split())
        raise ConfigError(f"learner.deepspeed: the installed DeepSpeed refuses it: {reason}") from None
    if unknown := sorted(set(given) - told.asked):
        known = ", ".join(sorted(told.asked - INSTEAD.keys()))
        raise ConfigError(f"learner.deepspeed.{unknown[0]}: DeepSpeed has no such setting; expected one of {known}")


class _Asked(dict[str, Any]):
    """Settings that note which of them are asked for; whoever copies them goes on with the same notes."""

    def __init__(self, settings: Mapping[str, Any], asked: set[str] | None = None) -> None:
        super().__init__(settings)
        self.asked = set() if asked is None else asked

    def __contains__(self, name: object) -> bool:
        self.asked.add(str(name))
        return super().__contains__(name)

    def __getitem__(self, name: str) -> Any:
        self.asked.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """A setting, or the default."""
        self.asked.add(name)
        return super().get(name, default)

    def keys(self) -> Any:
        """Itself, which can be asked what it contains."""
        return self

    def __copy__(self) -> _Asked:
        return _Asked(dict(self.items()), self.asked)

    def __iter__(self) -> Iterator[str]:
        return super().__iter__()
