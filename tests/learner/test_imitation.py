"""PPO-ptx against cross-entropy as torch computes it, one demonstration at a time."""

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_dist.data.demonstrations import Demonstration, demonstration_set
from rlhf_dist.data.packing import MicroBatch
from rlhf_dist.learner.imitation import Imitation, imitate
from rlhf_dist.models import PolicyModel
from tests.learner.test_policy_update import SHAPE, PlainTrained

ROWS = [
    Demonstration("a", [1, 7, 9, 22, 5, 2], [2, 3, 4]),
    Demonstration("b", [1, 8, 30, 2], [2]),
    Demonstration("c", [1, 4, 6, 11, 12, 13, 2], [1, 2, 3, 4, 5]),
]
TABLE = demonstration_set(ROWS).table


def policy(temperature: float = 1.0) -> PlainTrained:
    torch.manual_seed(0)
    return PlainTrained(PolicyModel(LlamaForCausalLM(LlamaConfig(**SHAPE)), temperature=temperature))


def gradients(trained: PlainTrained) -> list[torch.Tensor]:
    return [parameter.grad.clone() for parameter in trained.module.parameters() if parameter.grad is not None]


def cross_entropy(trained: PlainTrained, row: Demonstration) -> torch.Tensor:
    lm = trained.module.lm
    hidden = lm.base_model(torch.tensor([row.tokens])).last_hidden_state[0, row.selected]
    wanted = torch.tensor([row.tokens[at + 1] for at in row.selected])
    return F.cross_entropy(hidden @ lm.get_output_embeddings().weight.T, wanted, reduction="sum")


def test_it_adds_the_coefficient_times_the_mean_cross_entropy_of_the_steps_tokens() -> None:
    trained, other = policy(temperature=0.7), policy()
    shown = Imitation([], [[[[0]]], [[[0, 2]], [[1]]]], [3.0, 9.0])
    for each in (trained, other):
        (7 * sum(parameter.sum() for parameter in each.module.parameters())).backward()
    loss, tokens = imitate(trained, shown, TABLE, 1, coefficient=0.5, ranks=1)
    expected = sum(cross_entropy(other, row) for row in ROWS)
    (0.5 * expected / 9).backward()
    assert tokens == 9.0
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    for ours, theirs in zip(gradients(trained), gradients(other), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert trained.module.temperature == 0.7


def test_two_ranks_average_to_what_one_learns() -> None:
    def learnt(micros: list[MicroBatch], ranks: int) -> list[torch.Tensor]:
        trained = policy()
        imitate(trained, Imitation([], [micros], [9.0]), TABLE, 0, coefficient=2.0, ranks=ranks)
        return gradients(trained)

    parts = zip(learnt([[[0]]], 2), learnt([[[2], [1]]], 2), learnt([[[0, 1, 2]]], 1), strict=True)
    for first, second, whole in parts:
        torch.testing.assert_close((first + second) / 2, whole, atol=1e-6, rtol=1e-4)
