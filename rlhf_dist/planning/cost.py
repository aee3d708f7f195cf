"""How long each phase of an iteration will take: a roofline model, to find the bottleneck before anything is started.

A phase takes as long as its arithmetic or its memory traffic, whichever is slower (Williams et al. 2009, "Roofline"). A
forward pass costs 2 operations per parameter and token, a backward pass 4 (Kaplan et al. 2020, arXiv:2001.08361, section 2.1).
"""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_dist.config import RLJob
from rlhf_dist.planning.activations import BYTES
from rlhf_dist.planning.sizes import ModelSize
from rlhf_dist.planning.weight_seconds import Way, publish_and_pull, steps, way_of, wire_bytes

GENERATED_SHARE = 0.6
"""Mean answer length over max_new_tokens, where nothing is measured yet."""


@dataclass(frozen=True)
class Device:
    """What one GPU, or one CPU thread, can do."""

    name: str
    tflops: float
    """Dense, in the run's precision, as reached in practice by training."""
    bandwidth_gb: float
    """Memory bandwidth, GB/s."""
    network_gb: float
    """Bandwidth between nodes, GB/s."""
    step_s: float = 0.005
    """What one decoding step costs at least: scheduling, launching kernels, sampling."""


GPUS = {
    24: Device("24 GB card (A10, L4)", 60, 500, 3),
    40: Device("A100 40 GB", 140, 1400, 12),
    48: Device("48 GB card (L40S, A6000)", 140, 780, 6),
    80: Device("A100 or H100 80 GB", 300, 2600, 25),
    96: Device("H20 96 GB", 70, 3500, 25),
    141: Device("H200 141 GB", 400, 4200, 25),
    192: Device("B200 192 GB", 800, 7000, 50),
}
"""By memory in GB. About 40 % of the data sheets' arithmetic and 85 % of their bandwidth."""
CPU = Device("CPU thread", 0.08, 10, 1, 0.01)
"""fp32, small models; `benchmarks/iteration.py` prints how far off it is on a machine."""


def device_of(gpu_memory: float, *, gpus: bool) -> Device:
    """The known device whose memory is nearest."""
    return GPUS[min(GPUS, key=lambda known: abs(known - gpu_memory))] if gpus else CPU


def phase_seconds(
    config: RLJob,
    sizes: dict[str, ModelSize],
    device: Device,
    *,
    rollout_workers: int,
    gpus: bool,
    answer_share: float = GENERATED_SHARE,
    way: Way | None = None,
) -> dict[str, float]:
    """Expected seconds per iteration of each phase, under the names of the metrics `timing_s/*`.

    Args:
        config: the run's config.
        sizes: of `policy`, `reference`, `reward` and `critic`.
        device: what a GPU or CPU thread can do.
        rollout_workers: how many engines share the batch.
        gpus: whether the device is a GPU; else each actor has as many CPU threads as the config grants it.
        answer_share: mean answer length over max_new_tokens.
        way: of the weights; None: within one node.
    """
    samples = config.batch_samples
    prompt, answer = config.prompts.max_tokens / 2, config.rollout.max_new_tokens * answer_share
    tokens = samples * (prompt + answer)
    threads = {"rollout": config.rollout.threads, "scoring": config.scoring.threads, "learner": config.learner.threads}

    def rate(role: str) -> float:
        return device.tflops * 1e12 * (1 if gpus else threads[role])

    policy, learner = sizes["policy"], config.learner
    workers = config.scoring_workers
    processes = {role: number * config.devices_of_scorer(role) for role, number in workers.items()}
    scoring = max(2 * sizes[role].parameters / number for role, number in processes.items())
    # Forward and backward (and the forward again, with checkpointing) per epoch; before it, old log-probs and values once. An
    # iteration of a single optimiser step takes the rollout's own log-probs. Frozen weights have no gradients of their own, and a
    # policy that is its own reference is asked once more.
    training = (8 if learner.gradient_checkpointing else 6) - (2 if learner.lora else 0)
    training *= config.rl.epochs
    looking_back = (0 if config.ratio_is_one else 2) + (2 if config.is_own_reference else 0)
    asked = 2 * sum(sizes[role].parameters for role in config.frozen)
    critic = sizes["critic"].parameters if learner.critic == "model" else 0
    update = (training + looking_back) * policy.parameters + (training + 2) * critic + asked
    way = way or way_of(config, device.network_gb, gpus=gpus)
    publish, pull = publish_and_pull(steps(wire_bytes(config, policy), way, "object store"), gpus=gpus)
    return {
        "gen": _generation(config, policy, device, samples / rollout_workers, (prompt, answer), gpus=gpus),
        "score": scoring * tokens / rate("scoring"),
        "update": update * tokens / learner.ranks / rate("learner"),
        "update_weights": publish,
        "pull_weights": pull,
    }


def _generation(
    config: RLJob, policy: ModelSize, device: Device, samples: float, lengths: tuple[float, float], *, gpus: bool
) -> float:
    """Seconds that one engine needs for its samples: prefill, then one step per token of the longest wave."""
    prompt, answer = lengths
    rollout = config.rollout
    scale = rollout.tensor_parallel if gpus else rollout.threads
    flops, bandwidth = device.tflops * 1e12 * scale, device.bandwidth_gb * 1e9 * scale
    width = BYTES[config.wire_dtype]
    waves = max(1.0, samples / rollout.max_concurrent)
    running = samples / waves
    arithmetic = 2 * policy.parameters * running / flops
    traffic = (policy.parameters + running * (prompt + answer / 2) * policy.kv_elements) * width / bandwidth
    prefill = 2 * policy.parameters * samples * prompt / flops
    return prefill + waves * rollout.max_new_tokens * (max(arithmetic, traffic) + device.step_s)
