"""What only a card can show, in the order of a first hour on one; each part in a process of its own.

    attention   each kernel on packed documents, against each document alone in fp32, and its tokens per second
    engine      vLLM takes versions and is compared with transformers: eager, with CUDA graphs, after a sleep
    split       PPO iterations in bf16 whose actors lie side by side on the card
    colocated   the same with engine, learner and scorers on it in turn

MFU counts 6 floating-point operations per parameter and token for a training pass, 2 for a forward pass (Chowdhery et al.
2022, arXiv:2204.02311, appendix B, without attention), over the update's seconds and the card's dense bf16 peak.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from contract import arguments, publish

PEAK_BF16 = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "4090": 165e12}
"""Dense bf16 operations per second, from the vendor's data sheets."""
CARD_BYTES = 80e9
"""Memory of the card for which the configurations are checked where there is none."""
ITERATIONS = 5
KERNELS = ("varlen", "sdpa", "flash_attention_2")
LENGTHS = (1500, 700, 2300, 64, 900, 1800, 333)
"""Tokens of the packed documents."""
PROBE = 1024
"""Tokens on which engines are compared."""

Figures = dict[str, float]


def qwen2(*, quick: bool) -> Any:
    """The shape of Qwen2.5 1.5 B, or of four layers of Qwen2 0.5 B."""
    from transformers import Qwen2Config

    shape: dict[str, Any] = {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
    }
    small: dict[str, Any] = {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 4,
        "num_attention_heads": 14,
    }
    return Qwen2Config(
        **(small if quick else shape),
        num_key_value_heads=2,
        vocab_size=151_936,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )


def settings(root: Path, placement: str, *, quick: bool) -> dict[str, Any]:
    """One card for everybody: side by side the engine takes a third of its memory, in turn what the plan leaves it."""
    side_by_side = {"rollout": {"gpu_memory_fraction": 0.35}, "cluster": {"gpu_share": 0.2}}
    tree: dict[str, Any] = {
        "policy": str(root / "policy"),
        "reward": str(root / "reward"),
        "prompts": {"path": str(root / "prompts.jsonl"), "max_tokens": 256},
        "rl": {"iterations": 3 if quick else ITERATIONS, "prompts_per_iteration": 64 if quick else 256},
        "rollout": {"max_new_tokens": 128 if quick else 512},
        "learner": {
            "precision": "bf16",
            "zero_stage": 2,
            "critic": "value_head",
            "gradient_checkpointing": True,
            "micro_batch_tokens": 8192,
        },
        "scoring": {"batch_tokens": 8192},
        "cluster": {"placement": placement},
        "weights": {"probe_every": 1},
    }
    for section, own in side_by_side.items() if placement == "disaggregated" else ():
        tree[section] |= own
    return tree


def check_configuration(tree: dict[str, Any], shape: Any) -> Figures:
    """What can be known without a card: the settings fit each other; gibibytes that the actors are estimated to need."""
    from rlhf_dist.cluster.placement import lay_out
    from rlhf_dist.config import RLConfig
    from rlhf_dist.planning.memory import memory
    from rlhf_dist.planning.sizes import model_size

    checked = RLConfig.model_validate(tree)
    sizes = {role: model_size(shape, kind="policy") for role in ("policy", "reference")}
    sizes |= {role: model_size(shape, kind="value") for role in ("reward", "critic")}
    assert lay_out(checked, gpus=True).totals()[1] <= 1.0, "the actors ask for more than one card"
    roles = ("learner", "rollout", "reward", "reference")
    return {
        f"estimated_gib_{role}": sum(memory(role, checked, sizes, gpu_bytes=CARD_BYTES).values()) / 2**30
        for role in roles
    }


def attention(root: Path, *, quick: bool) -> Figures:
    """Mean differences in nats, and tokens per second of a forward and backward pass, of each kernel that is here."""
    import numpy as np
    import torch

    from rlhf_dist.models import PolicyModel, load_policy, pack

    draws = np.random.default_rng(0)
    texts = [draws.integers(2, 1000, size=length // (8 if quick else 1)).astype(np.int32) for length in LENGTHS]
    chosen = [range(len(text) - 1) for text in texts]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    exact = PolicyModel(load_policy(str(root / "policy"), dtype=torch.float32, attention="sdpa").to(device))
    with torch.no_grad():
        alone = [exact(pack([text], [own], [[0]]).to(device))[0].cpu() for text, own in zip(texts, chosen, strict=True)]
    del exact
    wanted, packed = torch.cat(alone), pack(texts, chosen, [[*range(len(texts))]]).to(device)
    figures = {}
    for kernel in KERNELS:
        policy = load_policy(str(root / "policy"), dtype=torch.bfloat16, attention=kernel).to(device)
        if policy.config._attn_implementation != kernel:
            continue
        model = PolicyModel(policy).train()
        said, seconds = None, []
        for _ in range(4):
            began = time.perf_counter()
            said = model(packed)[0]
            said.sum().backward()
            model.zero_grad()
            _settled()
            seconds.append(time.perf_counter() - began)
        assert said is not None
        figures[f"{kernel}_nats_apart"] = float((said.detach().cpu() - wanted).abs().mean())
        figures[f"{kernel}_tokens_per_second"] = sum(map(len, texts)) / statistics.median(seconds[1:])
        del policy, model, said
    return figures


def engine(root: Path, *, quick: bool) -> Figures:
    """Mean differences to transformers, in nats, of an engine that took weights from a store's tables."""
    import numpy as np
    import torch

    from rlhf_dist.models import load_policy
    from rlhf_dist.records import Sampling
    from rlhf_dist.rollout.vllm_engine import VLLMEngine
    from rlhf_dist.store.weights import encode_bucket

    device = "cuda" if torch.cuda.is_available() else "cpu"
    policy = load_policy(str(root / "policy"), dtype=torch.bfloat16, attention="sdpa")
    weights = [encode_bucket([each]) for each in policy.named_parameters()]
    names = [name for table in weights for name in table.column("name").to_pylist()]
    tokens = np.random.default_rng(0).integers(2, 1000, PROBE // (8 if quick else 1))
    ids = torch.from_numpy(tokens).to(device)
    with torch.no_grad():
        logits = policy.to(device).eval()(input_ids=ids[None]).logits[0, :-1].float()
        wanted = torch.log_softmax(logits, -1).gather(-1, ids[1:, None])[:, 0].cpu().numpy()
    del policy, logits
    options: dict[str, Any] = {"gpu_memory_utilization": 0.5, "enable_sleep_mode": True} if device == "cuda" else {}
    figures = {}
    for eager in (True, False)[: 1 + (device == "cuda")]:
        made = VLLMEngine(
            str(root / "policy"),
            Sampling(max_new_tokens=16, temperature=1.0, top_p=1.0, top_k=0, stop=(), eos_token_ids=(1,)),
            dtype="bfloat16",
            max_sequence=2 * PROBE,
            max_concurrent=64,
            engine_options={**options, "enforce_eager": eager},
        )
        name = "eager" if eager else "graphs"
        for version, state in enumerate((name, f"{name}_after_sleep")):
            made.wake()
            began = time.perf_counter()
            made.load_weights(weights, names, version=version)
            figures[f"{state}_pull_s"] = time.perf_counter() - began
            figures[f"{state}_nats_apart"] = float(np.abs(np.asarray(made.probe(tokens.tolist())) - wanted).mean())
            made.sleep()
        made.close()
    return figures


def iterations(root: Path, *, quick: bool, placement: str) -> Figures:
    """Medians over PPO iterations; their phases' seconds too."""
    import torch
    from system import run_system

    found: list[Figures] = []
    tree = settings(root, placement, quick=quick)
    parameters, peak = run_system(tree, root / placement, lambda _, metrics, __: found.append(dict(metrics)))
    median = {key: statistics.median(row[key] for row in found[1:]) for key in found[1]}
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    peak_flops = next((value for key, value in PEAK_BF16.items() if key in card), float("nan"))
    # The policy, with its value head, is trained once (6 operations) and read once before (2).
    flops = (6 + 2) * parameters * median["perf/total_num_tokens"]
    sync = median["timing_s/update_weights"] + median["timing_s/pull_weights"]
    return {
        "tokens_per_second": median["perf/throughput"],
        "learner_mfu": flops / median["timing_s/update"] / peak_flops,
        "weight_sync_s": sync,
        "weight_sync_gb_per_s": median["weights/bytes"] / 1e9 / sync,
        "learner_peak_gib": peak / 2**30,
        "probe_nats_apart": median["weights/probe_diff"],
        **{key.replace("timing_s/", "seconds_"): value for key, value in median.items() if "timing_s/" in key},
    }


def split(root: Path, *, quick: bool) -> Figures:
    """Actors side by side."""
    return iterations(root, quick=quick, placement="disaggregated")


def colocated(root: Path, *, quick: bool) -> Figures:
    """Actors in turn."""
    return iterations(root, quick=quick, placement="colocated")


PARTS: tuple[Callable[..., Figures], ...] = (attention, engine, split, colocated)


def _settled() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _in_its_own_process(part: Callable[..., Figures], root: Path, *, quick: bool) -> Figures | str:
    """A part's figures, or what it died of: the others go on."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        try:
            return process.submit(part, root, quick=quick).result()
        except Exception as error:  # noqa: BLE001 - whatever a card brings up is a row of the table
            return f"{type(error).__name__}: {error}"


def write_inputs(root: Path, shape: Any) -> None:
    """Models and prompts of all parts."""
    import torch
    from random_models import write, write_prompts

    write(root, shape, dtype=torch.bfloat16)
    write_prompts(root / "prompts.jsonl", count=1024, tokens=256, vocabulary=shape.vocab_size)


def main() -> None:
    """Run on a card, or check the configurations without one."""
    options = arguments(__doc__ or "")
    import torch

    shape = qwen2(quick=options.quick)
    trees = [settings(Path("x"), placement, quick=options.quick) for placement in ("disaggregated", "colocated")]
    estimate, _ = (check_configuration(tree, shape) for tree in trees)
    if not torch.cuda.is_available():
        print("No CUDA card here: the configurations were checked, nothing was run.")
        publish("gpu", {"cards": 0.0, **estimate}, [], options.json)
        return
    figures: Figures = {"cards": float(torch.cuda.device_count()), **estimate}
    rows, failed = [], 0
    with tempfile.TemporaryDirectory() as name:
        write_inputs(Path(name), shape)
        for part in PARTS:
            found = _in_its_own_process(part, Path(name), quick=options.quick)
            failed += isinstance(found, str)
            told = {"failed": found} if isinstance(found, str) else found
            rows += [{"part": part.__name__, "what": key, "found": value} for key, value in told.items()]
            figures |= {f"{part.__name__}_{key}": value for key, value in told.items() if isinstance(value, float)}
    publish(f"gpu ({torch.cuda.get_device_name()})", {"failed": float(failed), **figures}, rows, options.json)
    raise SystemExit(failed > 0)


if __name__ == "__main__":
    main()
