"""transformers behind `RolloutEngine`: for machines without vLLM, and the oracle that vLLM is tested against.

Samples are decoded in groups: those added while a group runs wait for its end. Each sample draws from a generator of its
own seed, so its tokens do not depend on its neighbours; the last bits of its log-probs do, as with every engine (1e-6 nats). A
family that answers otherwise in company, or with a cache, than in its own forward is decoded one by one, or without a cache: a
trial at the start tells.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from rlhf_dist.errors import ModelError, NumbersError, WeightError
from rlhf_dist.models import load_policy, load_tokenizer
from rlhf_dist.models.file_names import take_over
from rlhf_dist.models.fits import counts_places, longest_alike
from rlhf_dist.models.heads import FAMILY_ERRORS, with_exact_logits
from rlhf_dist.models.proof import TOLERANCE, apart
from rlhf_dist.records import GREEDY, Sample, SampleRequest, Sampling
from rlhf_dist.rollout.engine import LoadedWeights, check_finite
from rlhf_dist.store.arrived import Bucket, tensors_of

log = logging.getLogger(__name__)

TRIAL = (tuple(range(3, 15)), (8, 9), (5, 3, 8))
"""Prompts on which decoding is tried, as token ids modulo the vocabulary."""


@dataclass
class _Running:
    request: SampleRequest
    generator: torch.Generator
    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)


class TransformersEngine:
    """A plain decoding loop with a KV cache."""

    def __init__(
        self,
        model: str,
        sampling: Sampling,
        *,
        dtype: str,
        max_concurrent: int,
        device: str = "cpu",
        attention: str = "sdpa",
    ) -> None:
        """Load the model; it samples from its own weights until a version is loaded.

        Raises:
            ModelError: the folder holds no such model.
        """
        self._weights = LoadedWeights(whole=True)
        self._sampling = sampling
        self._max_concurrent = max_concurrent
        self._device = torch.device(device)
        lm = load_policy(model, dtype=getattr(torch, dtype), attention=attention)
        self._lm: Any = with_exact_logits(lm).to(self._device).eval()
        self._accepted = inspect.signature(self._lm.forward).parameters.keys()
        self._tokenizer = load_tokenizer(model) if sampling.stop else None
        self._waiting: list[SampleRequest] = []
        self._group: list[_Running] = []
        self._cache: Any = None
        self._mask = torch.zeros(0)
        self._next: torch.Tensor = torch.zeros(0)
        self._uses_cache = True
        self._choose_way(model)

    @property
    def version(self) -> int:
        """Weight version in the engine; see `RolloutEngine`."""
        return self._weights.version

    @property
    def running(self) -> int:
        """Samples added and not finished."""
        return len(self._waiting) + len(self._group)

    def add(self, request: SampleRequest) -> None:
        """Start one more sample."""
        self._weights.check()
        self._waiting.append(request)

    @torch.no_grad()
    def step(self) -> list[Sample]:
        """One more token for every sample of the group; returns those that ended."""
        self._weights.check()
        if not self._group:
            self._start_group()
        logits = self._forward()
        finished: list[Sample] = []
        keep = []
        for number, running in enumerate(self._group):
            log_probs = truncated_log_probs(logits[number].float(), self._sampling)
            check_finite(
                running.request.key, [float(log_probs.max())], first=len(running.tokens)
            )  # a NaN is the greatest
            if running.request.key.sample_index == GREEDY:
                token = int(log_probs.argmax())
            else:
                token = int(torch.multinomial(log_probs.exp().cpu(), 1, generator=running.generator))
            running.tokens.append(token)
            running.log_probs.append(float(log_probs[token]))
            reason = self._end(running)
            if reason is None:
                keep.append(number)
            else:
                finished.append(self._sample(running, reason))
        self._shrink(keep)
        return finished

    def _start_group(self) -> None:
        chosen, self._waiting = self._waiting[: self._max_concurrent], self._waiting[self._max_concurrent :]
        self._group = [_Running(r, torch.Generator().manual_seed(r.seed)) for r in chosen]
        self._next, self._mask = self._left_padded([r.prompt_tokens for r in chosen])
        self._cache = None

    def _left_padded(self, prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and attention mask, both [prompts, longest], so that all prompts end in the last column."""
        width = max(len(prompt) for prompt in prompts)
        ids = np.zeros((len(prompts), width), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = prompt
            mask[row, width - len(prompt) :] = 1
        return torch.from_numpy(ids).to(self._device), torch.from_numpy(mask).to(self._device)

    def _forward(self) -> torch.Tensor:
        """Logits of the next token, [group, vocab]."""
        if not self._uses_cache:
            alone: torch.Tensor = self._lm(input_ids=self._next).logits[:, -1]
            return alone
        asked = {
            "attention_mask": self._mask,
            "position_ids": _positions(self._mask)[:, -self._next.shape[1] :],
            "past_key_values": self._cache,
            "use_cache": True,
            "logits_to_keep": 1,
        }
        out = self._lm(input_ids=self._next, **{name: asked[name] for name in asked if name in self._accepted})
        self._cache = out.past_key_values
        logits: torch.Tensor = out.logits[:, -1]
        return logits

    def _shrink(self, keep: list[int]) -> None:
        self._group = [self._group[number] for number in keep]
        if keep:
            self._go_on(keep, [running.tokens[-1] for running in self._group])

    def _go_on(self, keep: list[int], tokens: Sequence[int]) -> None:
        """Some rows of the group go on, each with one more token."""
        rows = torch.tensor(keep, device=self._device)
        if self._uses_cache and len(keep) < len(self._mask):
            self._cache.batch_select_indices(rows)
        mask = self._mask[rows]
        self._mask = torch.cat([mask, mask.new_ones(len(keep), 1)], dim=1)
        latest = torch.tensor([[token] for token in tokens], device=self._device)
        self._next = latest if self._uses_cache else torch.cat([self._next[rows], latest], dim=1)

    @torch.no_grad()
    def _choose_way(self, model: str) -> None:
        """In groups with a cache; else one by one; else without a cache: the first that equals the model's own forward."""
        wanted = 1 if counts_places(self._lm.config) else self._max_concurrent
        for group, cache in dict.fromkeys(((wanted, True), (1, True), (1, False))):
            alone, self._max_concurrent, self._uses_cache = group < self._max_concurrent, group, cache
            if self._decodes_as_its_forward():
                if alone or not cache:
                    reason = f"{type(self._lm).__name__} answers otherwise in company" + (
                        "" if cache else " and with a cache"
                    )
                    log.warning("samples are decoded one by one", extra={"model": model, "reason": reason})
                return
        raise ModelError(
            f"{model}: {type(self._lm).__name__} gives other logits when its forward is repeated; expected the same. Take "
            "rollout.engine vllm, or another family of models"
        )

    def _decodes_as_its_forward(self) -> bool:
        rows, positions = len(self._lm.get_input_embeddings().weight), longest_alike(self._lm.config)
        prompts = [tuple(token % rows for token in prompt[: positions and positions - 2]) for prompt in TRIAL]
        groups = [prompts] if self._max_concurrent > 1 else [[prompt] for prompt in prompts]
        tolerance = TOLERANCE.get(self._lm.dtype, 0.1)
        try:
            return all(self._trial(group) <= tolerance for group in groups)
        except FAMILY_ERRORS as error:  # without such a cache, or one that rows cannot be taken from
            log.info("a way to decode that this family lacks", extra={"reason": str(error)})
            return False
        finally:
            self._cache = None

    def _trial(self, prompts: Sequence[Sequence[int]]) -> float:
        """How far decoding two tokens, with a row leaving in between, is from the model's own forward."""
        self._next, self._mask = self._left_padded(prompts)
        self._cache = None
        first = self._forward()
        keep = [0, 2] if len(prompts) > 2 else [0]
        self._go_on(keep, [prompts[row][0] for row in keep])
        second = self._forward()
        longer = [(*prompts[row], prompts[row][0]) for row in keep]
        expected = [self._own_logits(prompt) for prompt in [*prompts, *longer]]
        return apart(torch.cat([first, second]).float(), torch.stack(expected).float())

    def _own_logits(self, prompt: Sequence[int]) -> torch.Tensor:
        ids = torch.tensor([list(prompt)], device=self._device)
        logits: torch.Tensor = self._lm(input_ids=ids).logits[0, -1]
        return logits

    def _end(self, running: _Running) -> str | None:
        if running.tokens[-1] in self._sampling.eos_token_ids:
            return "stop"
        if self._tokenizer is not None:
            text = self._tokenizer.decode(running.tokens)
            if any(stop in text for stop in self._sampling.stop):
                return "stop"
        return "length" if len(running.tokens) == self._sampling.max_new_tokens else None

    def _sample(self, running: _Running, reason: str) -> Sample:
        request = running.request
        tokens, log_probs = tuple(running.tokens), tuple(running.log_probs)
        return Sample(request.key, request.prompt_tokens, tokens, log_probs, reason, ((self.version, len(tokens)),))

    def load_weights(
        self, tables: Sequence[Bucket], names: Sequence[str], *, version: int, partial: bool = False
    ) -> None:
        """Replace weights; see `RolloutEngine`."""
        self._weights.replaced(partial=partial)
        found = dict(tensors_of(tables))
        if odd := sorted(set(found) ^ set(names)):
            raise WeightError(f"weight version {version} lacks or adds {len(odd)} tensors, e.g. {odd[0]}")
        take_over(self._lm, found, partial=partial)
        self._weights.arrived(version)

    def forget(self) -> None:
        """Have no version any more; see `RolloutEngine`."""
        self._weights.forget()

    def abort(self) -> None:
        """Drop all running samples; see `RolloutEngine`."""
        self._waiting, self._group, self._cache = [], [], None

    @torch.no_grad()
    def probe(self, tokens: Sequence[int]) -> list[float]:
        """Log-probs of tokens[1:]; see `RolloutEngine`."""
        ids = torch.tensor([list(tokens)], device=self._device)
        log_probs = torch.log_softmax(self._lm(input_ids=ids).logits[0, :-1].float(), dim=-1)
        values: list[float] = log_probs.gather(1, ids[0, 1:, None])[:, 0].tolist()
        return values

    @torch.no_grad()
    def rate(self, prompts: Sequence[Sequence[int]], choices: Sequence[int]) -> list[list[float]]:
        """How likely each of some tokens is to come next, given that one of them does: [prompts][choices], sums 1.

        Raises:
            NumbersError: one of them is not finite.
        """
        found: list[list[float]] = []
        for start in range(0, len(prompts), self._max_concurrent):
            self._next, self._mask = self._left_padded(prompts[start : start + self._max_concurrent])
            self._cache = None
            found += torch.softmax(self._forward()[:, list(choices)].float(), dim=-1).tolist()
        self._cache = None
        if not np.isfinite(found).all():
            raise NumbersError("the model's ratings are not finite; expected probabilities: its weights may hold NaN")
        return found

    def sleep(self) -> None:
        """Move the model to host memory; see `RolloutEngine`."""
        self._weights.forget()
        self._lm.to("cpu")
        self._cache = None

    def wake(self) -> None:
        """Move it back."""
        self._lm.to(self._device)

    def check(self) -> None:
        """Nothing but this process can die."""

    def close(self) -> None:
        """Nothing outlives this process."""


def _positions(mask: torch.Tensor) -> torch.Tensor:
    """Position of each token among those that the mask lets through."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def truncated_log_probs(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Log-probs [vocab] after temperature, then top-k, then top-p (Holtzman et al. 2020, arXiv:1904.09751), renormalised."""
    logits = logits / sampling.temperature
    if sampling.top_k:
        kth = torch.topk(logits, min(sampling.top_k, len(logits))).values[-1]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if sampling.top_p < 1.0:
        ordered, order = torch.sort(logits, descending=True)
        before = torch.softmax(ordered, -1).cumsum(-1) - torch.softmax(ordered, -1)
        logits = logits.index_fill(0, order[before >= sampling.top_p], -torch.inf)
    return torch.log_softmax(logits, dim=-1)
