"""How far apart two policies are, against a loop over answers."""

import math

import pytest
import torch

from rlhf_dist.config import Correction
from rlhf_dist.learner import mismatch
from rlhf_dist.learner.recorder import Ranks, Recorder

LENGTHS = torch.tensor([3, 1, 4])
GENERATOR = torch.Generator().manual_seed(0)
MU = -torch.rand(8, generator=GENERATOR) * 3
PI = MU + torch.randn(8, generator=GENERATOR) * 0.2


def told(settings: Correction, pi: torch.Tensor = PI) -> dict[str, float]:
    recorder = Recorder(Ranks())
    mismatch.record(recorder, pi, MU, LENGTHS, settings)
    return mismatch.completed(recorder.result())


@pytest.mark.parametrize("weight", ["none", "token", "sequence"])
def test_what_is_told_is_what_a_loop_finds(weight: str) -> None:
    found = told(Correction(weight=weight))  # type: ignore[arg-type]
    answers = [*zip(PI.split([3, 1, 4]), MU.split([3, 1, 4]), strict=True)]
    rhos = [math.exp(p - m) for p, m in zip(PI.tolist(), MU.tolist(), strict=True)]
    whole = [math.exp(float((p - m).sum())) for p, m in answers]
    weights = whole if weight == "sequence" else rhos
    mean, squares = sum(weights) / len(weights), sum(w * w for w in weights) / len(weights)
    differences = [abs(math.exp(p) - math.exp(m)) for p, m in zip(PI.tolist(), MU.tolist(), strict=True)]
    expected = {
        "rollout_corr/kl": float((MU - PI).mean()),
        "rollout_corr/k3_kl": sum(rho - 1 - math.log(rho) for rho in rhos) / 8,
        "rollout_corr/chi2_token": sum(rho * rho for rho in rhos) / 8 - 1,
        "rollout_corr/chi2_seq": sum(w * w for w in whole) / 3 - 1,
        "rollout_corr/training_ppl": sum(math.exp(-float(p.mean())) for p, _ in answers) / 3,
        "rollout_corr/rollout_ppl": sum(math.exp(-float(m.mean())) for _, m in answers) / 3,
        "rollout_corr/log_ppl_diff": sum(float((m - p).mean()) for p, m in answers) / 3,
        "rollout_corr/ppl_ratio": sum(math.exp(float((m - p).mean())) for p, m in answers) / 3,
        "rollout_corr/rollout_is_mean": mean,
        "rollout_corr/rollout_is_std": math.sqrt(squares - mean**2),
        "rollout_corr/rollout_is_eff_sample_size": mean**2 / squares,
        "rollout_corr/rollout_is_max": max(weights),
        "rollout_corr/rollout_is_min": min(weights),
        "rollout_corr/rollout_is_ratio_fraction_high": sum(w > 2 for w in weights) / len(weights),
        "rollout_corr/rollout_is_ratio_fraction_low": sum(w < 0.5 for w in weights) / len(weights),
        "training/rollout_probs_diff_mean": sum(differences) / 8,
        "training/rollout_probs_diff_max": max(differences),
        "training/rollout_probs_diff_std": float(torch.tensor(differences).std(unbiased=False)),
        "sampling/sampling_logp_difference/mean": float((PI - MU).abs().mean()),
        "sampling/sampling_logp_difference/max": float((PI - MU).abs().max()),
        "sampling/importance_sampling_ratio/mean": sum(rhos) / 8,
        "sampling/importance_sampling_ratio/max": max(rhos),
        "sampling/importance_sampling_ratio/min": min(rhos),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert not [name for name in found if name.startswith("_")]


def test_answers_that_are_left_out_are_counted() -> None:
    apart = PI.clone()
    apart[3] = MU[3] - 9.0  # the only token of the second answer
    assert told(Correction(veto=1e-4), apart)["rollout_corr/rollout_rs_masked_fraction"] == 0.0
    apart[3] = MU[3] - 12.0
    assert told(Correction(veto=1e-4), apart)["rollout_corr/rollout_rs_masked_fraction"] == pytest.approx(1 / 3)
    assert "rollout_corr/rollout_rs_masked_fraction" not in told(Correction())


def test_an_answer_that_is_not_finite_is_in_no_mean() -> None:
    odd = PI.clone()
    odd[0] = math.nan
    found = told(Correction(), odd)
    assert all(math.isfinite(value) for value in found.values())
    assert found["rollout_corr/kl"] == pytest.approx(float((MU - PI)[3:].mean()), abs=1e-6)


def test_an_update_that_cannot_be_trusted_is_told() -> None:
    assert mismatch.doubts(told(Correction())) == []
    (far,) = mismatch.doubts({"rollout_corr/kl": 0.3, "rollout_corr/rollout_is_mean": 1.0})
    assert far == "rollout_corr/kl is 0.3, outside -0.1 to 0.1"
    assert len(mismatch.doubts({"rollout_corr/rollout_is_eff_sample_size": 0.2})) == 1


def test_losses_are_weighed_and_rejected_answers_have_none() -> None:
    terms = torch.linspace(1, 2, 8)
    plain = mismatch.corrected(terms, PI, MU, LENGTHS, Correction(weight="token", cap=1.1))
    torch.testing.assert_close(plain, terms * (PI - MU).exp().clamp(max=1.1))
    apart = PI.clone()
    apart[3] = MU[3] + 1.0
    kept = mismatch.corrected(terms, apart, MU, LENGTHS, Correction(reject=(0.5, 2.0)))
    assert kept[3] == 0
    torch.testing.assert_close(kept[[0, 1, 2, 4, 5, 6, 7]], terms[[0, 1, 2, 4, 5, 6, 7]])
