"""Which estimator of advantages and which surrogate loss a run uses: each section builds its own (`algorithms/`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from rlhf_dist.config.sections import Section

if TYPE_CHECKING:
    from rlhf_dist.algorithms import surrogates
    from rlhf_dist.algorithms.estimators import Estimator


class Gae(Section):
    """Generalised advantage estimation, with a critic (Schulman et al. 2016, arXiv:1506.02438)."""

    needs_values: ClassVar[bool] = True
    fewest_samples: ClassVar[int] = 1
    """Of each prompt."""

    kind: Literal["gae"] = Field("gae", description="with a critic")
    gamma: float = Field(1.0, ge=0, le=1, description="discount per token")
    gae_lambda: float = Field(0.95, ge=0, le=1, description="GAE's bias and variance trade-off")

    def build(self) -> Estimator:
        """The estimator."""
        from rlhf_dist.algorithms.estimators import GeneralisedAdvantages

        return GeneralisedAdvantages(self.gamma, self.gae_lambda)


class LeaveOneOut(Section):
    """RLOO: a sample's reward less the mean of its prompt's other samples (arXiv:2402.14740); without a critic."""

    needs_values: ClassVar[bool] = False
    fewest_samples: ClassVar[int] = 2

    kind: Literal["leave_one_out"] = Field(description="without a critic, from several samples of each prompt")

    def build(self) -> Estimator:
        """The estimator."""
        from rlhf_dist.algorithms.estimators import LeaveOneOutAdvantages

        return LeaveOneOutAdvantages()


class Clip(Section):
    """PPO's clipped surrogate (Schulman et al. 2017, arXiv:1707.06347, equation 7)."""

    kind: Literal["clip"] = Field("clip", description="clipped ratio")
    clip_ratio: float = Field(0.2, gt=0, lt=1, description="the ratio is clipped to 1 ± this")

    def build(self) -> surrogates.Surrogate:
        """The loss."""
        from rlhf_dist.algorithms.surrogates import ClippedSurrogate

        return ClippedSurrogate(self.clip_ratio)


def _gae_unless_said(value: Any) -> Any:
    return {"kind": "gae", **value} if isinstance(value, dict) else value


Advantage = Annotated[
    Annotated[Gae | LeaveOneOut, Field(discriminator="kind")],
    BeforeValidator(_gae_unless_said),
]
Surrogate = Clip
"""A second kind makes it a union, as `Advantage` is."""
