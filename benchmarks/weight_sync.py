"""Publishing and pulling weights, against memcpy, a state dict through Ray, and safetensors files, in one run."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from contract import arguments, publish
from safetensors.torch import load_file, save_file

from rlhf_dist.cluster.session import session
from rlhf_dist.config import Cluster
from rlhf_dist.store.actor import Store
from rlhf_dist.store.experience import ExperienceIndex
from rlhf_dist.store.weights import Sent, decode_bucket, encode_bucket, plan_buckets

SHAPES = {"28M": (512, 1408, 8, 4096), "125M": (768, 2048, 12, 32_000), "350M": (1024, 2816, 24, 32_000)}
QUICK = {"28M": (256, 704, 4, 4096), "125M": (512, 1408, 8, 4096), "350M": (768, 2048, 8, 8192)}
BUCKET = 256 * 2**20


def parameters(hidden: int, intermediate: int, layers: int, vocabulary: int) -> dict[str, torch.Tensor]:
    """Random fp32 tensors in the shapes of a Llama."""
    shapes: dict[str, tuple[int, ...]] = {"embed": (vocabulary, hidden), "head": (vocabulary, hidden)}
    for layer in range(layers):
        shapes |= {f"{layer}.{name}": (hidden, hidden) for name in "qkvo"}
        shapes |= {f"{layer}.{name}": (intermediate, hidden) for name in ("gate", "up")}
        shapes |= {f"{layer}.down": (hidden, intermediate), f"{layer}.norm": (hidden,)}
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@ray.remote(num_cpus=1)
class Publisher:
    """A learner rank's part of publication, on given tensors."""

    def __init__(self, shape: tuple[int, int, int, int]) -> None:
        self.tensors = parameters(*shape)
        self.buckets = plan_buckets([(n, t.nbytes) for n, t in self.tensors.items()], bucket_bytes=BUCKET)

    def weight_buckets(self, partial: bool = False) -> Iterator[pa.Table | Sent]:
        for names in self.buckets:
            yield encode_bucket([(name, self.tensors[name]) for name in names])
        yield Sent(self.buckets, sum(tensor.nbytes for tensor in self.tensors.values()))

    def put_state_dict(self) -> list[Any]:
        return [ray.put(dict(self.tensors))]

    def save(self, folder: str) -> None:
        save_file(self.tensors, Path(folder) / "model.safetensors")


@ray.remote(num_cpus=1)
class Reader:
    """An engine's part: have every tensor, checked, in its own memory."""

    def __init__(self, shape: tuple[int, int, int, int]) -> None:
        self.own = parameters(*shape)

    def pull(self, store: Any) -> None:
        (manifest,) = ray.get(store.newest_weights.remote(False))
        names = set()
        for table in ray.get(list(manifest.buckets)):
            for name, tensor in decode_bucket(table):
                self.own[name].copy_(tensor)
                names.add(name)
        assert names == set(self.own) == set(manifest.names)

    def read_state_dict(self, refs: list[Any]) -> None:
        for name, tensor in ray.get(refs[0]).items():
            self.own[name].copy_(tensor)

    def load(self, folder: str) -> None:
        for name, tensor in load_file(Path(folder) / "model.safetensors").items():
            self.own[name].copy_(tensor)

    def memcpy(self, repeats: int) -> float:
        """Seconds of copying the same bytes within this process, destination warm; the median."""
        flat = torch.cat([tensor.view(-1) for tensor in self.own.values()]).numpy()
        target = np.empty_like(flat)
        np.copyto(target, flat)
        seconds = []
        for _ in range(repeats):
            started = time.perf_counter()
            np.copyto(target, flat)
            seconds.append(time.perf_counter() - started)
        return statistics.median(seconds)


def measure(name: str, shape: tuple[int, int, int, int], repeats: int) -> dict[str, Any]:
    """Medians of every way, interleaved."""
    store: Any = ray.remote(num_cpus=0)(Store).remote(ExperienceIndex(batch_rows=1, scorers=()))
    actors: tuple[Any, Any] = (Publisher, Reader)
    publisher, reader = (kind.remote(shape) for kind in actors)
    seconds: dict[str, list[float]] = {key: [] for key in ("publish", "pull", "state_dict", "safetensors", "memcpy")}

    def clock(key: str, call: Any) -> Any:
        started = time.perf_counter()
        result = ray.get(call())
        seconds[key].append(time.perf_counter() - started)
        return result

    num_bytes = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for version in range(repeats + 1):
            num_bytes = clock("publish", lambda v=version: store.publish.remote(v, [publisher], None))["weights/bytes"]
            clock("pull", lambda: reader.pull.remote(store))
            started = time.perf_counter()
            refs = ray.get(publisher.put_state_dict.remote())
            ray.get(reader.read_state_dict.remote(refs))
            seconds["state_dict"].append(time.perf_counter() - started)
            del refs
            started = time.perf_counter()
            ray.get(publisher.save.remote(folder))
            ray.get(reader.load.remote(folder))
            seconds["safetensors"].append(time.perf_counter() - started)
            seconds["memcpy"].append(ray.get(reader.memcpy.remote(3)))
    for actor in (store, publisher, reader):
        ray.kill(actor)
    median = {key: statistics.median(values[1:]) for key, values in seconds.items()}
    ours = median["publish"] + median["pull"]
    return {
        "parameters": name,
        "MB": num_bytes / 1e6,
        **{f"{key} s": value for key, value in median.items()},
        "publish GB/s": num_bytes / 1e9 / median["publish"],
        "pull GB/s": num_bytes / 1e9 / median["pull"],
        "over_memcpy": ours / median["memcpy"],
        "state_dict_over_ours": median["state_dict"] / ours,
        "safetensors_over_ours": median["safetensors"] / ours,
    }


def main() -> None:
    """Measure every size; the figures are those at 125 M parameters."""
    options = arguments(__doc__ or "")
    shapes = QUICK if options.quick else SHAPES
    with session(Cluster(object_store_mib=1024 if options.quick else 7168), cpus=4, gpus=0, namespace="benchmark"):
        rows = [measure(name, shape, repeats=3 if options.quick else 5) for name, shape in shapes.items()]
    keys = ("over_memcpy", "state_dict_over_ours", "safetensors_over_ours")
    publish("weight_sync", {key: rows[1][key] for key in keys}, rows, options.json)


if __name__ == "__main__":
    main()
