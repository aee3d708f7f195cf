import math

import pytest
import torch

from rlhf_dist.errors import NumbersError
from rlhf_dist.learner.finite import OddPieces, check_tensors
from rlhf_dist.store.checksums import PIECE
from rlhf_dist.store.weights import encode_bucket


def test_weights_that_are_not_finite_are_refused_by_name_before_they_are_saved() -> None:
    fine, odd = torch.ones(3), torch.tensor([1.0, math.nan])
    check_tensors([("a", fine), ("number", torch.tensor(3))], "saving")
    with pytest.raises(NumbersError, match=r"saving policy: w0, w1, w2 and 1 more not finite; expected finite weights"):
        check_tensors([("a", fine), *((f"w{number}", odd) for number in range(4))], "saving policy")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_number_that_is_none_is_found_in_any_piece(dtype: torch.dtype) -> None:
    elements = 2 * PIECE // dtype.itemsize
    tensors = {
        "fine": torch.ones(elements, dtype=dtype),
        "whole": torch.arange(elements),
        "large": torch.full((elements,), torch.finfo(dtype).max, dtype=dtype),
        "odd": torch.ones(elements + 3, dtype=dtype),
    }
    tensors["odd"][-1] = math.inf
    found = OddPieces(tensors)
    encode_bucket(tensors.items(), look=found.look)
    assert found.names() == ["odd"], "a sum of large numbers is infinite, though none of them is"
