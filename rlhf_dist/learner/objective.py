"""What an update is told: the run's objective, and what belongs to this update and to no other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import torch

from rlhf_dist.algorithms.baselines import BASELINES, Baseline
from rlhf_dist.algorithms.scales import SCALES, Scale
from rlhf_dist.algorithms.surrogates import (
    Losses,
    Surrogate,
    clip,
    plain,
    sequence_clip,
    soft_gate,
    squared,
    weight_cap,
)
from rlhf_dist.config import RL, Algorithm, Correction, RLJob
from rlhf_dist.learner.own import EXAMPLE, check_own_answers, check_own_surrogate, function_at


@dataclass(frozen=True)
class RLObjective:
    """A run's settings of what is estimated and minimised, and in which steps."""

    algorithm: Algorithm
    correction: Correction
    rl: RL
    longest: int
    """Most tokens that an answer may have."""
    own_reference: bool = False
    """The policy with its adapters off is the reference."""

    @classmethod
    def of(cls, config: RLJob) -> RLObjective:
        """As a run's config has it."""
        longest, own = config.rollout.max_new_tokens, config.is_own_reference
        return cls(config.algorithm, config.correction, config.rl, longest, own)

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


def surrogate_of(algorithm: Algorithm) -> Surrogate:
    """The surrogate that settings ask for, its numbers bound.

    Raises:
        ConfigError: a function of one's own is not there.
    """
    high = algorithm.clip_ratio_high or algorithm.clip_ratio
    known: dict[str, Surrogate] = {
        "plain": plain,
        "clip": partial(clip, low=algorithm.clip_ratio, high=high, dual=algorithm.dual_clip),
        "sequence_clip": partial(sequence_clip, low=algorithm.clip_ratio, high=high),
        "weight_cap": partial(weight_cap, cap=algorithm.weight_cap),
        "soft_gate": partial(
            soft_gate,
            temperature=algorithm.gate_temperature,
            temperature_negative=algorithm.gate_temperature_negative,
        ),
        "squared": partial(squared, tau=algorithm.tau),
    }
    return known[algorithm.surrogate] if algorithm.surrogate in known else _of_ones_own(algorithm.surrogate)


def _of_ones_own(path: str) -> Surrogate:
    function = function_at(path, key="algorithm.surrogate")

    def surrogate(new: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, lengths: torch.Tensor) -> Losses:
        said = function(new, old, advantages, lengths)
        return said if isinstance(said, Losses) else Losses(said, torch.zeros_like(new, dtype=torch.bool))

    return surrogate
