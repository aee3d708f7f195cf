"""Logits in fp32 of a model in bf16, with its gradients."""

import pytest
import torch

from rlhf_dist.models import PolicyModel, load_policy, pack
from rlhf_dist.models.heads import exact_logits, with_exact_logits
from tests.models.families import folder_of
from tests.models.test_proof import SELECTED, SEQUENCES


@pytest.mark.parametrize("has_bias", [False, True])
def test_products_of_16_bits_add_up_and_stay_in_fp32(has_bias: bool) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(2, 5, 64).bfloat16(), torch.randn(31, 64).bfloat16()
    bias = torch.randn(31).bfloat16() if has_bias else None
    leaves = [each for each in (hidden, weight, bias) if each is not None]
    found, expected = [], []
    for dtype, grads in ((torch.bfloat16, found), (torch.float32, expected)):
        own = [each.to(dtype).requires_grad_() for each in leaves]
        said = exact_logits(own[0], own[1], own[2] if has_bias else None)
        grads += [said.detach(), *torch.autograd.grad(said.sin().sum(), own)]
    assert found[0].dtype == torch.float32
    torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-5)
    assert (found[0] - found[0].bfloat16().float()).abs().max() > 1e-3, "else this shows nothing"
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(ours.float(), theirs, atol=0.15, rtol=0.02)


@pytest.mark.parametrize("family", ["granite", "gpt2"])
def test_log_probs_in_bf16_are_of_logits_that_were_not_rounded(family: str) -> None:
    """Also through a family's own words between head and logits, and in the engine that samples by transformers."""
    policy = PolicyModel(load_policy(str(folder_of(family)), dtype=torch.bfloat16))
    lm = with_exact_logits(load_policy(str(folder_of(family)), dtype=torch.bfloat16)).eval()
    tokens = SEQUENCES[0]
    with torch.no_grad():
        said = policy(pack([tokens], [SELECTED[0]], [[0]]))[0]
        ids = torch.from_numpy(tokens).long()
        logits = lm(input_ids=ids[None]).logits[0, :-1]
    assert logits.dtype == torch.float32
    assert (logits - logits.bfloat16().float()).abs().max() > 1e-3
    own = torch.log_softmax(logits, -1).gather(-1, ids[1:, None])[:, 0]
    torch.testing.assert_close(said, own, atol=1e-3, rtol=0)
