"""What is minimised: from log-probs and advantages to a loss, summed over tokens.

A mean inside a micro-batch would weigh tokens by how they were packed; sums divided by the global count do not depend on
ranks, micro-batches or packing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch


class Surrogate(Protocol):
    """The policy's loss on one micro-batch."""

    def __call__(
        self, new: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss, and what is worth knowing, both summed over tokens.

        Args:
            new: [tokens] log-probs under the policy being trained.
            old: [tokens] under the policy at the start of the update, no gradient.
            advantages: [tokens].
            lengths: [sequences], tokens of each.

        Returns:
            the summed loss, and sums by metric: `pg_clipfrac` becomes `actor/pg_clipfrac`, its mean over tokens.
        """


@dataclass(frozen=True)
class ClippedSurrogate:
    """The clipped surrogate, negated (Schulman et al. 2017, arXiv:1707.06347, equation 7)."""

    clip_ratio: float
    """Epsilon of the paper."""

    def __call__(
        self, new: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Sum of max(-A r, -A clip(r)), and the number of tokens where the clipped term is the larger."""
        assert new.shape == old.shape == advantages.shape, (new.shape, old.shape, advantages.shape)
        ratio = (new - old).exp()
        plain = -advantages * ratio
        clipped = -advantages * ratio.clamp(1 - self.clip_ratio, 1 + self.clip_ratio)
        return torch.maximum(plain, clipped).sum(), {"pg_clipfrac": (clipped > plain).sum().float()}
