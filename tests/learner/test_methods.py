"""Every method's update is the same for one rank and two, any micro-batches, packed or not, in any order of rows."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_dist.config import METHODS, RL, Algorithm, Correction
from rlhf_dist.learner.experience import PackedExperience
from rlhf_dist.learner.objective import Now, RLObjective
from rlhf_dist.learner.policy_update import Models, update
from rlhf_dist.learner.recorder import Ranks
from rlhf_dist.learner.rows import RankRows, to_experience
from tests.learner.test_policy_update import PlainTrained, data, micro_batches, models

BEYOND: dict[str, dict[str, Any]] = {
    "reward KL and entropy": {"method": "rloo", "entropy_coef": 0.02, "entropy_in": "reward"},
    "exact k3 in the loss": {"method": "dr_grpo", "kl_coef": 0.1, "kl_in": "loss", "kl_estimator": "k3"},
    "prompt mean, batch scale": {"method": "dr_grpo", "aggregate": "prompt_mean", "scale": "batch"},
    "batch mean": {"method": "reinforce", "baseline": "batch_mean", "entropy_coef": 0.01},
    "masked, dual clip, ramp": {"method": "dapo", "truncated": "mask", "dual_clip": 3.0},
    "lambdas": {"method": "ppo", "gae_length_alpha": 0.4, "positive_nll_coef": 0.1},
    "token weights": {"method": "grpo", "weight": "token", "veto": 1e-4},
    "answer weights": {"method": "rloo", "weight": "sequence", "outside": "zero", "floor": 0.1, "reject": (0.8, 1.2)},
    "ratios from the engine": {"method": "ppo", "proximal": "rollout"},
}
CASES = {**{name: {"method": name} for name in METHODS}, **BEYOND}


def aim(choices: dict[str, Any]) -> RLObjective:
    correction = {name: value for name, value in choices.items() if name in Correction.model_fields}
    algorithm = {name: value for name, value in choices.items() if name not in correction}
    rl = RL(epochs=2, mini_batches=2)
    return RLObjective(Algorithm.model_validate(algorithm), Correction.model_validate(correction), rl, longest=12)


def rows() -> RankRows:
    """Eight answers to two prompts and one more, with all that any method asks for."""
    found, rng = data(), np.random.default_rng(3)
    lengths = [len(each) for each in found.predicting]
    teacher = [rng.normal(-4, 0.3, size=n).astype(np.float32) for n in lengths]
    near = [(policy + rng.normal(0, 0.2, size=len(policy))).astype(np.float32) for policy in old_log_probs(found)]
    groups = np.asarray([0, 0, 0, 1, 1, 1, 2, 2])
    cut = np.asarray([False, True, False, False, True, False, False, False])
    return RankRows(
        found.rows, found.rewards, near, found.ref_log_probs, teacher, cut, np.linspace(-1, 1, 3)[groups], groups,
        found.places, found.keys,
    )  # fmt: skip


def old_log_probs(found: RankRows) -> list[np.ndarray]:
    policy = models("none").policy
    with torch.no_grad():
        batch = to_experience(found, [[i] for i in range(len(found.rows))], policy.device)
        flat = policy(batch.packed)[0]
    return [each.numpy() for each in flat.split(batch.lengths.tolist())]


MINIS = ([0, 1, 2, 6, 7], [3, 4, 5])
"""Whole prompts."""


def packed(found: RankRows, minis: Any, *, tokens: int, row_tokens: int) -> list[list[PackedExperience]]:
    made = []
    for part in minis:
        sizes = [len(found.rows[i].tokens) for i in part]
        micros = micro_batches(sizes, tokens, row_tokens) if part else []
        made.append([to_experience(found, [[part[i] for i in row] for row in m], torch.device("cpu")) for m in micros])
    return made


def parameters(trained: Models) -> torch.Tensor:
    both = [each for each in (trained.policy, trained.critic) if each is not None]
    return torch.cat([each.detach().flatten() for model in both for each in model.module.parameters()])


class Together:
    """Two ranks in two threads, which add up vectors, or find their largest, at a barrier."""

    def __init__(self) -> None:
        self.barrier, self.slots = threading.Barrier(2, timeout=60), [torch.zeros(0)] * 2

    def join(self, rank: int, own: torch.Tensor, how: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Any:
        self.slots[rank] = own
        self.barrier.wait()
        found = how(*self.slots)
        self.barrier.wait()
        return found


class OneOfTwo(PlainTrained):
    """Averages gradients over ranks, as DeepSpeed does."""

    def __init__(self, module: torch.nn.Module, rank: int, together: Together) -> None:
        super().__init__(module)
        self.rank, self.together = rank, together

    def step(self) -> dict[str, float] | None:
        for each in self.module.parameters():
            own = torch.zeros_like(each) if each.grad is None else each.grad
            each.grad = self.together.join(self.rank, own, torch.add) / 2
        return super().step()


def on_two_ranks(choices: dict[str, Any], parts: Any) -> torch.Tensor:
    """Of each rank, its rows of each mini-batch."""
    together, found = Together(), [torch.zeros(0)] * 2
    made = [(models(critic_of(choices)), packed(rows(), part, tokens=40, row_tokens=30)) for part in parts]

    def work(rank: int) -> None:
        plain, batch = made[rank]
        policy = OneOfTwo(plain.policy.module, rank, together)
        critic = None if plain.critic is None else OneOfTwo(plain.critic.module, rank, together)
        ranks = Ranks(
            2,
            lambda own: together.join(rank, own, torch.add),
            lambda own: together.join(rank, own, torch.maximum),
        )
        trained = Models(policy, critic)
        learn(trained, batch, choices, ranks)
        found[rank] = parameters(trained)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    torch.testing.assert_close(found[0], found[1], atol=1e-7, rtol=0)
    return found[0]


def critic_of(choices: dict[str, Any]) -> str:
    return "model" if aim(choices).algorithm.has_critic else "none"


def learn(trained: Models, batch: Any, choices: dict[str, Any], ranks: Ranks | None = None) -> dict[str, float]:
    objective = aim(choices)
    now = Now(kl_coef=objective.algorithm.kl_coef, entropy_coef=objective.algorithm.entropy_coef, running_mean=0.3)
    return update(trained, batch, objective, now, ranks=ranks or Ranks()).facts


@pytest.mark.parametrize("name", CASES)
def test_the_update_depends_on_neither_ranks_nor_micro_batches_nor_packing_nor_order(name: str) -> None:
    choices = CASES[name]
    whole, cut, turned = (models(critic_of(choices)) for _ in range(3))
    start = parameters(whole)
    facts = learn(whole, packed(rows(), MINIS, tokens=10_000, row_tokens=0), choices)
    expected = parameters(whole)
    assert float((expected - start).abs().max()) > 1e-4, "it learns something"
    other = learn(cut, packed(rows(), MINIS, tokens=24, row_tokens=24), choices)
    torch.testing.assert_close(parameters(cut), expected, atol=1e-5, rtol=0)
    counted = ("clipfrac", "fraction", "log_ratio_cut")
    assert {key: value for key, value in other.items() if not key.endswith(counted)} == pytest.approx(
        {key: value for key, value in facts.items() if not key.endswith(counted)}, rel=2e-3, abs=2e-4
    )
    learn(turned, packed(rows(), [part[::-1] for part in MINIS], tokens=40, row_tokens=30), choices)
    torch.testing.assert_close(parameters(turned), expected, atol=1e-5, rtol=0)
    two = on_two_ranks(choices, ([[0, 1, 2], [3, 4, 5]], [[6, 7], []]))
    torch.testing.assert_close(two, expected, atol=1e-5, rtol=0)
