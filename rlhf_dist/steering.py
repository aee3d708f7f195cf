"""What moves by itself from iteration to iteration: the coefficients of KL and entropy, and the running mean of rewards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pydantic import FiniteFloat

from rlhf_dist.algorithms.baselines import RunningMean
from rlhf_dist.algorithms.entropy import EntropyCoefficient
from rlhf_dist.algorithms.kl import AdaptiveKL
from rlhf_dist.config import Algorithm


@dataclass
class State:
    """Where a run is: what it needs, beside the models, to go on."""

    iteration: int
    """The next one."""
    kl_coef: FiniteFloat
    gold: list[FiniteFloat] = field(default_factory=list)
    """Mean gold score of every iteration so far, where one is watched."""
    rolled_back: int = 0
    """Roll-backs in a row up to now."""
    entropy_coef: FiniteFloat = 0.0
    rewards_total: FiniteFloat = 0.0
    """Of the running mean of rewards: its decayed sum, and weight."""
    rewards_weight: FiniteFloat = 0.0

    @classmethod
    def start(cls, algorithm: Algorithm) -> State:
        """The beginning."""
        return cls(0, algorithm.kl_coef, entropy_coef=algorithm.entropy_coef)

    def copy(self) -> State:
        """The same, whatever becomes of this one."""
        return replace(self, gold=[*self.gold])


class Steering:
    """The controllers of a run; they read and move its state."""

    def __init__(self, algorithm: Algorithm, state: State) -> None:
        """Go on from where the state is."""
        self._kl = AdaptiveKL(state.kl_coef, target=algorithm.kl_target, horizon=algorithm.kl_horizon)
        self._entropy = EntropyCoefficient(state.entropy_coef, target=algorithm.entropy_target, lr=algorithm.entropy_lr)
        self._rewards = RunningMean(algorithm.running_decay, total=state.rewards_total, weight=state.rewards_weight)
        self._per_token = algorithm.kl_target_per == "token"

    @property
    def running_mean(self) -> float:
        """Of the rewards of the iterations so far."""
        return self._rewards.value

    def move(self, state: State, facts: Mapping[str, float], *, samples: int) -> None:
        """Learn from what an iteration of so many samples says of itself; what it does not say moves nothing."""
        if "objective/kl" in facts:  # else nothing finite was found
            kl = facts["objective/kl"]
            self._kl.update(kl / facts["response_length/mean"] if self._per_token else kl, samples=samples)
        if "actor/entropy" in facts:
            self._entropy.update(facts["actor/entropy"])
        if "objective/rlhf_reward" in facts:
            self._rewards.update(facts["objective/rlhf_reward"])
        state.kl_coef, state.entropy_coef = self._kl.coefficient, self._entropy.coefficient
        state.rewards_total, state.rewards_weight = self._rewards.total, self._rewards.weight
