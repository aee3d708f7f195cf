"""Whether an engine says of a folder's model what transformers says: the probe of engines that no learner feeds.

Rollout workers are compared with the learner at each version that brings a probe. An engine that answers from a folder's own
weights, for an evaluation or for people, has nobody to be compared with but transformers, in its process, before it is built.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from rlhf_dist.errors import ModelError
from rlhf_dist.models import load_policy
from rlhf_dist.rollout.engine import RolloutEngine

LENGTH = 32
TOLERANCE = {"float32": 1e-3}
"""Largest mean difference of log-probs, in nats, by dtype; as of `RLJob.probe_tolerance`."""
HALF_TOLERANCE = 0.1


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
        difference = float(np.abs(np.asarray(engine.probe(self.tokens)) - np.asarray(self.log_probs)).mean())
        most = TOLERANCE.get(self.dtype, HALF_TOLERANCE)
        if not difference <= most:  # so that a NaN fails it
            raise ModelError(
                f"{self.model}: {type(engine).__name__}'s log-probs differ from transformers' by {difference:.3g} nats in the "
                f"mean; expected at most {most:g}. The engine computes this model otherwise: take rollout.engine transformers"
            )
