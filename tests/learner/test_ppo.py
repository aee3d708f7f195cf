"""The PPO update on real torch modules with a plain optimiser in DeepSpeed's place."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from rlhf_dist.algorithms.advantages import gae
from rlhf_dist.config import PPO
from rlhf_dist.data.packing import plan_micro_batches
from rlhf_dist.learner.ppo import Models, update
from rlhf_dist.learner.rows import RankRows, to_experience
from rlhf_dist.models import PolicyModel, ValueModel, response_positions

SHAPE: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


class PlainTrained:
    """`TrainedModel`'s contract: gradients add up over `backward`, `step` applies and clears them."""

    device = torch.device("cpu")

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module
        self.optimizer = torch.optim.SGD(module.parameters(), lr=0.05)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self.module(*arguments, **options)

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def step(self) -> dict[str, float]:
        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1e9)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {"grad_norm": float(norm), "lr": 0.05}


def models(*, value_head: bool = False) -> Models:
    torch.manual_seed(0)
    policy = PolicyModel(LlamaForCausalLM(LlamaConfig(**SHAPE)), value_head=value_head)
    critic = ValueModel(LlamaForSequenceClassification(LlamaConfig(**SHAPE, num_labels=1, pad_token_id=0)))
    return Models(PlainTrained(policy), None if value_head else PlainTrained(critic))


def data(count: int = 8) -> RankRows:
    rng = np.random.default_rng(0)
    answers = [int(rng.integers(2, 12)) for _ in range(count)]
    return RankRows(
        [rng.integers(1, 61, size=4 + n).astype(np.int32) for n in answers],
        [response_positions(4, n) for n in answers],
        rng.normal(size=count).astype(np.float32),
        [rng.normal(-4, 0.1, size=n).astype(np.float32) for n in answers],
        [rng.normal(-4, 0.1, size=n).astype(np.float32) for n in answers],
    )


def run(
    settings: PPO, *, budget: int, row_tokens: int, reuse: bool = False, **options: Any
) -> tuple[Models, dict[str, float]]:
    rows = data()
    lengths = [len(x) for x in rows.sequences]
    (micros,) = plan_micro_batches(lengths, ranks=1, micro_batch_tokens=budget, row_tokens=row_tokens, hidden=32)
    mini = [to_experience(rows, micro, torch.device("cpu")) for micro in micros]
    trained = models(**options)
    facts = update(
        trained, [mini], settings, kl_coef=0.1, reuse_rollout_log_probs=reuse, ranks=1, reduce=lambda vector: vector
    )
    return trained, facts


@pytest.mark.parametrize(("budget", "row_tokens"), [(16, 0), (40, 0), (64, 32), (10_000, 48)])
@pytest.mark.parametrize("value_head", [False, True])
def test_the_update_does_not_depend_on_micro_batches_or_packing(budget: int, row_tokens: int, value_head: bool) -> None:
    settings = PPO(epochs=2, entropy_coef=0.01)
    one, one_facts = run(settings, budget=10_000, row_tokens=0, value_head=value_head)
    other, other_facts = run(settings, budget=budget, row_tokens=row_tokens, value_head=value_head)
    for a, b in zip(one.policy.module.parameters(), other.policy.module.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    assert other_facts == pytest.approx(one_facts, abs=1e-4)


def test_advantages_returns_and_kl_are_those_of_the_formulas_on_the_whole_batch() -> None:
    settings = PPO(whiten_advantages=True, gae_lambda=0.9)
    rows = data()
    lengths = [len(x) for x in rows.sequences]
    (micros,) = plan_micro_batches(lengths, ranks=1, micro_batch_tokens=40, row_tokens=0, hidden=32)
    mini = [to_experience(rows, micro, torch.device("cpu")) for micro in micros]
    trained = models()
    facts = update(trained, [mini], settings, kl_coef=0.1, reuse_rollout_log_probs=True, ranks=1, reduce=lambda v: v)
    raw = []
    for micro in mini:
        kl = micro.rollout_log_probs - micro.ref_log_probs
        rewards = -0.1 * kl
        ends = micro.lengths.cumsum(0) - 1
        rewards[ends] += micro.scores
        advantages, returns = gae(rewards, micro.values, micro.lengths, gamma=1.0, lam=0.9)
        torch.testing.assert_close(micro.returns, returns)
        raw.append(advantages)
    whole = torch.cat(raw)
    expected = (whole - whole.mean()) / whole.std(unbiased=False)
    torch.testing.assert_close(torch.cat([micro.advantages for micro in mini]), expected, atol=1e-4, rtol=1e-4)
    kl_sum = sum(float((a - b).sum()) for a, b in zip(rows.rollout_log_probs, rows.ref_log_probs, strict=True))
    assert facts["objective/kl"] == pytest.approx(kl_sum / 8, abs=1e-4)
    assert facts["objective/scores"] == pytest.approx(float(rows.scores.mean()), abs=1e-5)
    assert facts["actor/ppo_kl"] == 0.0, "the ratio is one by construction in a single step"


def test_epochs_stop_early_once_the_policy_has_moved_too_far() -> None:
    _, free = run(PPO(epochs=6), budget=10_000, row_tokens=0)
    _, bounded = run(PPO(epochs=6, max_policy_kl=1e-9), budget=10_000, row_tokens=0)
    assert free["actor/epochs"] == 6
    assert bounded["actor/epochs"] == 2


def test_good_answers_become_likelier_and_bad_ones_less_likely() -> None:
    rows = data()
    rows.scores[:] = [1, -1, 1, -1, 1, -1, 1, -1]
    micro = [[[i] for i in range(8)]]
    before = to_experience(rows, micro[0], torch.device("cpu"))
    trained = models()
    with torch.no_grad():
        old = trained.policy(before.packed)[0]
    update(trained, [[before]], PPO(), kl_coef=0.0, reuse_rollout_log_probs=True, ranks=1, reduce=lambda v: v)
    with torch.no_grad():
        moved = trained.policy(before.packed)[0] - old
    sign = torch.repeat_interleave(torch.tensor(rows.scores), before.lengths)
    assert float((moved * sign).sum()) > 0
