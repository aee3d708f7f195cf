import pytest
import torch

from rlhf_dist.models import load_policy
from rlhf_dist.records import RowKey, Sampling, sample_seed
from rlhf_dist.rollout.transformers_engine import TransformersEngine, truncated_log_probs
from tests.runs import Folders


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


def test_ratings_do_not_depend_on_company_and_are_those_of_the_model(folders: Folders) -> None:
    sampling = Sampling(4, 1.0, 1.0, 0, (), (2,))
    engine = TransformersEngine(str(folders.policy), sampling, dtype="float32", max_concurrent=2)
    prompts, choices = [[1, 5], [1, 6, 7, 8], [1], [1, 9, 3], [1, 4]], [10, 20, 30]
    found = engine.rate(prompts, choices)
    assert len(found) == 5
    lm = load_policy(str(folders.policy), dtype=torch.float32)
    for prompt, rated in zip(prompts, found, strict=True):
        with torch.no_grad():
            logits = lm(input_ids=torch.tensor([prompt])).logits[0, -1, choices]
        assert rated == pytest.approx(torch.softmax(logits, -1).tolist(), abs=1e-5)
