"""The plan's memory, phase by phase, against measured peaks of the real processes of every stage, at two sizes of model.

Each of Ray's processes, and the stage's own (driver), is looked at every 20 ms: resident memory without what it shares through
the object store, whose filling is asked of Ray every 200 ms. The plan's figure is that of its fullest phase, interpreter and
libraries included (`planning.processes`). Each stage has a process of its own. glibc is told to give back what is freed
(`MALLOC_MMAP_THRESHOLD_`), as the plan counts what is needed; by default it holds on to freed blocks below 32 MiB, up to a third
of the activations more. vLLM's cache is as large as the samples need, since pages that nothing was written to are not resident.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from contract import arguments, publish

SHAPES = {"19M": (384, 1024, 8, 3), "110M": (768, 2048, 14, 6)}
VOCABULARY = 8192
TOKENS, SAMPLES = 128, 16
ROLES = {"LearnerRank": "learner", "RolloutWorker": "rollout", "Store": "store", "Generator": "generator"}
"""Of actors by their class, which Ray gives their processes as a name; of scorers their log files say who is who."""


class Sampler(threading.Thread):
    """Peak resident memory of each of Ray's processes, without shared memory, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peaks: dict[int, int] = {}
        self.stored = 0
        """Most bytes of the object store that were taken."""
        self._names: dict[int, str] = {}
        self._over = threading.Event()

    def run(self) -> None:
        looks = 0
        while not self._over.wait(0.02):
            looks += 1
            if looks % 10 == 0:
                self.stored = max(self.stored, stored_bytes())
            self._note(os.getpid(), Path("/proc/self/status").read_text())
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    name = (process / "cmdline").read_bytes().decode(errors="replace")
                    if name.startswith("ray::") and is_ours(int(process.name)):
                        pid = int(process.name)
                        self._names[pid] = re.split(r"[.(\0 ]", name.removeprefix("ray::"))[0]
                        self._note(pid, (process / "status").read_text())
                except OSError:
                    continue

    def stop(self, run_dir: Path) -> dict[str, int]:
        """Peaks by role, of the fullest worker of each."""
        self._over.set()
        self.join()
        found = {"driver": self.peaks[os.getpid()]}
        for pid, name in self._names.items():
            if role := ROLES.get(name):
                found[role] = max(found.get(role, 0), self.peaks[pid])
        for role in ("reward", "reference"):
            for log in (run_dir / "logs").glob(f"{role}*.jsonl"):
                for line in log.read_text().splitlines()[-1:]:
                    found[role] = max(found.get(role, 0), self.peaks.get(json.loads(line)["pid"], 0))
        return found | ({"object store": self.stored} if "store" in found else {})

    def _note(self, pid: int, status: str) -> None:
        # Weights that were read but not yet written to are still pages of their file.
        own = sum(int(status.partition(f"{kind}:")[2].split()[0]) * 1024 for kind in ("RssAnon", "RssFile"))
        self.peaks[pid] = max(self.peaks.get(pid, 0), own)


def stored_bytes() -> int:
    """Bytes of the object store that are taken; 0 while there is no Ray."""
    import grpc  # type: ignore[import-untyped]
    import ray
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    if not ray.is_initialized():
        return 0
    try:
        state = get_state_from_address(ray.get_runtime_context().gcs_address)
        return int(get_memory_info_reply(state, timeout_seconds=5).store_stats.object_store_bytes_used)
    except (AttributeError, AssertionError, OSError, ray.exceptions.RayError, grpc.RpcError):  # Ray is ending
        return 0


def is_ours(pid: int) -> bool:
    """Whether this process has started it, if by way of others: another cluster may be on the machine."""
    while pid > 1 and pid != os.getpid():
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return pid == os.getpid()


def data_of(root: Path) -> dict[str, Path]:
    """Prompts, demonstrations and comparisons of random words, as long as a row."""
    import numpy as np

    draws = np.random.default_rng(0)

    def words(count: int) -> str:
        return " ".join(f"t{token}" for token in draws.integers(2, VOCABULARY, size=count))

    kinds: dict[str, Callable[[], dict[str, Any]]] = {
        "prompts": lambda: {"prompt": words(32)},
        "demonstrations": lambda: {"prompt": words(32), "completion": words(TOKENS - 33)},
        "comparisons": lambda: {"prompt": words(32), "chosen": words(TOKENS - 33), "rejected": words(TOKENS - 33)},
    }
    files = {name: root / f"{name}.jsonl" for name in kinds}
    for name, row in kinds.items():
        files[name].write_text("".join(json.dumps(row()) + "\n" for _ in range(64)))
    return files


def stages(root: Path, models: tuple[Path, Path], kv_elements: int) -> dict[str, dict[str, Any]]:
    """Settings by stage."""
    policy, reward = map(str, models)
    files = data_of(root)
    shared = {
        "learner": {"zero_stage": 2, "micro_batch_tokens": 1024, "row_tokens": TOKENS, "attention": "varlen"},
    }
    trained = {"model": policy, "batch_size": SAMPLES, **shared}
    comparisons = [{"path": str(files["comparisons"])}]
    return {
        "sft": {**trained, "data": {"path": str(files["demonstrations"])}},
        "reward": {**trained, "data": comparisons},
        "dpo": {**trained, "data": comparisons},
        "rl": {
            **shared,
            "policy": policy,
            "reward": reward,
            "prompts": {"path": str(files["prompts"]), "max_tokens": 32},
            "rl": {"iterations": 2, "prompts_per_iteration": SAMPLES},
            "rollout": {
                "max_new_tokens": TOKENS - 32,
                "max_concurrent": SAMPLES,
                "kv_cache_gib": 1.1 * SAMPLES * TOKENS * kv_elements * 4 / 2**30,
            },
            "scoring": {"batch_tokens": 1024},
        },
        "evaluate": {
            "policies": {"own": policy},
            "reward": reward,
            "prompts": {"path": str(files["prompts"]), "max_tokens": 32},
            "rollout": {"max_new_tokens": TOKENS - 32, "max_concurrent": SAMPLES},
            "scoring": {"batch_tokens": 1024},
        },
    }


def models_of(root: Path, shape: tuple[int, int, int, int]) -> tuple[Path, Path]:
    """Random weights in a Llama's shape."""
    from random_models import write
    from transformers import LlamaConfig

    hidden, intermediate, layers, heads = shape
    llama = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=2 * heads,
        num_key_value_heads=heads,
        head_dim=hidden // heads // 2,
        vocab_size=VOCABULARY,
        max_position_embeddings=256,
    )
    return write(root, llama)


def measure(name: str, tree: dict[str, Any], run_dir: Path) -> list[dict[str, Any]]:
    """Measured peaks of a stage by role, and what the plan says: its fullest phase, and bytes."""
    from importlib import import_module

    from rlhf_dist.plan_cli import KINDS, PlannedStage
    from rlhf_dist.planning.plan import make_plans, this_machine
    from rlhf_dist.planning.processes import HOST_BYTES
    from rlhf_dist.planning.roles import sizes_of
    from rlhf_dist.run_folder.console import Console
    from rlhf_dist.run_folder.folder import RunFolder
    from rlhf_dist.run_folder.rl_folder import RLFolder

    config = KINDS[PlannedStage(name)].model_validate({**tree, "run_dir": str(run_dir)})
    stage: Any = import_module(f"rlhf_dist.stages.{name}")
    sampler = Sampler()
    sampler.start()
    with Console() as console:
        kind: Any = RLFolder if name == "rl" else RunFolder
        prepared = stage.prepare(config)
        run_dir.mkdir()
        stage.run(
            config,
            prepared,
            kind(run_dir, config, console=console, stage=name)
            if name != "rl"
            else kind(run_dir, config, console=console),
        )
    peaks = sampler.stop(run_dir)
    sizes = sizes_of(config)
    planned: dict[str, tuple[str, float]] = {"driver": ("", HOST_BYTES["driver"])}
    for plan in make_plans(config, this_machine(config, sizes), sizes):
        for role, phases in plan.scene.memory.items():
            fullest = max(phases, key=lambda phase: plan.of_actor(role, phase))
            if plan.of_actor(role, fullest) > planned.get(role, ("", 0.0))[1]:
                planned[role] = fullest, plan.of_actor(role, fullest)
    if "store" in planned:
        whole = planned["store"][1]
        planned["store"] = "", HOST_BYTES["store"]
        planned["object store"] = "", whole - HOST_BYTES["store"]
    return [
        {
            "stage": name,
            "actor": role,
            "fullest": planned[role][0],
            "measured MiB": measured / 2**20,
            "planned MiB": planned[role][1] / 2**20,
            "planned_over_measured": planned[role][1] / measured,
        }
        for role, measured in peaks.items()
    ]


def main() -> None:
    """Every stage, small and larger."""
    options = arguments(__doc__ or "")
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(64 * 1024)
    rows: list[dict[str, Any]] = []
    for label, (hidden, intermediate, layers, heads) in list(SHAPES.items())[: 1 if options.quick else None]:
        with tempfile.TemporaryDirectory() as name:
            root = Path(name)
            models = models_of(root, (hidden, intermediate, layers, heads))
            for stage, tree in stages(root, models, kv_elements=layers * hidden).items():
                # One process each, so that the driver's memory is one stage's.
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                    found = pool.submit(measure, stage, tree, root / f"run-{stage}").result()
                rows += [{"model": label} | row for row in found]
                print(*rows[-len(found) :], sep="\n", flush=True)
    ratios = [row["planned_over_measured"] for row in rows]
    figures = {"least_planned_over_measured": min(ratios), "most_planned_over_measured": max(ratios)}
    publish("memory", figures, rows, options.json)


if __name__ == "__main__":
    began = time.perf_counter()
    main()
    print(f"{time.perf_counter() - began:.0f} s")
