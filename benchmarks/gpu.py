"""PPO iterations of a random 0.5 B Qwen2-shaped policy on one CUDA card, all actors sharing it, in bf16.

MFU counts 6 floating-point operations per parameter and token for a training pass, 2 for a forward pass (Chowdhery et al.
2022, arXiv:2204.02311, appendix B, without attention), over the update's seconds and the card's dense bf16 peak.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

from contract import arguments, publish

PEAK_BF16 = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "4090": 165e12}
"""Dense bf16 operations per second, from the vendor's data sheets."""
CARD_BYTES = 80e9
"""Memory of the card for which the configuration is checked where there is none."""
ITERATIONS = 5


def qwen2(*, quick: bool) -> Any:
    """The shape of Qwen2 0.5 B."""
    from transformers import Qwen2Config

    return Qwen2Config(
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=4 if quick else 24,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=151_936,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )


def settings(policy: Path, reward: Path, prompts: Path, *, quick: bool) -> dict[str, Any]:
    """Everything on one card: the engine takes a third of its memory, Ray hands out shares."""
    return {
        "policy": str(policy),
        "reward": str(reward),
        "prompts": {"path": str(prompts), "max_tokens": 256},
        "rl": {"iterations": 3 if quick else ITERATIONS, "prompts_per_iteration": 64 if quick else 256},
        "rollout": {"max_new_tokens": 128 if quick else 512, "gpu_memory_fraction": 0.35, "compile": not quick},
        "learner": {"precision": "bf16", "zero_stage": 2, "micro_batch_tokens": 16_384, "row_tokens": 768},
        "scoring": {"batch_tokens": 16_384},
        "cluster": {"gpu_share": 0.2, "object_store_mib": 8192},
        "weights": {"probe_every": 2},
    }


def check_configuration(tree: dict[str, Any], config: Any) -> dict[str, float]:
    """What can be known without a card: the settings fit each other; gibibytes that the actors are estimated to need."""
    from rlhf_dist.cluster.placement import lay_out
    from rlhf_dist.config import RLConfig
    from rlhf_dist.planning.memory import memory
    from rlhf_dist.planning.sizes import model_size

    checked = RLConfig.model_validate(tree)
    sizes = {role: model_size(config, kind="policy") for role in ("policy", "reference")}
    sizes |= {role: model_size(config, kind="value") for role in ("reward", "critic")}
    assert lay_out(checked, gpus=True).totals()[1] <= 1.0, "the actors ask for more than one card"
    roles = ("learner", "rollout", "reward", "reference")
    return {
        f"estimated_gib_{role}": sum(memory(role, checked, sizes, gpu_bytes=CARD_BYTES).values()) / 2**30
        for role in roles
    }


def run(tree: dict[str, Any], root: Path) -> tuple[list[dict[str, float]], int, int]:
    """Metrics of each iteration, the policy's parameters, and the learner's peak memory in bytes."""
    from system import run_system

    found: list[dict[str, float]] = []
    parameters, peak = run_system(tree, root / "run", lambda _, metrics, __: found.append(dict(metrics)))
    return found[1:], parameters, peak


def main() -> None:
    """Run on a card, or check the configuration without one."""
    options = arguments(__doc__ or "")
    import torch
    from random_models import write, write_prompts

    config = qwen2(quick=options.quick)
    estimate = check_configuration(settings(Path("p"), Path("r"), Path("x.jsonl"), quick=options.quick), config)
    if not torch.cuda.is_available():
        print("No CUDA card here: the configuration was checked, nothing was run.")
        publish("gpu", {"cards": 0.0, **estimate}, [], options.json)
        return
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        policy, reward = write(root, config, dtype=torch.bfloat16)
        prompts = write_prompts(root / "prompts.jsonl", count=1024, tokens=256, vocabulary=config.vocab_size)
        found, parameters, peak = run(settings(policy, reward, prompts, quick=options.quick), root)
    median = {key: statistics.median(row[key] for row in found) for key in found[0]}
    card = torch.cuda.get_device_name()
    peak_flops = next((value for key, value in PEAK_BF16.items() if key in card), float("nan"))
    # Policy and critic are each trained once (6) and the critic is read once before (2), all on the same tokens.
    flops = (6 + 6 + 2) * parameters * median["perf/total_num_tokens"]
    sync = median["timing_s/update_weights"] + median["timing_s/pull_weights"]
    figures = {
        "cards": float(torch.cuda.device_count()),
        "tokens_per_second": median["perf/throughput"],
        "learner_mfu": flops / median["timing_s/update"] / peak_flops,
        "weight_sync_s": sync,
        "weight_sync_gb_per_s": median["weights/bytes"] / 1e9 / sync,
        "learner_peak_gib": peak / 2**30,
        **estimate,
    }
    rows = [{"phase": key.removeprefix("timing_s/"), "seconds": v} for key, v in median.items() if "timing_s/" in key]
    publish(f"gpu ({card})", figures, rows, options.json)


if __name__ == "__main__":
    main()
