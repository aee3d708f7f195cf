"""An engine with a folder's own weights against transformers."""

import pytest
import torch

from rlhf_dist.errors import ModelError
from rlhf_dist.records import Sampling
from rlhf_dist.rollout.agreement import Expected, tolerance
from rlhf_dist.rollout.transformers_engine import TransformersEngine
from tests.models.families import folder_of


@pytest.mark.parametrize(
    ("family", "dtype", "most"),
    [("mistral", "bfloat16", 0.1), ("mixtral", "bfloat16", 0.2), ("mixtral", "float32", 1e-3)],
)
def test_rounding_may_go_further_where_it_chooses_experts(family: str, dtype: str, most: float) -> None:
    assert tolerance(dtype, str(folder_of(family))) == most


@pytest.mark.parametrize("family", ["gemma2", "qwen2_moe"])
def test_an_engine_that_computes_otherwise_is_refused(family: str) -> None:
    path = str(folder_of(family))
    expected = Expected.by_transformers(path, dtype="float32", attention="sdpa", device="cpu", longest=20)
    assert len(expected.tokens) == len(expected.log_probs) + 1 == 19
    engine = TransformersEngine(path, Sampling(4, 1.0, 1.0, 0, (), (2,)), dtype="float32", max_concurrent=2)
    expected.check(engine)
    with torch.no_grad():
        engine._lm.get_output_embeddings().weight.mul_(1.1)
    with pytest.raises(
        ModelError, match=rf"{path}: TransformersEngine's log-probs differ from transformers' by .*otherwise"
    ):
        expected.check(engine)
