"""The reward actor's scorer: all rewards added up, under rules that cap the sum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhf_dist.config import FunctionReward, ModelReward, RemoteReward, Reward, Safety
from rlhf_dist.models import load_tokenizer
from rlhf_dist.scoring.answers import Answers, Component
from rlhf_dist.scoring.functions import RuleReward
from rlhf_dist.scoring.remote import ServerReward
from rlhf_dist.scoring.reward_models import LearnedReward
from rlhf_dist.scoring.safety import Rules
from rlhf_dist.store.row import Row


class RewardScorer:
    """score = sum of weight x component, at most `safety.cap` where a rule is broken; every part is written beside it."""

    writer = "reward"

    def __init__(
        self,
        rewards: Sequence[Reward],
        safety: Safety,
        tokenizer: str,
        *,
        dtype: str,
        batch_tokens: int,
        device: str,
        attention: str = "sdpa",
    ) -> None:
        """Load everything.

        Args:
            rewards: what is added up; weight 0 is only logged.
            safety: the rules.
            tokenizer: folder of the policy, whose tokens the answers are.
            dtype: torch's name of the reward models' dtype.
            batch_tokens: most tokens of a forward pass.
            device: where models go.
            attention: their attention kernels.
        """

        def load(reward: Reward) -> Component:
            if isinstance(reward, ModelReward):
                return LearnedReward(reward, dtype=dtype, attention=attention, batch_tokens=batch_tokens, device=device)
            if isinstance(reward, FunctionReward):
                return RuleReward(reward)
            assert isinstance(reward, RemoteReward)
            return ServerReward(reward)

        self._weighted = [(reward.weight, load(reward)) for reward in rewards]
        self._rules, self._cap = Rules(safety, device=device), safety.cap
        self._tokenizer = load_tokenizer(tokenizer)

    def score(self, rows: Sequence[Row]) -> dict[str, list[Any]]:
        """Columns `score` and `score_parts`, in the order of the rows."""
        answers = Answers(rows, self._tokenizer)
        totals, parts = [0.0] * len(rows), dict[str, list[float]]()
        for weight, component in self._weighted:
            said = component.score(answers)
            parts |= said
            totals = [total + weight * own for total, own in zip(totals, said[component.name], strict=True)]
        verdicts = self._rules.verdicts(answers)
        scores = [
            min(total, self._cap) if unsafe else total for total, unsafe in zip(totals, verdicts.unsafe, strict=True)
        ]
        parts |= verdicts.by_name()
        return {
            "score": scores,
            "score_parts": [[*zip(parts, row, strict=True)] for row in zip(*parts.values(), strict=True)],
        }
