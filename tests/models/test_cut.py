"""A row cut over ranks: nothing is lost, and what cannot be cut is refused. The ranks themselves: test_learner_parity.py."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_dist.errors import ModelError
from rlhf_dist.models import PolicyModel, load_policy
from rlhf_dist.models.cut import Cut
from rlhf_dist.models.proof import prove_cut
from tests.models.families import folder_of
from tests.models.test_packed import LENGTHS, batch_of


@given(LENGTHS, st.integers(1, 5))
def test_pieces_together_are_the_row_and_every_wanted_position_is_in_one(lengths: list[int], parts: int) -> None:
    batch = batch_of(lengths, 2)[0].one_row()
    pieces = [Cut(None, parts, part).of(batch) for part in range(parts)]
    rows = {name: torch.cat([piece.inputs[name] for piece in pieces], 1)[0] for name in pieces[0].inputs}
    size = batch.input_ids.numel()
    assert len({piece.inputs["input_ids"].shape for piece in pieces}) == 1
    assert torch.equal(rows["input_ids"][:size], batch.input_ids[0])
    assert torch.equal(rows["position_ids"][:size], batch.position_ids[0])
    bounds = pieces[0].documents["cu_seq_lens_q"].tolist()
    assert bounds[: len(lengths)] == batch.starts.tolist()
    assert bounds[-1] == len(rows["input_ids"])
    assert pieces[0].documents["max_length_q"] >= max(lengths)
    wanted = [piece.inputs["input_ids"][0][piece.select] for piece in pieces]
    assert sorted(torch.cat(wanted).tolist()) == sorted(batch.input_ids[0][batch.select].tolist())
    assert sum(len(piece.targets) for piece in pieces) == len(batch.targets)


def test_heads_that_ranks_cannot_share_evenly_are_refused() -> None:
    with pytest.raises(
        ModelError, match=r"attention has 4 heads, which 3 ranks cannot share evenly; expected .*divides"
    ):
        Cut(None, 3, 0).to_heads(torch.zeros(2, 2, 8), 2)


@pytest.mark.parametrize(("family", "attention"), [("mistral", "sdpa"), ("bamba", "varlen"), ("gemma2", "varlen")])
def test_models_whose_rows_are_no_single_row_without_a_mask_are_refused(family: str, attention: str) -> None:
    model = PolicyModel(load_policy(str(folder_of(family)), dtype=torch.float32, attention=attention))
    with pytest.raises(ModelError, match=r"so ranks cannot share it; expected learner.sequence_parallel 1, or another"):
        prove_cut(model, Cut(None, 2, 0), model, device=torch.device("cpu"))
