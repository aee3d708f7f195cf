"""What an update is told: the run's objective, and what belongs to this update and to no other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rlhf_dist.algorithms.baselines import BASELINES, Baseline
from rlhf_dist.algorithms.own import EXAMPLE, check_own_answers, check_own_surrogate, function_at
from rlhf_dist.algorithms.scales import SCALES, Scale
from rlhf_dist.algorithms.surrogates import Surrogate, surrogate_of
from rlhf_dist.config import RL, Algorithm, Correction, RLJob


@dataclass(frozen=True)
class Objective:
    """A run's settings of what is estimated and minimised, and in which steps."""

    algorithm: Algorithm
    correction: Correction
    rl: RL
    longest: int
    """Most tokens that an answer may have."""
    own_reference: bool = False
    """The policy with its adapters off is the reference."""

    @classmethod
    def of(cls, config: RLJob) -> Objective:
        """As a run's config has it."""
        return cls(config.algorithm, config.correction, config.rl, config.rollout.max_new_tokens)

    @property
    def baseline(self) -> Baseline:
        """What rewards are compared with, where there is no critic."""
        name = self.algorithm.baseline
        return BASELINES[name] if name in BASELINES else function_at(name, key="algorithm.baseline")

    @property
    def scale(self) -> Scale:
        """What advantages are divided by."""
        name = self.algorithm.scale
        return SCALES[name] if name in SCALES else function_at(name, key="algorithm.scale")

    @property
    def surrogate(self) -> Surrogate:
        """What the policy minimises."""
        return surrogate_of(self.algorithm)


@dataclass(frozen=True)
class Now:
    """What belongs to one update."""

    kl_coef: float
    """Weight of the KL to the reference."""
    entropy_coef: float = 0.0
    """Weight of the entropy."""
    ratio_is_one: bool = False
    """The only optimiser step sees the policy that generated the samples, untruncated: the ratio is 1 by construction, and a
    pass for old log-probs would compute what is known."""
    iteration: int = 0
    seed: int = 0
    running_mean: float = 0.0
    """Of the rewards of earlier iterations."""
    given: Mapping[int, float] = field(default_factory=dict)
    """By prompt id, what was found for it by itself: its greedy answer's score, or V*."""
    critic_only: bool = False
    """The critic warms up: the policy stays as it is."""


def check_own(algorithm: Algorithm) -> None:
    """Try the functions of one's own that the settings name on an example.

    Raises:
        ConfigError: one is not there, raises, or returns another shape than documented; names the key.
    """
    if algorithm.baseline != "critic" and algorithm.baseline not in BASELINES:
        check_own_answers(algorithm.baseline, key="algorithm.baseline", arguments=(EXAMPLE,))
    if algorithm.scale not in SCALES:
        centred = EXAMPLE.rewards - EXAMPLE.rewards.mean()
        check_own_answers(algorithm.scale, key="algorithm.scale", arguments=(centred, EXAMPLE))
    if ":" in algorithm.surrogate:
        check_own_surrogate(algorithm.surrogate, key="algorithm.surrogate")
