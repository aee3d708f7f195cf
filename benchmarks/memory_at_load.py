"""Memory of learner ranks that load, begin to train and save a model of 1 to 2 GB, and what saving takes from training.

Two gloo ranks on this machine, a random Llama in bf16 files, each ZeRO stage. `before`: every rank reads the whole model in
fp32, as versions before did. `weights` is the peak until the rank has its part of the model, `load` that until it can train: with
masters, gradients in fp32 and the pass by which a model proves itself. What counts is a rank's own memory (RssAnon, sampled every
few milliseconds): pages of files, which all processes of a node share and which the system takes back at will, are a column of
their own. A plain Python with torch and DeepSpeed is taken off. glibc keeps freed blocks of up to 32 MiB, gathered weights among
them: here blocks of a megabyte go back at once.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

os.environ.update(
    OMP_NUM_THREADS="1",
    MALLOC_MMAP_THRESHOLD_="1000000",
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_VERBOSITY="error",
    PYTHONWARNINGS="ignore",
)

import torch
from contract import arguments, publish

MIB = 2**20
RANKS = 2
CASES = [(0, "fp32", "now"), (2, "bf16", "before"), (2, "bf16", "now"), (3, "bf16", "before"), (3, "bf16", "now")]
SHAPE: dict[str, Any] = {"num_attention_heads": 16, "num_key_value_heads": 8, "max_position_embeddings": 512}
FULL: dict[str, Any] = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 8, "vocab_size": 32_000}
QUICK: dict[str, Any] = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4, "vocab_size": 8_000}
PAUSE_S = 0.004


class Case(NamedTuple):
    """What ranks load and measure."""

    model: str
    out: Path
    stage: int
    precision: str
    when: str
    ranks: int
    port: int


def main() -> None:
    args = arguments(__doc__.splitlines()[0])
    with tempfile.TemporaryDirectory() as root:
        rows = []
        size = write(Path(root) / "model", QUICK if args.quick else FULL)
        for stage, precision, when in CASES:
            told = worst(run_ranks(Path(root) / "model", Path(root) / f"{stage}-{when}", stage, precision, when))
            rows.append({"ZeRO": stage, "precision": precision, "when": when, "model MiB": size, **told})
            print(rows[-1], flush=True)
        figures = {f"zero_{row['ZeRO']}_{row['when']}_load": row["load MiB"] / size for row in rows}
        figures |= {f"zero_{row['ZeRO']}_{row['when']}_weights": row["weights MiB"] / size for row in rows}
        saved = Path(root) / "model"
        told = worst(run_ranks(saved, Path(root) / "out", 3, "bf16", "saves"))
        rows.append({"ZeRO": 3, "precision": "bf16", "when": "saves", "model MiB": size, **told})
        resumed = run_ranks(saved, Path(root) / "out", 3, "bf16", "resumed", ranks=1)[0]
    figures |= {
        "blocked_s_async": told["save blocks s"],
        "blocked_s_sync": told["save blocks s"] + told["written s"],
        "step_beside_writing": told["step beside s"] / told["step s"],
        "save_over_step_mib": told["save MiB"] - told["first step MiB"],
        "resumed_on_one_rank_differs": resumed["differs"],
    }
    columns = {key: "" for row in rows for key in row}
    rows = [columns | row for row in rows]
    publish("memory_at_load", figures, rows, args.json)


def write(folder: Path, shape: dict[str, Any]) -> float:
    """A random Llama in bf16, in several files; returns their MiB."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    made = LlamaForCausalLM._from_config(LlamaConfig(**SHAPE, **shape), dtype=torch.bfloat16)
    made.save_pretrained(folder, max_shard_size="500MB")
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) / MIB


def worst(told: list[dict[str, float]]) -> dict[str, Any]:
    """Of all ranks."""
    return {key: max(each[key] for each in told) for key in told[0]}


def run_ranks(model: Path, out: Path, stage: int, precision: str, when: str, *, ranks: int = RANKS) -> list[Any]:
    """What each rank measured."""
    import torch.multiprocessing as multiprocessing

    out.mkdir(exist_ok=True)
    port = 20_000 + (os.getpid() * 7 + len(when) + 10 * stage) % 9_000
    spawn: Any = getattr(multiprocessing, "spawn")  # noqa: B009 - untyped
    spawn(work, args=(Case(str(model), out, stage, precision, when, ranks, port),), nprocs=ranks)
    return [json.loads((out / f"{when}-{rank}.json").read_text()) for rank in range(ranks)]


def work(rank: int, case: Case) -> None:
    (case.out / f"{case.when}-{rank}.json").write_text(json.dumps(measured(rank, case)))
    os._exit(0)  # not in the order in which DeepSpeed would take its process group down


def measured(rank: int, case: Case) -> dict[str, float]:
    model, out, stage, precision, when, ranks, port = case
    join(rank, ranks, port)
    from rlhf_dist.config import Learner, Optimizer
    from rlhf_dist.learner.model_spec import ModelSpec
    from rlhf_dist.learner.trained_model import TrainedModel

    settings = Learner(ranks=ranks, zero_stage=stage, precision=precision)
    read_as = Learner() if when == "before" else settings
    optimizer = Optimizer(lr=1e-4, warmup=0.0)
    told: dict[str, float] = {}
    with peak("load", told) as most:
        told_before_states(most, told)
        module = ModelSpec(model, "policy", optimizer, 10).build(read_as)
        trained = TrainedModel(module, optimizer, settings, total_steps=10)
    if when == "resumed":
        return {"differs": resumed(trained, out)}
    if when != "saves":
        return told
    with peak("first step", told):
        step(trained, rank)
    began = time.perf_counter()
    step(trained, rank)
    told["step s"] = time.perf_counter() - began
    save(trained, out, rank, told)
    return told


def save(trained: Any, out: Path, rank: int, told: dict[str, float]) -> None:
    """Copy and write model and state, and take a step meanwhile."""
    from rlhf_dist.learner.published import published
    from rlhf_dist.learner.saving import ModelFiles
    from rlhf_dist.learner.writing import Writer

    writer = Writer()
    with peak("save", told):
        began = time.perf_counter()
        files = ModelFiles(trained.hugging_face, published(trained), torch.bfloat16)
        files.write(out / "model", writer, rank=rank, ranks=RANKS)
        trained.save_state(out / "state" / f"rank-{rank}", share=(rank, RANKS), write=writer.write)
        told["save blocks s"] = time.perf_counter() - began
        began = time.perf_counter()
        writer.written(out)
        told["written s"] = time.perf_counter() - began
    again = out / "again"
    trained.save_state(again / f"rank-{rank}", share=(rank, RANKS), write=writer.write)
    began = time.perf_counter()
    step(trained, rank)
    told["step beside s"] = time.perf_counter() - began
    writer.written(again)


def resumed(trained: Any, out: Path) -> float:
    """Weights, of those that two ranks have saved, that differ on one rank which has their state."""
    from safetensors import safe_open

    trained.load_state(out / "state")
    saved: dict[str, torch.Tensor] = {}
    for file in sorted((out / "model").glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            saved |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no mapping
    names = [name for name, _ in trained.shapes()]
    with trained.gathered(names):
        return float(sum(not torch.equal(each.bfloat16(), saved[name]) for name, each in trained.tensors(names)))


def step(trained: Any, rank: int) -> None:
    import numpy as np

    from rlhf_dist.models import pack

    tokens = np.random.default_rng(rank).integers(3, 8_000, size=32).astype(np.int32)
    log_probs = trained(pack([tokens], [range(31)], [[0]]))[0]
    trained.backward(-log_probs.sum() / 31)
    trained.step()


def join(rank: int, ranks: int, port: int) -> None:
    """Meet the other ranks, as learner ranks do."""
    sys.modules["mlflow"] = None  # type: ignore[assignment]
    os.environ.update(RANK=str(rank), LOCAL_RANK="0", WORLD_SIZE=str(ranks), LOCAL_SIZE="1", DS_ACCELERATOR="cpu")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    from rlhf_dist.imports import import_deepspeed, import_transformers

    import_transformers()
    import_deepspeed()
    import deepspeed
    from transformers import AutoModelForCausalLM  # noqa: F401 - before anything is measured

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)


def told_before_states(most: list[float], told: dict[str, float]) -> None:
    """Note the peak as it is when DeepSpeed is asked for masters, gradients and an optimiser."""
    import deepspeed

    initialize = deepspeed.initialize

    def noting(*args: Any, **options: Any) -> Any:
        told.setdefault("weights MiB", most[0] - told["base MiB"])
        return initialize(*args, **options)

    deepspeed.initialize = noting


@contextmanager
def peak(name: str, told: dict[str, float]) -> Iterator[list[float]]:
    """Own memory at most inside the block, over what there was before anything was loaded; and pages of files."""
    told.setdefault("base MiB", resident()[0])
    most, over = [0.0, 0.0], threading.Event()

    def watch() -> None:
        while not over.is_set():
            most[:] = [max(pair) for pair in zip(most, resident(), strict=True)]
            time.sleep(PAUSE_S)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()
        told[f"{name} MiB"] = most[0] - told["base MiB"]
        told[f"{name} file MiB"] = most[1]


def resident() -> tuple[float, float]:
    """This process's own memory, and pages of files that it has mapped, in MiB."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(lines["RssAnon"].split()[0]) / 1024, int(lines["RssFile"].split()[0]) / 1024


if __name__ == "__main__":
    main()
