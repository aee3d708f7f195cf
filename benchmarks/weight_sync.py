"""Publishing and pulling weights through learner ranks, store and readers, against memcpy, a state dict and files, in one run.

memcpy is the least that bytes cost on this machine: one thread's `numpy.copyto` of a whole version, between two blocks of private
memory that were touched before, in the reader's process; a median of three beside each version. Ours has two such copies in it,
into shared memory and out of it, and two passes of hashing: `parts_over_memcpy` is these four, bare, by as many threads as the
process may run on. Medians leave out the first version; ways take turns within each.

Several readers begin together, and their time is that until the last one has the version: with fewer cores than readers they take
turns on them. So eight that each copy are measured against eight that do nothing but memcpy at once (`readers_8_over_memcpy_8`).
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from contract import arguments, publish
from safetensors.torch import load_file, save_file

from rlhf_dist.cluster import pulse
from rlhf_dist.cluster.session import session
from rlhf_dist.cluster.watch import Watch
from rlhf_dist.config import Cluster, Learner, Optimizer, Timeouts
from rlhf_dist.learner.group import LearnerGroup
from rlhf_dist.learner.model_spec import ModelSpec
from rlhf_dist.learner.rank import LearnerRank
from rlhf_dist.records import Sampling
from rlhf_dist.rollout.checked import check_once
from rlhf_dist.rollout.vllm_engine import ENVIRONMENT, VLLMEngine
from rlhf_dist.store.actor import Store
from rlhf_dist.store.checksums import checksums
from rlhf_dist.store.deltas import whole_tables
from rlhf_dist.store.experience import ExperienceIndex
from rlhf_dist.store.weights import cells_of, reading_threads

SHAPES = {"28M": (512, 1408, 8, 4096), "125M": (768, 2048, 12, 32_000), "350M": (1024, 2816, 24, 32_000)}
QUICK = {"28M": (256, 704, 4, 4096), "125M": (512, 1408, 8, 4096), "350M": (768, 2048, 8, 8192)}
BUCKET = 64 * 2**20
READERS = (1, 2, 4, 8)
LR = 1e-6


class Rank(LearnerRank):
    """A learner rank that can be told to hold another layout, to move its weights as a step would, and to send them otherwise."""

    def choose(self, settings: Learner) -> None:
        self.settings = settings

    def step_of(self, size: float) -> None:
        """Move every weight by as much as AdamW's first steps do."""
        generator = torch.Generator().manual_seed(0)
        for parameter in self.models["policy"].module.parameters():
            parameter.data.add_(torch.randn(parameter.shape, generator=generator).sign_(), alpha=size)

    def gather(self) -> float:
        """Seconds of gathering every bucket, as publication does, and nothing else."""
        planned = self._publication
        assert planned is not None
        started = time.perf_counter()
        for bucket in planned.buckets:
            with planned.weights.bucket([name for unit in bucket for name in unit.own], planned.dtype):
                pass
        return time.perf_counter() - started

    def put_state_dict(self) -> list[Any]:
        return [ray.put(dict(self._whole()))]

    def save_file(self, folder: str) -> None:
        save_file(dict(self._whole()), Path(folder) / "model.safetensors")

    def _whole(self) -> dict[str, torch.Tensor]:
        model = self.models["policy"]
        return {name: tensor.detach() for name, tensor in model.tensors([name for name, _ in model.shapes()])}


class Reader:
    """An engine's part: have every tensor, checked, in its own memory."""

    def __init__(self) -> None:
        torch.set_num_threads(2)
        self.own: dict[str, torch.Tensor] = {}

    def map(self, store: Any) -> None:
        """Have the newest version's bytes within reach, all of them checked."""
        (manifest,) = ray.get(store.newest_weights.remote(False))
        check_once(ray.get(list(manifest.buckets)), manifest.version)

    def pull(self, store: Any) -> None:
        (manifest,) = ray.get(store.newest_weights.remote(False))
        tables = whole_tables(manifest, lambda refs: ray.get(list(refs)))
        check_once(tables, manifest.version)
        self._take((cell.name, cell.tensor()) for table in tables for cell in cells_of(table))
        assert self.own.keys() == set(manifest.names)

    def read_state_dict(self, refs: list[Any]) -> None:
        self._take(ray.get(refs[0]).items())

    def load(self, folder: str) -> None:
        self._take(load_file(Path(folder) / "model.safetensors").items())

    def _take(self, tensors: Any) -> None:
        for name, tensor in tensors:
            if name not in self.own or self.own[name].dtype != tensor.dtype:
                self.own[name] = torch.empty_like(tensor)
            self.own[name].copy_(tensor)

    def memcpy(self, repeats: int) -> float:
        """Seconds of copying the same bytes within this process, destination warm; the median."""
        flat = torch.cat([tensor.view(-1) for tensor in self.own.values()]).view(torch.uint8).numpy()
        target = np.empty_like(flat)
        np.copyto(target, flat)
        seconds = []
        for _ in range(repeats):
            started = time.perf_counter()
            np.copyto(target, flat)
            seconds.append(time.perf_counter() - started)
        return statistics.median(seconds)

    def parts(self) -> float:
        """Seconds of what publication and pull must do, bare: hash, copy, hash, copy."""
        flat = torch.cat([tensor.view(-1) for tensor in self.own.values()]).view(torch.uint8).numpy()
        targets = [np.ones_like(flat) for _ in range(2)]
        with ThreadPoolExecutor(reading_threads()) as threads:
            started = time.perf_counter()
            for source, target in zip((flat, targets[0]), targets, strict=True):
                checksums([source], threads=threads)
                torch.from_numpy(target).copy_(torch.from_numpy(source))
            return time.perf_counter() - started


READER: Any = ray.remote(num_cpus=0)(Reader)


class Engine:
    """A real engine, as a rollout worker has it."""

    def __init__(self, model: str, processes: int) -> None:
        self.engine = VLLMEngine(
            model,
            Sampling(8, temperature=1.0, top_p=1.0, top_k=0, stop=(), eos_token_ids=(2,)),
            dtype="float32",
            max_sequence=64,
            max_concurrent=4,
            tensor_parallel=processes,
            engine_options={"enforce_eager": True, "kv_cache_memory_bytes": 2**28},
        )

    def pull(self, store: Any) -> None:
        (manifest,) = ray.get(store.newest_weights.remote(False))
        tables = whole_tables(manifest, lambda refs: ray.get(list(refs)))
        self.engine.load_weights(tables, manifest.names, version=manifest.version)

    def close(self) -> None:
        self.engine.close()


VARIABLES = {**ENVIRONMENT, "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
ENGINE: Any = ray.remote(num_cpus=0, runtime_env={"env_vars": VARIABLES})(Engine)


class Clock:
    """Seconds of each kind of call, the first of each left out of the medians."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def __call__(self, key: str, call: Callable[..., Any], *given: Any) -> Any:
        started = time.perf_counter()
        found = call(*given)
        self.seconds.setdefault(key, []).append(time.perf_counter() - started)
        return found

    def medians(self) -> dict[str, float]:
        return {key: statistics.median(values[1:]) for key, values in self.seconds.items()}


def write_model(shape: tuple[int, int, int, int], folder: Path) -> str:
    """A Llama of random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, intermediate, layers, vocabulary = shape
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        vocab_size=vocabulary,
        num_attention_heads=hidden // 64,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


@contextmanager
def group_of(ranks: int) -> Iterator[LearnerGroup]:
    """Learner ranks that have met, of one thread each, or of two where there is one."""
    settings = Learner(ranks=ranks, zero_stage=0, threads=2 // ranks)
    env = {"OMP_NUM_THREADS": str(settings.threads)}
    kind = pulse.watched(Rank).options(num_cpus=1, runtime_env={"env_vars": env})
    group = LearnerGroup(
        [kind.remote(rank, ranks, settings) for rank in range(ranks)],
        settings,
        watch=Watch(),
        timeouts=Timeouts(start=600, publish=600),
    )
    with tempfile.TemporaryDirectory() as folder:
        group.meet(run_dir=Path(folder), interface=None)
        yield group
        group.close()


def loaded(group: LearnerGroup, model: str, *, stage: int, wire_dtype: str, delta_every: int = 0) -> Any:
    """A new store; the group has loaded the model, and is about to publish it."""
    settings = group.settings.model_copy(update={"zero_stage": stage})
    ray.get([rank.choose.remote(settings) for rank in group.ranks])
    spec = ModelSpec(model, "policy", Optimizer(), 1)
    group.load({"policy": spec}, run_dir=Path(tempfile.mkdtemp()), seed=0)
    group.plan_weights(bucket_bytes=BUCKET, wire_dtype=wire_dtype, delta_every=delta_every)
    made: Any = ray.remote(num_cpus=0)(Store)
    return made.remote(ExperienceIndex(batch_rows=1, scorers=()))


def sent(group: LearnerGroup, store: Any, version: int) -> dict[str, float]:
    return group.publish(store, version, probe_tokens=None)


def pulled(readers: list[Any], store: Any) -> None:
    ray.get([reader.pull.remote(store) for reader in readers])


def mapped(readers: list[Any], store: Any) -> None:
    ray.get([reader.map.remote(store) for reader in readers])


def against_others(group: LearnerGroup, model: str, name: str, repeats: int) -> dict[str, Any]:
    """Medians of every way, interleaved."""
    store, reader = loaded(group, model, stage=0, wire_dtype="float32"), READER.remote()
    (rank,) = group.ranks
    clock, num_bytes = Clock(), 0.0

    def through_ray() -> None:
        refs = ray.get(rank.put_state_dict.remote())
        ray.get(reader.read_state_dict.remote(refs))

    with tempfile.TemporaryDirectory() as folder:

        def through_files() -> None:
            ray.get(rank.save_file.remote(folder))
            ray.get(reader.load.remote(folder))

        for version in range(repeats + 1):
            facts = clock("publish", sent, group, store, version)
            num_bytes = facts["weights/bytes"]
            clock("pull", pulled, [reader], store)
            clock("state_dict", through_ray)
            clock("safetensors", through_files)
            for bare, seconds in (("memcpy", reader.memcpy.remote(3)), ("parts", reader.parts.remote())):
                clock.seconds.setdefault(bare, []).append(ray.get(seconds))
    for actor in (store, reader):
        ray.kill(actor)
    median = clock.medians()
    ours = median["publish"] + median["pull"]
    return {
        "what": f"{name} fp32",
        "MB": num_bytes / 1e6,
        **{f"{key} s": value for key, value in median.items()},
        "over_memcpy": ours / median["memcpy"],
        "parts_over_memcpy": median["parts"] / median["memcpy"],
        "state_dict_over_ours": median["state_dict"] / ours,
        "safetensors_over_ours": median["safetensors"] / ours,
    }


def by_readers(group: LearnerGroup, model: str, repeats: int) -> dict[str, float]:
    """Seconds of publication, and until so many readers of a node have mapped a version, checked, or copied one; medians."""
    store = loaded(group, model, stage=0, wire_dtype="float32")
    readers = [READER.remote() for _ in range(max(READERS))]
    clock = Clock()
    versions = count()
    for _ in range(repeats + 1):
        for number in READERS:  # each has a version of its own, which nobody has checked
            clock("publish", sent, group, store, next(versions))
            clock(str(number), mapped, readers[:number], store)
            clock("publish", sent, group, store, next(versions))
            clock(f"{number} copy", pulled, readers[:number], store)
        clock.seconds.setdefault("memcpy at once", []).append(max(ray.get([each.memcpy.remote(3) for each in readers])))
    for actor in (store, *readers):
        ray.kill(actor)
    return clock.medians()


def by_processes(group: LearnerGroup, model: str, repeats: int) -> dict[str, float]:
    """Seconds in which a vLLM engine has a version, from the store to its layers, by the processes that share it; medians."""
    store = loaded(group, model, stage=0, wire_dtype="float32")
    found = {}
    for processes in (1, 2):
        engine = ENGINE.remote(model, processes)
        clock = Clock()
        for version in range((processes - 1) * (repeats + 1), processes * (repeats + 1)):
            sent(group, store, version)
            clock("pull", ray.get, engine.pull.remote(store))
        ray.get(engine.close.remote())
        ray.kill(engine)
        found[str(processes)] = clock.medians()["pull"]
    ray.kill(store)
    return found


def by_stage(group: LearnerGroup, model: str, repeats: int) -> dict[str, float]:
    """Seconds of publication by ZeRO stage; medians."""
    found = {}
    for stage in (0, 3):
        store = loaded(group, model, stage=stage, wire_dtype="float32")
        clock = Clock()
        for version in range(repeats + 1):
            clock("publish", sent, group, store, version)
        ray.kill(store)
        found[f"ZeRO-{stage}"] = clock.medians()["publish"]
    gathered = [max(ray.get([rank.gather.remote() for rank in group.ranks])) for _ in range(repeats)]
    found["ZeRO-3, gathering alone"] = statistics.median(gathered)
    return found


def by_form(group: LearnerGroup, model: str, repeats: int) -> dict[str, tuple[float, float, float]]:
    """Bytes, and seconds of publication and pull, of whole versions and of deltas after one step, in bf16; medians."""
    found = {}
    for form, every in (("full", 0), ("delta", 1000)):
        store = loaded(group, model, stage=0, wire_dtype="bfloat16", delta_every=every)
        reader = READER.remote()
        clock = Clock()
        group.publish(store, 0, probe_tokens=None)
        ray.get([rank.step_of.remote(LR) for rank in group.ranks])
        facts: dict[str, float] = {}
        for version in range(1, repeats + 2):
            facts = clock("publish", sent, group, store, version)
            clock("pull", pulled, [reader], store)
        for actor in (store, reader):
            ray.kill(actor)
        median = clock.medians()
        found[form] = (facts["weights/bytes"], median["publish"], median["pull"])
    return found


def main() -> None:
    """Measure every size, and at 125 M parameters what changes with readers, stages and deltas."""
    options = arguments(__doc__ or "")
    shapes, repeats = (QUICK, 3) if options.quick else (SHAPES, 5)
    mib, times = 2048 if options.quick else 6144, {"125M": repeats}
    with (
        tempfile.TemporaryDirectory() as folder,
        session(Cluster(object_store_mib=mib), cpus=4, gpus=0, namespace="benchmark"),
    ):
        models = {name: write_model(shape, Path(folder) / name) for name, shape in shapes.items()}
        with group_of(1) as group:
            rows = [against_others(group, model, name, times.get(name, 2)) for name, model in models.items()]
            readers = by_readers(group, models["125M"], repeats)
            forms = by_form(group, models["125M"], repeats)
            engines = by_processes(group, models["125M"], repeats)
        with group_of(2) as group:
            stages = by_stage(group, models["125M"], repeats)
    keys = ("over_memcpy", "parts_over_memcpy", "state_dict_over_ours", "safetensors_over_ours")
    one, most = str(READERS[0]), str(READERS[-1])
    figures = {
        **{key: rows[1][key] for key in keys},
        "readers_8_over_1": (readers["publish"] + readers[most]) / (readers["publish"] + readers[one]),
        "readers_8_over_memcpy_8": readers[f"{most} copy"] / readers["memcpy at once"],
        "tensor_parallel_2_over_1": engines["2"] / engines["1"],
        "zero_3_over_zero_0": stages["ZeRO-3"] / stages["ZeRO-0"],
        "delta_over_full_bytes": forms["delta"][0] / forms["full"][0],
        "delta_over_full_publish_s": forms["delta"][1] / forms["full"][1],
        "delta_over_full_pull_s": forms["delta"][2] / forms["full"][2],
    }
    rows += [{"what": f"125M, {number} map it", "pull s": readers[str(number)]} for number in READERS]
    rows += [{"what": f"125M, {number} copy it", "pull s": readers[f"{number} copy"]} for number in READERS]
    rows += [{"what": "125M, 8 memcpy at once", "memcpy s": readers["memcpy at once"]}]
    rows += [
        {"what": f"125M, vLLM, tensor parallel {number}", "pull s": seconds} for number, seconds in engines.items()
    ]
    rows += [{"what": f"125M, 2 ranks, {stage}", "publish s": seconds} for stage, seconds in stages.items()]
    rows += [
        {"what": f"125M bf16, {form}", "MB": size / 1e6, "publish s": out, "pull s": back}
        for form, (size, out, back) in forms.items()
    ]
    rows = [{key: row.get(key, "") for key in rows[0]} for row in rows]
    publish("weight_sync", figures, rows, options.json)


if __name__ == "__main__":
    main()
