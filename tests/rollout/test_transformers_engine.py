import pytest
import torch

from rlhf_dist.records import RowKey, Sampling, sample_seed
from rlhf_dist.rollout.transformers_engine import truncated_log_probs


def slow_truncation(logits: list[float], temperature: float, top_p: float, top_k: int) -> list[float]:
    """Sort, keep the k likeliest, then the smallest set whose mass reaches top_p, renormalise."""
    weights = torch.softmax(torch.tensor(logits) / temperature, -1).tolist()
    order = sorted(range(len(weights)), key=lambda i: -weights[i])[: top_k or None]
    total = sum(weights[i] for i in order)
    kept, mass = [], 0.0
    for i in order:
        if mass >= top_p:
            break
        kept.append(i)
        mass += weights[i] / total
    whole = sum(weights[i] for i in kept)
    return [weights[i] / whole if i in kept else 0.0 for i in range(len(weights))]


@pytest.mark.parametrize("top_p", [1.0, 0.8, 0.3])
@pytest.mark.parametrize("top_k", [0, 1, 4])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_truncation_equals_the_slow_obvious_version(top_p: float, top_k: int, temperature: float) -> None:
    torch.manual_seed(2)
    logits = torch.randn(12)
    sampling = Sampling(8, temperature, top_p, top_k, (), (0,))
    found = truncated_log_probs(logits, sampling).exp().tolist()
    assert found == pytest.approx(slow_truncation(logits.tolist(), temperature, top_p, top_k), abs=1e-5)


def test_seeds_differ_by_each_of_their_parts_and_by_nothing_else() -> None:
    base = sample_seed(1, RowKey(2, 3, 4))
    assert base == sample_seed(1, RowKey(2, 3, 4))
    others = [sample_seed(0, RowKey(2, 3, 4)), *(sample_seed(1, RowKey(*k)) for k in ((0, 3, 4), (2, 0, 4), (2, 3, 0)))]
    assert len({base, *others}) == 5
    assert all(0 <= seed < 2**63 for seed in (base, *others))
