"""Models as Hugging Face folders. What would go wrong at the end of training is tried before it starts."""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rlhf_dist.errors import ModelError
from rlhf_dist.files import as_json
from rlhf_dist.learner.adapters import is_adapter, own_name
from rlhf_dist.learner.finite import check_tensors
from rlhf_dist.learner.published import SAVED_BUCKET_BYTES, PublishedWeights
from rlhf_dist.learner.writing import Writer
from rlhf_dist.models.file_names import Unit, in_file, persistent_buffers, units_of
from rlhf_dist.store.weights import plan_buckets

log = logging.getLogger(__name__)


def check_can_be_saved(model: Any) -> None:
    """Try on copies what saving will do: write the small files, and have every weight that a model of this config has.

    Args:
        model: a Hugging Face model, adapters in; its generation config may be repaired.

    Raises:
        ModelError: names the model and what could not be written or would be lost.
    """
    name = model.config._name_or_path or type(model).__name__
    _repair_generation_config(model, name)
    try:
        with tempfile.TemporaryDirectory(prefix="rlhf_dist-") as folder:
            _write_small_files(model, Path(folder))
    except (ValueError, TypeError) as error:
        raise ModelError(f"{name}: its config cannot be written again: {error}") from error
    kept = {own_name(each): tensor.shape for each, tensor in model.named_parameters() if not is_adapter(each)}
    kept |= {own_name(each): tensor.shape for each, tensor in persistent_buffers(model).items()}
    with torch.device("meta"):
        fresh = type(model)(model.config)
    needed = {each: tensor.shape for each, tensor in [*fresh.named_parameters(), *persistent_buffers(fresh).items()]}
    if odd := sorted(each for each in kept.keys() | needed if kept.get(each) != needed.get(each)):
        raise ModelError(
            f"{name}: {len(odd)} of {type(model).__name__}'s weights would not be saved as a new model of its config needs "
            f"them, e.g. {odd[0]}: {_shape(kept.get(odd[0]))} instead of {_shape(needed.get(odd[0]))}"
        )


def save_model(model: Any, state: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Write config, generation config and weights as transformers and engines read them.

    Args:
        model: the Hugging Face model.
        state: all of its weights by its own names, in host memory.
        folder: where to.
    """
    model.save_pretrained(folder, state_dict=dict(state))


class ModelFiles:
    """A model's files in Hugging Face layout, cut into buckets, each of which one rank copies and writes as a file."""

    def __init__(self, model: Any, weights: PublishedWeights, dtype: torch.dtype) -> None:
        """Cut a model into files.

        Args:
            model: the Hugging Face model.
            weights: its weights, as they leave the learner.
            dtype: of the parameters in files; buffers keep theirs.
        """
        self._model, self._weights, self._dtype = model, weights, dtype
        units = units_of(model, weights.shapes())
        sizes = [(str(number), unit.numel * dtype.itemsize) for number, unit in enumerate(units)]
        cut = plan_buckets(sizes, bucket_bytes=SAVED_BUCKET_BYTES)
        self._buckets = [[units[int(number)] for number in bucket] for bucket in cut]

    def name(self, number: int) -> str:
        """A bucket's file."""
        count = len(self._buckets)
        return f"model-{number + 1:05d}-of-{count:05d}.safetensors" if count > 1 else "model.safetensors"

    def write(self, folder: Path, writer: Writer, *, rank: int, ranks: int) -> None:
        """Copy this rank's buckets to host memory and have them written; all ranks must call, and gather one at a time.

        Raises:
            NumbersError: weights are not finite; then this rank writes nothing.
        """
        copied = {}
        for number, bucket in enumerate(self._buckets):
            names = [name for unit in bucket for name in unit.own]
            with self._weights.bucket(names, self._dtype) as tensors:
                if number % ranks == rank:
                    copied[number] = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors}
        # Not sooner: the other ranks would wait for this one in the next gathering.
        for held in copied.values():
            check_tensors([*held.items()], f"saving the weights of {type(self._model).__name__}")
        if rank == 0:
            self._write_rest(folder)
        for number, held in copied.items():
            writer.write(folder / self.name(number), in_file(self._model, held))

    def _write_rest(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        _write_small_files(self._model, folder, self._dtype)
        if len(self._buckets) > 1:
            places = {
                name: self.name(number)
                for number, bucket in enumerate(self._buckets)
                for unit in bucket
                for name, _ in unit.files
            }
            total = sum(map(self._num_bytes, (unit for bucket in self._buckets for unit in bucket)))
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
            (folder / "model.safetensors.index.json").write_text(as_json(index, indent=2))

    def _num_bytes(self, unit: Unit) -> int:
        kept = {own_name(name): buffer for name, buffer in persistent_buffers(self._model).items()}
        return unit.numel * (kept[unit.own[0]].itemsize if unit.own[0] in kept else self._dtype.itemsize)


def _write_small_files(model: Any, folder: Path, dtype: torch.dtype | None = None) -> None:
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.dtype = dtype or model.dtype
    config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def _repair_generation_config(model: Any, name: str) -> None:
    """Transformers reads generation configs that it refuses to write: sampling's numbers without `do_sample`, as Llama-2 had."""
    found = getattr(model, "generation_config", None)
    if found is None:
        return
    for repair in (None, _let_it_sample, _keep_tokens_only):
        if repair is not None:
            repair(model)
        try:
            model.generation_config.validate(strict=True)
        except ValueError as error:
            problem = str(error).strip().splitlines()[0]
        else:
            if repair is not None:
                log.warning("generation_config.json repaired", extra={"model": name, "how": repair.__name__.strip("_")})
            return
    raise ModelError(f"{name}: its generation_config.json cannot be written again: {problem}")


def _let_it_sample(model: Any) -> None:
    """Who sets temperature or top-p, and does not say that nothing is sampled, means to sample."""
    if model.generation_config.do_sample is None:
        model.generation_config.do_sample = True


def _keep_tokens_only(model: Any) -> None:
    """What ends and pads answers is kept; whatever else it says is contradictory."""
    from transformers import GenerationConfig

    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    model.generation_config = GenerationConfig(**{each: getattr(model.generation_config, each) for each in names})


def _shape(found: torch.Size | None) -> str:
    return "nothing" if found is None else str(list(found))
