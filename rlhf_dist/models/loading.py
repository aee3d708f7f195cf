"""Hugging Face folders, read: configs, language models, classifiers. What was not in the file is refused, not made up."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlhf_dist.errors import ModelError
from rlhf_dist.imports import import_transformers
from rlhf_dist.models.attention import kernel_of
from rlhf_dist.models.folders import resolve
from rlhf_dist.models.hollow import hollow_out
from rlhf_dist.models.roles import check_role, is_classifier
from rlhf_dist.models.tensor_parallel import loading_options
from rlhf_dist.models.tokenizers import load_tokenizer

log = logging.getLogger(__name__)

HEAD, TOKENS_HEAD = "score.", "lm_head."
"""Names of a classifier's head, and of a language model's, begin with it."""
ANSWERS: dict[str, Any] = {"return_dict": True, "output_attentions": False, "output_hidden_states": False}
"""What a forward returns, whatever a config that was saved in the middle of some experiment says."""


def load_policy(
    path: str, *, dtype: torch.dtype, attention: str = "sdpa", hollow: bool = False, processes: int = 1
) -> Any:
    """Read a causal language model, or of one that is cut over so many processes this one's part.

    Args:
        path: Hugging Face folder or name.
        dtype: of the weights.
        attention: attention kernels.
        hollow: check it and make it without reading its weights; see `models.hollow`.
        processes: over which it is cut; their process group is up, and all of them call at once.

    Raises:
        ModelError: the folder is missing, holds no such model or only a part of its weights, or is a reward model.
    """
    from transformers import AutoModelForCausalLM

    check_role("policy", path, read_config(path))
    options = {"dtype": dtype, "attention": attention, **loading_options(processes)}
    return _load(AutoModelForCausalLM, path, own_head=TOKENS_HEAD, hollow=hollow, **options)


def load_value_model(
    path: str,
    *,
    dtype: torch.dtype,
    attention: str = "sdpa",
    heads: int | None = None,
    new_head: bool = False,
    hollow: bool = False,
    processes: int = 1,
) -> Any:
    """Read a sequence-classification model.

    Args:
        path: Hugging Face folder or name.
        dtype: of the weights.
        attention: attention kernels.
        heads: labels; None: as many as the folder says, one if it is no classifier yet.
        new_head: whether a language model will do, whose head then starts at random and is to be trained.
        hollow: as in `load_policy`.
        processes: over which it is cut.

    Raises:
        ModelError: the folder is missing, its model has another number of labels, no `score` head, or only a part of its weights.
    """
    from transformers import AutoModelForSequenceClassification

    read = read_config(path)
    check_role("start" if new_head else "reward", path, read)
    labels = heads or (read.num_labels if is_classifier(read) else 1)
    # A head of its own for each member of an ensemble that starts from a single one.
    made_anew = new_head and (not is_classifier(read) or labels != read.num_labels)
    model = _load(
        AutoModelForSequenceClassification,
        path,
        own_head=HEAD,
        new_head=made_anew,
        hollow=hollow,
        dtype=dtype,
        attention=attention,
        num_labels=labels,
        **loading_options(processes),
    )
    if not isinstance(getattr(model, "score", None), nn.Linear):
        raise ModelError(
            f"{path}: {type(model).__name__} has no linear `score` head; expected one, as Llama's or Qwen's has"
        )
    return model


def load_classifier(path: str) -> tuple[Any, Any]:
    """A text classifier with a tokenizer of its own.

    Raises:
        ModelError: the folder is missing or holds no such model.
    """
    from transformers import AutoModelForSequenceClassification

    read_config(path)
    model = _load(AutoModelForSequenceClassification, path, own_head=HEAD, dtype=torch.float32, attention="sdpa")
    return model.eval(), load_tokenizer(path, ends=False)


def read_config(path: str) -> Any:
    """A model's configuration, without its weights.

    Raises:
        ModelError: the folder is missing, its config unreadable, or of a kind that cannot be trained or scored.
    """
    import_transformers()
    from transformers import AutoConfig

    path = resolve(path)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, **ANSWERS)
    except Exception as error:  # a config is data from outside: whatever is wrong in it, the file is named
        raise ModelError(f"{path}: cannot read its config: {_first_line(error)}") from error
    if getattr(config, "quantization_config", None):
        raise ModelError(
            f"{path} is quantised ({_method(config.quantization_config)}); expected weights in float32, bfloat16 or float16, "
            "which can be trained and published"
        )
    parts = [name for name in ("vision_config", "audio_config") if getattr(config, name, None) is not None]
    if parts:
        raise ModelError(
            f"{path} is a model of several parts ({type(config).__name__} with {', '.join(parts)}); expected a model of text "
            "alone, e.g. its language part saved by itself"
        )
    return config


def _method(quantization: Any) -> str:
    found = quantization.get("quant_method") if isinstance(quantization, dict) else quantization.quant_method
    return str(found)


def _load(
    kind: Any, path: str, *, own_head: str, attention: str, new_head: bool = False, hollow: bool = False, **options: Any
) -> Any:
    """Read a model and see that all of its weights came from the file, but for a head that is to be new."""
    path = resolve(path)
    _check_files(Path(path))
    if hollow:
        options["device_map"] = {"": "meta"}
    try:
        model, told = _read(kind, path, attention, options)
    except (
        Exception
    ) as error:  # files from outside may be wrong in any way: truncated, of other shapes, of unknown kinds
        raise ModelError(f"{path}: cannot be read as a Hugging Face model: {_first_line(error)}") from error
    new = (own_head,) if new_head else ("\0",)
    missing = sorted(name for name in told["missing_keys"] if not name.startswith(new))
    unused = sorted(told["unexpected_keys"])
    if missing:
        raise ModelError(
            f"{path}: {len(missing)} of {type(model).__name__}'s weights are not in the file, e.g. {missing[0]}; they would "
            f"start at random. {_advice(missing, unused)}"
        )
    for name, found, wanted in sorted(told["mismatched_keys"]):
        if not name.startswith(new):
            raise ModelError(
                f"{path}: {name} has the shape {[*found]} in the file, and {[*wanted]} by its config; expected config.json and "
                "weights of one model"
            )
    _check_unused(path, unused, own_head)
    if hollow:
        hollow_out(model, path, told["missing_keys"] | {name for name, _, _ in told["mismatched_keys"]})
    else:
        refuse_odd(path, odd_weights(model.named_parameters()))
    return model


def _check_files(folder: Path) -> None:
    """Refuse folders of which transformers would read something else than what they seem to hold."""
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{folder}: adapter_config.json is beside or in the place of a model, and would be put on top of it; expected a "
            "whole model. Merge the adapter (peft's merge_and_unload), or move its files away if it is merged already"
        )
    if not any(folder.glob("*.safetensors")):
        kinds = sorted(file.name for file in folder.iterdir() if file.suffix in (".bin", ".pt", ".pth", ".h5", ".gguf"))
        found = f"found {kinds[0]}, which is not read, since reading it can run code" if kinds else "found none"
        raise ModelError(
            f"{folder}: expected weights as *.safetensors; {found}. Load the model where it was made, and save it with "
            "save_pretrained"
        )
    if not any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
        raise ModelError(
            f"{folder}: no model.safetensors and no model.safetensors.index.json; expected one of them, which tells what the "
            "other *.safetensors hold"
        )


def _check_unused(path: str, unused: list[str], own_head: str) -> None:
    """Refuse weights that would be left out though they belong to what is read; tell of others."""
    if layers := [name for name in unused if re.search(r"\.(layers|h|blocks)\.\d+\.", name)]:
        raise ModelError(
            f"{path}: the file has weights of layers that its config does not know, e.g. {layers[0]}; expected config.json and "
            "weights of one model"
        )
    # A reward model may keep the head that it had as a language model; a policy with a second head is a reward model.
    belonging = (HEAD, TOKENS_HEAD) if own_head == TOKENS_HEAD else (HEAD,)
    if dropped := [name for name in unused if name.startswith(belonging)]:
        raise ModelError(
            f"{path}: the file has {dropped[0]}, for which the model of its config has no place; expected a head as the config "
            "says, and a model of one kind"
        )
    if rest := [name for name in unused if not name.startswith((HEAD, TOKENS_HEAD))]:
        log.warning("weights in the file that the model has no place for", extra={"model": path, "names": rest[:5]})


def odd_weights(weights: Iterable[tuple[str, torch.Tensor]]) -> list[str]:
    """Names of weights from which only NaN can come; where a sum is finite, so is each number in it."""
    return [name for name, weight in weights if not weight.sum().isfinite() and not weight.isfinite().all()]


def refuse_odd(path: str, odd: Sequence[str]) -> None:
    """Refuse a model with weights that are not finite.

    Raises:
        ModelError: there are any; names the first.
    """
    if odd:
        raise ModelError(
            f"{path}: {len(odd)} of its weights hold NaN or infinity, e.g. {odd[0]}; expected finite numbers"
        )


def _read(kind: Any, path: str, attention: str, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The model, and what transformers says of its weights; with plainer attention where family or machine lack what is asked."""
    shared = {
        "trust_remote_code": False,
        "use_safetensors": True,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # they are told, with their names
        **ANSWERS,
        **options,
    }
    attention, wanted, reason = kernel_of(kind, read_config(path), attention)
    if reason is not None:
        log.warning("attention is computed by %s", attention, extra={"model": path, "asked": wanted, "reason": reason})
    found: tuple[Any, dict[str, Any]] = kind.from_pretrained(path, attn_implementation=attention, **shared)
    return found


def _advice(missing: list[str], unused: Collection[str]) -> str:
    """What may have happened to the weights that are not there."""
    for name in unused:
        for wanted in missing:
            if name.endswith(f".{wanted}"):
                prefix = name.removesuffix(wanted)
                return f"The file calls them {name}: take the prefix {prefix!r} off the names (a wrapper put it there)"
    if any("lora_" in name for name in unused):
        return "The file holds adapters: merge them into the model first"
    if missing == ["lm_head.weight"]:
        return "If its input and output embeddings are one, say so in config.json: tie_word_embeddings true"
    if unused:
        return f"The file has {len(unused)} others, e.g. {next(iter(unused))}; expected a whole model of this kind"
    return "Expected a whole model"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
