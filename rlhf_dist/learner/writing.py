"""Files of tensors, written in the background by the rank that holds them, with a digest made on the way.

A file is in the format of safetensors (https://huggingface.co/docs/safetensors): the length of a header, the header, the tensors'
bytes one after the other. It is written tensor by tensor, so nothing is held twice, and is on the disk before it counts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from rlhf_dist.checkpoint import Digest
from rlhf_dist.files import as_json, storing

NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What safetensors calls torch's dtypes."""
Write = Callable[[Path, Mapping[str, torch.Tensor]], object]
"""Writes a file of tensors, now or in the background."""
GROUP = "writing"
"""Ray's concurrency group of the wait for what is written."""
GROUPS = {GROUP: 1}
ALIGNED = 8
"""Bytes: tensors begin at a multiple, so that they can be used where the file is mapped."""


class Writer:
    """Writes files one after the other while its process does other things."""

    def __init__(self) -> None:
        """Nothing is to be written yet."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._under_way: dict[Path, Future[str]] = {}

    def write(self, file: Path, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write tensors in host memory, which must stay as they are until they are written."""
        file.parent.mkdir(parents=True, exist_ok=True)
        self._under_way[file] = self._thread.submit(write_tensors, file, tensors)

    def written(self, folder: Path) -> dict[str, str]:
        """Wait for all files below a folder; returns their digests by path.

        Raises:
            StorageError: the disk took one of them not.
        """
        mine = {file: future for file, future in [*self._under_way.items()] if folder in file.parents}
        try:
            return {str(file): future.result() for file, future in mine.items()}
        finally:
            for file in mine:
                del self._under_way[file]


def write_tensors(file: Path, tensors: Mapping[str, torch.Tensor]) -> str:
    """Write a file of safetensors; returns its digest.

    Raises:
        StorageError: the disk does not take it.
    """
    with storing(file), file.open("wb") as stream:
        digest = Digest()
        for part in _parts(tensors):
            digest.update(part)
            stream.write(part)
        stream.flush()
        os.fsync(stream.fileno())
        return digest.text()


def _parts(tensors: Mapping[str, torch.Tensor]) -> Iterator[bytes | memoryview]:
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name in order:
        tensor = tensors[name]
        end = start + tensor.nbytes
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": [*tensor.shape], "data_offsets": [start, end]}
        start = end
    text = as_json(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNED)
    yield len(text).to_bytes(8, "little")
    yield text
    for name in order:
        yield tensors[name].detach().contiguous().view(-1).view(torch.uint8).numpy().data
