"""How much memory each actor takes, estimated from model configs without allocating anything.

Checked against measured peaks by `benchmarks/memory.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlhf_dist.config import Lora, RLConfig
from rlhf_dist.errors import ModelError
from rlhf_dist.models import LOGITS_BYTES
from rlhf_dist.planning.machine import GIB
from rlhf_dist.planning.sharing import engine_share
from rlhf_dist.store.weights import KEPT_VERSIONS

CPU_ENGINE_COPIES = 3.0
"""vLLM on CPU keeps its linear layers packed for the processor, beside what arrived and what they were packed from (measured)."""
BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class ModelSize:
    """Counts that memory and time depend on."""

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    attention: int
    """Query heads times head size."""
    kv_elements: int
    """Key and value elements per token, all layers."""
    vocabulary: int
    adapters: int = 0
    """Parameters of the adapters that it has to be trained with."""
    adapted: int = 0
    """Its own parameters that these change."""


def model_size(config: Any, *, kind: str, lora: Lora | None = None) -> ModelSize:
    """Count a model's parameters from its Hugging Face config without allocating them.

    Args:
        config: the model's config.
        kind: `policy` or `value`.
        lora: adapters that it is trained with; None: all of it is trained.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    if kind == "value":
        config.num_labels = 1
    made: Any = AutoModelForCausalLM if kind == "policy" else AutoModelForSequenceClassification
    try:
        with torch.device("meta"):
            model = made.from_config(config)
    except ValueError as error:
        wanted = "causal language model" if kind == "policy" else "sequence classification"
        raise ModelError(
            f"{config._name_or_path}: transformers has no {wanted} of the kind {config.model_type!r}; expected a family that has"
        ) from error

    def said(name: str, default: int) -> int:
        """Families without attention, or with another in each layer, leave such numbers out, or give a list."""
        found = getattr(config, name, None)
        return found if isinstance(found, int) else default

    heads = said("num_attention_heads", 1)
    head_size = said("head_dim", config.hidden_size // heads)
    layers = said("num_hidden_layers", 1)
    adapted = _adapted(model, lora) if lora is not None else []
    return ModelSize(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        layers=layers,
        hidden=config.hidden_size,
        intermediate=said("intermediate_size", 4 * config.hidden_size),
        attention=head_size * heads,
        kv_elements=2 * layers * said("num_key_value_heads", heads) * head_size,
        vocabulary=config.vocab_size,
        adapters=sum(lora.rank * sum(shape[-2:]) * math.prod(shape[:-2]) for shape in adapted)
        if lora is not None
        else 0,
        adapted=sum(map(math.prod, adapted)),
    )


def _adapted(model: Any, lora: Lora) -> list[tuple[int, ...]]:
    """Shapes of the weights that adapters would change: of linear layers and, stacked, of experts."""
    from torch import nn

    heads = [model.get_output_embeddings(), getattr(model, "score", None)]
    whole = {id(parameter) for head in heads if head is not None for parameter in head.parameters()}
    found = []
    for name, module in model.named_modules():
        for own, weight in module.named_parameters(name, recurse=False):
            named = any(target in own.split(".") for target in lora.targets)
            stacked = weight.dim() == 3 and not isinstance(module, nn.modules.conv._ConvNd)
            is_layer = stacked or (weight.dim() == 2 and isinstance(module, nn.Linear))
            if is_layer and id(weight) not in whole and (named or lora.targets == ("all-linear",)):
                found.append(tuple(weight.shape))
    return found


def together(sizes: Sequence[ModelSize]) -> ModelSize:
    """Several models in one process, which work one after the other: all weights, the largest one's activations."""
    largest = max(sizes, key=lambda size: size.parameters)
    added = {name: sum(getattr(size, name) for size in sizes) for name in ("parameters", "adapters", "adapted")}
    return replace(largest, **added)


def memory(
    role: str, config: RLConfig, sizes: dict[str, ModelSize], *, gpu_bytes: float | None = None
) -> dict[str, float]:
    """What fills the memory of one actor, in bytes.

    Args:
        role: `store`, `rollout`, `reward`, `reference` or `learner`.
        config: the run's config.
        sizes: of `policy`, `reference`, `reward` and `critic`.
        gpu_bytes: a GPU's memory; None: the actor is in a host's.
    """
    if role == "learner":
        return learner_memory(config, sizes)
    if role == "rollout":
        beside = learner_memory(config, sizes)["parameters"]  # the rest of it leaves while engines generate
        return engine_memory(config, sizes["policy"], gpu_bytes, beside)
    if role == "store":
        return store_memory(config, sizes["policy"])
    return scorer_memory(config, sizes[role], role, devices=config.devices_of_scorer(role) if gpu_bytes else 1)


def learner_memory(config: RLConfig, sizes: dict[str, ModelSize]) -> dict[str, float]:
    """Bytes on one learner rank (Rajbhandari et al. 2020, arXiv:1910.02054, section 3: what each ZeRO stage divides)."""
    learner = config.learner
    models = [sizes["policy"]] + ([sizes["critic"]] if learner.critic == "model" else [])
    frozen = sum(size.parameters for size in models) if learner.lora else 0
    trained = sum(size.adapters if learner.lora else size.parameters for size in models)
    half = learner.dtype != "float32"
    ranks, stage = learner.ranks, learner.zero_stage
    width = BYTES[learner.dtype]
    asked = sum(sizes[role].parameters for role in config.frozen) * width / ranks
    held = (
        float(sizes["policy"].parameters + (sizes["policy"].adapted if learner.lora else 0)) * BYTES[config.wire_dtype]
    )
    # Adam's two moments; and the fp32 master copy where training is in half precision or ZeRO cuts flat partitions.
    optimiser = trained * (12 if half or stage >= 1 else 8) / (ranks if stage >= 1 else 1)
    return {
        "parameters": (frozen + trained) * width / (ranks if stage == 3 else 1),
        "gradients": trained * BYTES["float32"] / (ranks if stage >= 2 else 1),  # they add up in fp32, also of bf16
        "optimiser (host)" if learner.cpu_offload else "optimiser": optimiser,
        **({"asked models (host)" if config.scoring.frozen_on_host else "asked models": asked} if asked else {}),
        **({"held version": held} if config.weights.transport == "cuda_ipc" else {}),
        "activations": max(activations(config, size) for size in models),
        "logits": 3.0 * min(LOGITS_BYTES, 4 * learner.micro_batch_tokens * sizes["policy"].vocabulary),
    }


def activations(config: RLConfig, size: ModelSize) -> float:
    """Bytes that the backward pass of one micro-batch needs from the forward pass.

    Per token and layer of a gated decoder with rotary positions, in elements, where h is the hidden size, a that of all query
    heads, k that of all key heads and f the gate's: two norms keep input, normalised and scaled, and two residual sums (8 h);
    queries and keys are kept as projected, rotated by half and rotated (3 a + 3 k), values as projected (k), keys and values
    repeated for all query heads (2 a), and the attention's output twice (2 a); the gate, its activation, the up projection and
    their product (4 f). Fused attention stores no scores. The counting is that of Korthikanti et al. 2022, arXiv:2205.05198,
    section 4, for today's decoders; `benchmarks/memory.py` measures it.
    """
    learner = config.learner
    width = BYTES[learner.dtype]
    kv = size.kv_elements / size.layers  # keys and values, so k twice
    layer = 8 * size.hidden + 7 * size.attention + 2 * kv + 4 * size.intermediate
    kept = layer * size.layers if not learner.gradient_checkpointing else layer + size.hidden * size.layers
    return float(learner.micro_batch_tokens * kept * width)


def engine_memory(
    config: RLConfig, policy: ModelSize, gpu_bytes: float | None, beside: float = 0.0
) -> dict[str, float]:
    """Bytes of one engine (of one of its GPUs, under tensor parallelism).

    vLLM fills with KV cache what it was granted, however little the samples need; less than one sample's it refuses.

    Args:
        config: the run's config.
        policy: the model's size.
        gpu_bytes: of a GPU's memory; None: it is in a host's.
        beside: bytes that others keep on the GPU while the engine generates.
    """
    rollout = config.rollout
    width = BYTES[config.wire_dtype]
    split = rollout.tensor_parallel
    parameters = policy.parameters * width / split
    sample = config.max_sequence * policy.kv_elements * width / split
    if rollout.engine != "vllm":
        return {"parameters": parameters, "KV cache": sample * min(rollout.max_concurrent, config.batch_samples)}
    if gpu_bytes is None:
        return {"parameters": CPU_ENGINE_COPIES * parameters, "KV cache": int(rollout.kv_cache_gib * GIB) / split}
    return {
        "parameters": parameters,
        "KV cache": max(sample, engine_share(config, gpu_bytes, beside) * gpu_bytes - parameters),
    }


def scorer_memory(config: RLConfig, size: ModelSize, role: str, *, devices: int) -> dict[str, float]:
    """Bytes of one scoring worker on each of its devices, over which all weights but the embeddings are cut."""
    width = BYTES[config.learner.dtype]
    tokens = config.scoring.batch_tokens
    widest = 4 * (size.intermediate + size.hidden)
    whole = size.vocabulary * size.hidden if size.parameters else 0
    held = whole + (size.parameters - whole) / devices if devices > 1 else size.parameters
    found = {"parameters": float(held * width), "activations": float(tokens * widest * width)}
    if role in ("reference", "teacher"):
        found["logits"] = 3.0 * min(LOGITS_BYTES, 4 * tokens * size.vocabulary)
    return found


def store_memory(config: RLConfig, policy: ModelSize) -> dict[str, float]:
    """Bytes of shared memory that are held at once: weight versions, one of them on its way, and rows of experience.

    Versions that are deltas on an older one stay below that.
    """
    width = BYTES[config.wire_dtype]
    rows = config.experience.max_staleness * config.batch_rows + config.most_rows
    versions = KEPT_VERSIONS + 1
    kept = policy.parameters + versions * policy.adapted if config.learner.lora else versions * policy.parameters
    return {
        "weight versions": float(kept) * width,
        "experience": 12.0 * rows * config.max_sequence,
    }
