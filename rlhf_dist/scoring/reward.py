"""The reward actor's scorer: all rewards added up, under rules that cap the sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from rlhf_dist.config import FunctionReward, ModelReward, RemoteReward, Reward, Safety
from rlhf_dist.models import load_tokenizer
from rlhf_dist.models.host_copy import HostCopy
from rlhf_dist.scoring.answers import Answers, Component, Failures
from rlhf_dist.scoring.functions import RuleReward
from rlhf_dist.scoring.hosts import host_of
from rlhf_dist.scoring.remote import ServerReward
from rlhf_dist.scoring.reward_models import LearnedReward
from rlhf_dist.scoring.safety import Rules
from rlhf_dist.scoring.told import ToldOf
from rlhf_dist.store.row import Row


class RewardScorer:
    """score = sum of weight x component, at most `safety.cap` where a rule is broken; every part is written beside it."""

    writer = "reward"

    def __init__(  # noqa: PLR0913 - each is a setting or a place of its own
        self,
        rewards: Sequence[Reward],
        safety: Safety,
        tokenizer: str,
        *,
        dtype: str,
        batch_tokens: int,
        device: str,
        attention: str = "sdpa",
        told: pa.Table | None = None,
        processes: int = 1,
    ) -> None:
        """Load everything.

        Args:
            rewards: what is added up; weight 0 is only logged.
            safety: the rules.
            tokenizer: folder of the policy, whose tokens the answers are.
            dtype: torch's name of the reward models' dtype.
            batch_tokens: most tokens of a forward pass.
            device: where models go that are not cut.
            attention: their attention kernels.
            processes: over which reward models are cut.
            told: what functions and servers are told of prompts' rows (`told_of`), if any asks.
        """
        self._host = host_of(device, processes)

        def load(reward: Reward) -> Component:
            if isinstance(reward, ModelReward):
                shared: dict[str, Any] = {"dtype": dtype, "attention": attention, "batch_tokens": batch_tokens}
                return LearnedReward(reward, self._host, **shared)
            if isinstance(reward, FunctionReward):
                return RuleReward(reward)
            assert isinstance(reward, RemoteReward)
            return ServerReward(reward)

        self._weighted = [(reward.weight, load(reward)) for reward in rewards]
        self._rules, self._cap = Rules(safety, device=device), safety.cap
        self._lodging = HostCopy(self._rules.models)
        self._tokenizer = load_tokenizer(tokenizer)
        self._told = None if told is None else ToldOf(told)

    def score(self, rows: Sequence[Row], failures: Failures | None = None) -> dict[str, list[Any]]:
        """Columns `score` and `score_parts`, in the order of the rows; NaN where a reward failed.

        Args:
            rows: what is scored.
            failures: takes the rows without a score; None: there may be none.

        Raises:
            RewardError: more rows failed than may, or a server is down.
        """
        answers = Answers(rows, self._tokenizer, failures or Failures(), self._told)
        parts = dict[str, Sequence[float | None]]()
        for _, component in self._weighted:
            said = component.score(answers)
            _check_finite(answers, said)
            parts |= said
        totals = self._totals(answers, parts)
        _check_finite(answers, {"score": totals})
        verdicts = self._rules.verdicts(answers)
        scores = [
            min(total, self._cap) if unsafe else total for total, unsafe in zip(totals, verdicts.unsafe, strict=True)
        ]
        parts |= verdicts.by_name()
        return {
            "score": [float("nan") if n in answers.failures.causes else score for n, score in enumerate(scores)],
            "score_parts": [
                [(name, each) for name, each in zip(parts, row, strict=True) if each is not None]
                for row in zip(*parts.values(), strict=True)
            ],
        }

    def _totals(self, answers: Answers, parts: Mapping[str, Sequence[float | None]]) -> list[float]:
        """Weighted sums of what was said of each answer; one of which no reward with a weight says anything has failed."""
        counted = [(component.name, weight) for weight, component in self._weighted if weight]
        totals = [0.0] * len(answers.rows)
        for number in range(len(totals)):
            own = [(weight, said) for name, weight in counted if (said := parts[name][number]) is not None]
            totals[number] = sum(weight * said for weight, said in own)
            if counted and not own and number not in answers.failures.causes:
                names = ", ".join(name for name, _ in counted)
                answers.fail(
                    number, names, "says None, and no other reward has a score; expected a number of one of them"
                )
        return totals

    def offload(self) -> None:
        """Give the device's memory back until `reload`: that of reward models and of the safety classifier."""
        self._lodging.leave()
        self._host.offload()

    def reload(self) -> None:
        """Be ready to score again."""
        self._lodging.come_back()
        self._host.reload()

    def close(self) -> None:
        """End the processes of functions and models; another thread may be waiting for them."""
        self._host.close()
        for _, component in self._weighted:
            if isinstance(component, RuleReward):
                component.close()


def _check_finite(answers: Answers, said: Mapping[str, Sequence[float | None]]) -> None:
    """Fail answers whose numbers are not finite as the column's float32: 1e39 is finite, and infinite there."""
    for name, values in said.items():
        with np.errstate(over="ignore"):
            finite = np.isfinite(np.asarray([0.0 if each is None else each for each in values], np.float32))
        for number in np.flatnonzero(~finite).tolist():
            if number not in answers.failures.causes:
                answers.fail(number, name, f"it is {values[number]:g}; expected a finite number, as float32")
