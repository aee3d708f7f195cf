"""Hugging Face models as this system uses them: packed inputs in, log-probs or values of chosen tokens out.

Layout: a packed batch is [rows, width] of token ids with restarting positions. Outputs are flat: one number per selected
position, in the order of the sequences given to `pack`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from rlhf_dist.data.packing import MicroBatch
from rlhf_dist.errors import ModelError
from rlhf_dist.imports import import_transformers

LOGITS_BYTES = 256 * 2**20
"""[tokens, vocab] logits are made in pieces of this many fp32 bytes, and made again in the backward pass."""


@dataclass(frozen=True)
class PackedBatch:
    """Token ids ready for a forward pass."""

    input_ids: torch.Tensor
    """[rows, width], int64."""
    position_ids: torch.Tensor
    """[rows, width], int64, restarting with each sequence."""
    select: torch.Tensor
    """[selected], flat positions in [rows * width] whose output is wanted."""
    targets: torch.Tensor
    """[selected], the token that follows each selected position (0 after a sequence's last token)."""

    def to(self, device: torch.device | str) -> PackedBatch:
        """The same on another device."""
        return PackedBatch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


Positions = range | np.ndarray[Any, Any]


def pack(sequences: Sequence[np.ndarray[Any, Any]], selections: Sequence[Positions], rows: MicroBatch) -> PackedBatch:
    """Lay sequences out in rows.

    Args:
        sequences: token ids, each [length].
        selections: for each sequence the positions whose output is wanted, e.g. those that predict sampled tokens.
        rows: which sequences share a row; outputs come row by row. Empty: a batch of one token with nothing selected.
    """
    width = max((sum(len(sequences[i]) for i in row) for row in rows), default=1)
    input_ids = np.zeros((max(1, len(rows)), width), dtype=np.int64)
    position_ids = np.tile(np.arange(width, dtype=np.int64), (max(1, len(rows)), 1))
    select, targets = [], []
    for number, row in enumerate(rows):
        start = 0
        for index in row:
            tokens, wanted = sequences[index], np.asarray(selections[index])
            input_ids[number, start : start + len(tokens)] = tokens
            # Padding continues the last sequence's positions: causal attention hides it, and no mask is needed.
            position_ids[number, start:] = np.arange(width - start)
            select.append(number * width + start + wanted)
            targets.append(np.append(tokens, 0)[wanted + 1])
            start += len(tokens)
    chosen = np.concatenate(select) if select else np.zeros(0, dtype=np.int64)
    following = np.concatenate(targets).astype(np.int64) if targets else np.zeros(0, dtype=np.int64)
    return PackedBatch(*(torch.from_numpy(array) for array in (input_ids, position_ids, chosen, following)))


class LogProbHead(nn.Linear):
    """A language-model head that can return log-probs and entropies without the whole [tokens, vocab] logits.

    It is one module call whatever the number of pieces, which ZeRO-3 needs: ranks gather its weight equally often.
    """

    @classmethod
    def around(cls, head: nn.Linear) -> LogProbHead:
        """The same head, sharing its parameters."""
        made = cls(head.in_features, head.out_features, bias=head.bias is not None, device="meta")
        made.weight = head.weight
        if head.bias is not None:
            made.bias = head.bias
        return made

    def forward(  # type: ignore[override]
        self, hidden: torch.Tensor, targets: torch.Tensor, temperature: float, entropy_grad: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-prob of each target and entropy of each distribution, both float32 [tokens].

        Args:
            hidden: [tokens, hidden].
            targets: [tokens].
            temperature: logits are divided by it.
            entropy_grad: whether entropies carry a gradient.
        """
        piece = max(1, LOGITS_BYTES // (4 * self.out_features))
        if len(hidden) <= piece:
            return self._piece(hidden, targets, temperature, entropy_grad)
        parts = [
            checkpoint(self._piece, h, t, temperature, entropy_grad, use_reentrant=False)
            for h, t in zip(hidden.split(piece), targets.split(piece), strict=True)
        ]
        return torch.cat([log_probs for log_probs, _ in parts]), torch.cat([entropy for _, entropy in parts])

    def _piece(
        self, hidden: torch.Tensor, targets: torch.Tensor, temperature: float, entropy_grad: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logits = F.linear(hidden, self.weight, self.bias).float()
        if temperature != 1.0:
            logits = logits / temperature
        all_log_probs = torch.log_softmax(logits, dim=-1)
        log_probs = all_log_probs.gather(-1, targets[:, None])[:, 0]
        kept = all_log_probs if entropy_grad else all_log_probs.detach()
        return log_probs, -(kept.exp() * kept).sum(-1)


class PolicyModel(nn.Module):
    """A causal language model that scores given tokens, with an optional value head."""

    prefix: ClassVar[str] = "lm."
    """What it puts before Hugging Face's parameter names."""

    def __init__(self, lm: Any, *, temperature: float = 1.0, value_head: bool = False) -> None:
        """Wrap a Hugging Face causal language model; its head is replaced by one that shares its parameters."""
        super().__init__()
        lm.set_output_embeddings(LogProbHead.around(lm.get_output_embeddings()))
        self.lm = lm
        self.temperature = temperature
        self.value_head = nn.Linear(lm.config.hidden_size, 1, bias=False, dtype=lm.dtype) if value_head else None
        if self.value_head is not None:
            nn.init.zeros_(self.value_head.weight)

    def forward(
        self, batch: PackedBatch, *, entropy_grad: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Log-probs of the targets, entropies, and values where there is a head; each float32 [selected]."""
        hidden = _selected_hidden(self.lm.base_model, batch)
        head = self.lm.get_output_embeddings()
        log_probs, entropy = head(hidden, batch.targets, self.temperature, entropy_grad)
        values = self.value_head(hidden)[:, 0].float() if self.value_head is not None else None
        return log_probs, entropy, values


@contextmanager
def at_temperature(policy: Any, temperature: float) -> Iterator[None]:
    """A policy's log-probs at another temperature inside the block."""
    kept, policy.temperature = policy.temperature, temperature
    try:
        yield
    finally:
        policy.temperature = kept


class ValueModel(nn.Module):
    """A sequence-classification model read at any position: reward model and critic. Several labels are an ensemble."""

    prefix: ClassVar[str] = "classifier."

    def __init__(self, classifier: Any, *, shift: float = 0.0, scale: float = 1.0) -> None:
        """Wrap a Hugging Face `*ForSequenceClassification` model with a linear head named `score`.

        Args:
            classifier: the model.
            shift: taken off each output,
            scale: and then multiplied by; so that a critic which starts as a reward model starts from the reward's units.
        """
        super().__init__()
        self.classifier = classifier
        self.shift, self.scale = shift, scale

    def forward(self, batch: PackedBatch, *, all_heads: bool = False) -> torch.Tensor:
        """Value at each selected position, float32 [selected]: the heads' mean, or with `all_heads` [selected, heads]."""
        hidden = _selected_hidden(self.classifier.base_model, batch)
        values: torch.Tensor = self.scale * (self.classifier.score(hidden).float() - self.shift)
        return values if all_heads else values.mean(-1)


def _selected_hidden(backbone: Any, batch: PackedBatch) -> torch.Tensor:
    out = backbone(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)
    hidden: torch.Tensor = out.last_hidden_state.flatten(0, 1)[batch.select]
    return hidden


def load_policy(path: str, *, dtype: torch.dtype, attention: str = "sdpa") -> Any:
    """Read a causal language model, dropout off.

    Raises:
        ModelError: the folder is missing or holds no such model.
    """
    from transformers import AutoModelForCausalLM

    return _load(AutoModelForCausalLM, path, dtype=dtype, attn_implementation=attention)


def load_value_model(path: str, *, dtype: torch.dtype, attention: str = "sdpa", heads: int | None = None) -> Any:
    """Read a sequence-classification model, dropout off; from a language model, its head starts at random.

    Args:
        path: Hugging Face folder or name.
        dtype: of the weights.
        attention: attention kernels.
        heads: labels; None: as many as the folder says, one if it is no classifier yet.

    Raises:
        ModelError: the folder is missing, or its model has another number of labels or no `score` head.
    """
    from transformers import AutoModelForSequenceClassification

    read = read_config(path)
    is_classifier = any("ForSequenceClassification" in name for name in read.architectures or [])
    labels = heads or (read.num_labels if is_classifier else 1)
    model = _load(
        AutoModelForSequenceClassification, path, dtype=dtype, attn_implementation=attention, num_labels=labels
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

    model = _load(AutoModelForSequenceClassification, path, dtype=torch.float32)
    return model, load_tokenizer(path)


def _load(kind: Any, path: str, **options: Any) -> Any:
    check_folder(path)
    try:
        model = kind.from_pretrained(path, trust_remote_code=False, use_safetensors=True, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{path}: cannot be read as a Hugging Face model: {error}") from error
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
    return model


def check_folder(path: str) -> None:
    """Refuse a path that looks like a folder but is not a model.

    Raises:
        ModelError: names the path and what is missing.
    """
    folder = Path(path)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"{path}: no config.json; expected a Hugging Face model folder")
    elif folder.is_absolute() or path.startswith(".") or path.count("/") != 1:
        raise ModelError(f"{path}: no such folder; expected a Hugging Face model folder (or a hub name owner/model)")


def read_config(path: str) -> Any:
    """A model's configuration, without its weights.

    Raises:
        ModelError: the folder is missing or its config unreadable.
    """
    import_transformers()
    from transformers import AutoConfig

    check_folder(path)
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot read its config: {error}") from error


def load_tokenizer(path: str) -> Any:
    """A model's tokenizer.

    Raises:
        ModelError: there is none, or it has no end-of-sequence token.
    """
    import_transformers()
    from transformers import AutoTokenizer

    check_folder(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot read its tokenizer: {error}") from error
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{path}: its tokenizer has no eos_token; expected one, since answers end with it")
    return tokenizer


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """A digest of the vocabulary with its ids; equal for tokenizers that mean the same by an id."""
    return hashlib.blake2b(json.dumps(sorted(tokenizer.get_vocab().items())).encode(), digest_size=16).hexdigest()


def check_same_tokenizer(policy: str, others: dict[str, str]) -> None:
    """All models of a run must read the same token ids.

    Args:
        policy: the policy's folder.
        others: role to folder.

    Raises:
        ModelError: names the two folders whose tokenizers differ.
    """
    expected = tokenizer_fingerprint(load_tokenizer(policy))
    for role, path in others.items():
        if path != policy and tokenizer_fingerprint(load_tokenizer(path)) != expected:
            raise ModelError(
                f"{role} {path} has another tokenizer than the policy {policy}; "
                "expected the same vocabulary, since token ids are passed between them"
            )


def eos_token_ids(path: str) -> tuple[int, ...]:
    """Token ids that end an answer: the generation config's, else the tokenizer's."""
    from transformers import GenerationConfig

    found: Any = None
    if (Path(path) / "generation_config.json").is_file():
        found = GenerationConfig.from_pretrained(path).eos_token_id
    if found is None:
        found = load_tokenizer(path).eos_token_id
    return tuple(found) if isinstance(found, list) else (found,)
