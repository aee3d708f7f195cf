"""One PPO iteration of a 28 M parameter Llama through the whole system, against its bare parts in the same run.

The parts: vLLM alone in a process of its own, generating answers to the same prompts with the same engine options; and bare
torch in a process of its own, doing the same forward and backward passes on the same tokens, padded, with the same threads.

`sync_over_parts`: the iteration over the sum of its parts, where every answer has the full length. `natural_over_parts`:
generation and scoring over their parts, where answers end by themselves (mean 43 of at most 128 tokens) and so come one by one.
`busy_over_quiet`: the iteration beside one process that keeps a core busy, over the iteration before it.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from contract import arguments, publish

Metrics = dict[str, float]
THREADS = 2
QUIET, BUSY = 4, 2
"""Iterations alone (the first, which warms up, does not count), and then beside a busy process."""
REPEATS = 4
"""Of every bare part; the first does not count."""
MEAN_ANSWER = 43
"""Tokens of an answer of natural length."""
BATCHES = ("full.json", "natural.json")
"""The last batch of either run of the system."""


def config_of(root: Path, policy: Path, reward: Path, prompts: Path, size: dict[str, int]) -> dict[str, Any]:
    """The system's settings; the defaults elsewhere. How many iterations is filled in by who runs it."""
    longest = size["prompt"] + size["answer"]
    return {
        "policy": str(policy),
        "reward": str(reward),
        "prompts": {"path": str(prompts), "max_tokens": size["prompt"]},
        "run_dir": str(root / "run"),
        "rl": {"prompts_per_iteration": size["prompts"]},
        "rollout": {"max_new_tokens": size["answer"], "max_concurrent": size["prompts"], "threads": THREADS},
        "learner": {"zero_stage": 0, "micro_batch_tokens": 16 * longest, "threads": THREADS},
        "scoring": {"batch_tokens": 16 * longest},
        "weights": {"probe_every": 1000},
        "cluster": {"object_store_mib": 2048},
    }


def system(tree: dict[str, Any], tokens_file: Path, *, quiet: int, busy: int) -> tuple[Metrics, Metrics]:
    """Median metrics of the iterations alone, and of `busy` ones beside a busy process; a batch goes to `tokens_file`."""
    from system import run_system

    from rlhf_dist.store.row import rows_of

    found: list[Metrics] = []
    neighbour: list[subprocess.Popen[bytes]] = []

    def report(iteration: int, metrics: Any, batch: Any) -> None:
        found.append(dict(metrics))
        rows = rows_of(batch)
        columns = {"prompts": [row.prompt.tolist() for row in rows], "answers": [row.answer.tolist() for row in rows]}
        tokens_file.write_text(json.dumps({**columns, "ends": tree["ends"]}))
        if iteration == quiet - 1 and busy:
            neighbour.append(subprocess.Popen([sys.executable, "-c", "while True: pass"]))

    config = {name: value for name, value in tree.items() if name != "ends"}
    config["ppo"] = {**tree["rl"], "iterations": quiet + busy}
    (Path(tree["policy"]) / "generation_config.json").write_text(json.dumps({"eos_token_id": tree["ends"]}))
    try:
        run_system(config, Path(tree["run_dir"]), report)
    finally:
        for process in neighbour:
            process.kill()
    return median_of(found[1:quiet]), median_of(found[quiet:])


def median_of(rows: list[Metrics]) -> Metrics:
    """Of each metric."""
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]} if rows else {}


def expected(tree: dict[str, Any]) -> Metrics:
    """Seconds per phase by the model of `rlhf-dist plan`; random weights hardly ever end an answer early."""
    from rlhf_dist.config import RLConfig
    from rlhf_dist.planning.cost import CPU, phase_seconds
    from rlhf_dist.planning.roles import sizes_of

    config = RLConfig.model_validate(tree)
    return phase_seconds(config, sizes_of(config), CPU, rollout_workers=1, gpus=False, answer_share=1.0)


def bare_vllm(tree: dict[str, Any], batches: list[dict[str, Any]]) -> list[Metrics]:
    """Seconds in which vLLM alone answers the prompts of each batch."""
    from vllm import LLM

    rollout = tree["rollout"]
    llm = LLM(
        tree["policy"],
        dtype="float32",
        skip_tokenizer_init=True,
        enforce_eager=True,
        max_model_len=tree["prompts"]["max_tokens"] + rollout["max_new_tokens"],
        max_num_seqs=rollout["max_concurrent"],
        distributed_executor_backend="uni",
        logprobs_mode="processed_logprobs",
        kv_cache_memory_bytes=2**30,
        disable_log_stats=True,
    )
    return [generate_seconds(llm, rollout["max_new_tokens"], batch) for batch in batches]


def generate_seconds(llm: Any, longest: int, batch: dict[str, Any]) -> Metrics:
    """Median seconds of one engine for one batch."""
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": prompt} for prompt in batch["prompts"]]

    def params(seed: int) -> Any:
        return SamplingParams(
            max_tokens=longest,
            seed=seed,
            logprobs=0,
            detokenize=False,
            stop_token_ids=batch["ends"],
            ignore_eos=True,  # answers end where the batch says, not where the folder as the last run left it does
            flat_logprobs=True,
        )

    seconds = []
    for repeat in range(REPEATS):
        started = time.perf_counter()
        llm.generate(prompts, [params(1000 * repeat + i) for i in range(len(prompts))], use_tqdm=False)
        seconds.append(time.perf_counter() - started)
    return {"generate": statistics.median(seconds[1:])}


def bare_torch(tree: dict[str, Any], batches: list[dict[str, Any]]) -> list[Metrics]:
    """Seconds of the same passes in plain torch: reward, reference, values, policy and critic steps."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    torch.set_num_threads(THREADS)
    policy, reference = (AutoModelForCausalLM.from_pretrained(tree["policy"]) for _ in range(2))
    reward, critic = (AutoModelForSequenceClassification.from_pretrained(tree["reward"]) for _ in range(2))
    return [passes_seconds(policy, reference, reward, critic, batch) for batch in batches]


def passes_seconds(policy: Any, reference: Any, reward: Any, critic: Any, batch: dict[str, Any]) -> Metrics:
    """Median seconds of each kind of pass over one batch, in padded micro-batches of 16 rows of like length."""
    import torch
    import torch.nn.functional as F

    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True) for model in (policy, critic)]
    pairs = list(zip(batch["prompts"], batch["answers"], strict=True))

    def padded(part: list[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
        width = max(len(p) + len(r) for p, r in part)
        ids = [p + r + [0] * (width - len(p) - len(r)) for p, r in part]
        mask = [[0.0] * (len(p) - 1) + [1.0] * len(r) + [0.0] * (width - len(p) - len(r)) for p, r in part]
        return torch.tensor(ids), torch.tensor(mask)

    pairs.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
    batches = [padded(pairs[start : start + 16]) for start in range(0, len(pairs), 16)]

    def log_probs(model: Any, x: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=x, use_cache=False).logits[:, :-1]
        return -F.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten(), reduction="none").view(len(x), -1)

    def values(model: Any, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = model.score(model.model(input_ids=x, use_cache=False).last_hidden_state)[:, :-1, 0]
        return found

    def forward(model: Any, function: Any) -> None:
        with torch.no_grad():
            for x, _ in batches:
                function(model, x)

    def learn(model: Any, function: Any, optimizer: Any) -> None:
        for x, m in batches:
            (function(model, x) * m).sum().mul(1e-4).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    work: dict[str, Callable[[], None]] = {
        "reward": lambda: forward(reward, values),
        "reference": lambda: forward(reference, log_probs),
        "values": lambda: forward(critic, values),
        "policy step": lambda: learn(policy, log_probs, optimizers[0]),
        "critic step": lambda: learn(critic, values, optimizers[1]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(REPEATS):
        for name, call in work.items():
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(found[1:]) for name, found in seconds.items()}


def alone(part: str, folder: Path) -> list[Metrics]:
    """Run one part in a fresh process; what it found for the batch of full and of natural lengths."""
    env = {
        **os.environ,
        "OMP_NUM_THREADS": str(THREADS),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
    }
    command = [sys.executable, __file__, "--part", part, str(folder)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    found: list[Metrics] = json.loads(done.stdout.splitlines()[-1])
    return found


def seconds_of(metrics: Metrics) -> Metrics:
    """The phases among an iteration's metrics."""
    return {key.removeprefix("timing_s/"): value for key, value in metrics.items() if key.startswith("timing_s/")}


def main() -> None:
    """System, then parts, then the ratios."""
    options = arguments(__doc__ or "")
    from random_models import write, write_prompts
    from transformers import LlamaConfig

    shape: dict[str, Any] = {
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
    }
    size = {"prompts": 64, "prompt": 16, "answer": 128}
    quiet_iterations, busy_iterations = QUIET, BUSY
    if options.quick:
        shape["num_hidden_layers"], size = 2, {"prompts": 16, "prompt": 16, "answer": 32}
        quiet_iterations, busy_iterations = 2, 1
    llama = LlamaConfig(**shape, num_key_value_heads=4, vocab_size=4096, max_position_embeddings=256)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        policy, reward = write(root, llama)
        prompts = write_prompts(
            root / "prompts.jsonl", count=4 * size["prompts"], tokens=size["prompt"], vocabulary=4096
        )
        tree = config_of(root, policy, reward, prompts, size)
        (root / "tree.json").write_text(json.dumps(tree))
        full = {**tree, "ends": [1], "run_dir": str(root / "full")}
        quiet, busy = system(full, root / BATCHES[0], quiet=quiet_iterations, busy=busy_iterations)
        # Random weights say each of the 4,096 tokens about equally often.
        ends = list(range(1, 1 + 4096 // MEAN_ANSWER))
        short = {**tree, "ends": ends, "run_dir": str(root / "natural")}
        natural, _ = system(short, root / BATCHES[1], quiet=quiet_iterations, busy=0)
        pairs = zip(alone("bare_vllm", root), alone("bare_torch", root), strict=True)
        parts, natural_parts = ({**vllm, **torch} for vllm, torch in pairs)
        modelled = expected(tree)
    phases = seconds_of(quiet)
    looked = ("generate", "reward", "reference")
    rows = [{"where": "system", "phase": name, "seconds": value} for name, value in phases.items()]
    rows += [{"where": "bare parts", "phase": name, "seconds": value} for name, value in parts.items()]
    rows += [{"where": "beside a busy process", "phase": k, "seconds": v} for k, v in seconds_of(busy).items()]
    rows += [{"where": "natural lengths", "phase": k, "seconds": v} for k, v in seconds_of(natural).items()]
    rows += [{"where": "their bare parts", "phase": k, "seconds": natural_parts[k]} for k in looked]
    figures = {
        "step_s": phases["step"],
        "parts_s": sum(parts.values()),
        "sync_over_parts": phases["step"] / sum(parts.values()),
        "tokens_per_second": quiet["perf/throughput"],
        "busy_over_quiet": busy["timing_s/step"] / phases["step"],
        "natural_over_parts": (natural["timing_s/gen"] + natural["timing_s/score_wait"])
        / sum(natural_parts[k] for k in looked),
        "natural_answer_tokens": natural["response_length/mean"],
    }
    for phase, seconds in modelled.items():
        rows.append({"where": "cost model", "phase": phase, "seconds": seconds})
        if phase in ("gen", "update"):
            figures[f"expected_over_measured_{phase}"] = seconds / phases[phase]
    publish("iteration", figures, rows, options.json)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--part"]:
        folder = Path(sys.argv[3])
        batches = [json.loads((folder / name).read_text()) for name in BATCHES]
        given = json.loads((folder / "tree.json").read_text()), batches
        print(json.dumps({"bare_vllm": bare_vllm, "bare_torch": bare_torch}[sys.argv[2]](*given)))
    else:
        main()
