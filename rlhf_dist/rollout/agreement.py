"""Whether an engine says of a folder's model what transformers says: the probe of engines that no learner feeds.

Rollout workers are compared with the learner at each version that brings a probe. An engine that answers from a folder's own
weights, for an evaluation or for people, has nobody to be compared with but transformers, in its process, before it is built.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from rlhf_dist.config import RLConfig
from rlhf_dist.errors import ModelError
from rlhf_dist.models import load_policy, read_config
from rlhf_dist.models.heads import with_exact_logits
from rlhf_dist.rollout.engine import RolloutEngine
from rlhf_dist.store.agreement import agreement

LENGTH = 32
TOLERANCE, HALF_TOLERANCE, ROUGH_TOLERANCE = 1e-3, 0.1, 0.2
"""Largest mean distance of log-probs, in nats: in fp32, in 16 bits, and where rounding alone may go further."""
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def tolerance(dtype: str, model: str) -> float:
    """How far an engine may be from a learner in the mean, in nats.

    In 16 bits a token near the border between two experts goes to one here and to the other there.
    """
    if dtype == "float32":
        return TOLERANCE
    text = read_config(model).get_text_config()
    chooses = any((getattr(text, name, None) or 0) > 1 for name in EXPERTS)
    return ROUGH_TOLERANCE if chooses else HALF_TOLERANCE


def probe_tolerance(config: RLConfig) -> float:
    """That of a run: as its settings say, or as its policy is."""
    if config.weights.probe_tolerance is not None:
        return config.weights.probe_tolerance
    asked = config.rollout.engine_args
    if any(str(asked.get(name, "")).startswith("fp8") for name in ("quantization", "kv_cache_dtype")):
        return ROUGH_TOLERANCE
    return tolerance(config.wire_dtype, config.policy)


@dataclass(frozen=True)
class Expected:
    """A short made-up text, and what transformers says of it."""

    model: str
    dtype: str
    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    """Of tokens[1:], in nats."""

    @classmethod
    @torch.no_grad()
    def by_transformers(cls, model: str, *, dtype: str, attention: str, device: str, longest: int) -> Expected:
        """Ask the folder's model, and forget it.

        Args:
            model: folder.
            dtype: torch's name of the dtype to compute in.
            attention: attention kernels.
            device: where to compute.
            longest: most tokens that the engine takes.

        Raises:
            ModelError: the folder holds no such model.
        """
        lm = with_exact_logits(load_policy(model, dtype=getattr(torch, dtype), attention=attention)).to(device).eval()
        rows = len(lm.get_input_embeddings().weight)
        ids = torch.from_numpy(np.random.default_rng(0).integers(0, rows, min(LENGTH, longest - 1))).to(device)
        log_probs = torch.log_softmax(lm(input_ids=ids[None]).logits[0, :-1].float(), -1)
        said = log_probs.gather(-1, ids[1:, None])[:, 0]
        return cls(model, dtype, tuple(ids.tolist()), tuple(said.tolist()))

    def check(self, engine: RolloutEngine) -> None:
        """Refuse an engine that computes the model otherwise.

        Raises:
            ModelError: names the model, the difference and a way out.
        """
        found, most = agreement(engine.probe(self.tokens), self.log_probs), tolerance(self.dtype, self.model)
        if not found.within(most):
            raise ModelError(
                f"{self.model}: {type(engine).__name__}'s log-probs differ from transformers' by {found.diff:.3g} nats in the "
                f"mean; expected at most {most:g}. The engine computes this model otherwise: take rollout.engine transformers"
            )
