"""The entropy's coefficient."""

from __future__ import annotations

import math

from rlhf_dist.algorithms.bounds import LEAST, MOST


class EntropyCoefficient:
    """Dual ascent on a target entropy, in logarithms: log c += lr (target - H), within `LEAST` and `MOST`.

    The temperature of soft actor-critic (Haarnoja et al. 2018, arXiv:1812.05905, equation 18), and the adaptive bonus of
    Skywork-OR1 (arXiv:2505.22312) without its steps of fixed size. Without a target the coefficient stays as it is.
    """

    def __init__(self, coefficient: float, *, target: float | None, lr: float) -> None:
        """Start from `coefficient`; `target` in nats per token."""
        self.coefficient, self.target, self.lr = coefficient, target, lr

    def update(self, entropy: float) -> None:
        """Move the coefficient after a batch of mean entropy `entropy`, nats per token; what is no number moves nothing."""
        if self.target is None or not math.isfinite(entropy):
            return
        moved = self.coefficient * math.exp(self.lr * (self.target - entropy))
        self.coefficient = min(max(moved, LEAST), MOST)
