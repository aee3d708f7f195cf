import math

import pytest
import torch

from rlhf_dist.errors import NumbersError
from rlhf_dist.learner.finite import check_tensors


def test_weights_that_are_not_finite_are_refused_by_name_before_they_are_saved() -> None:
    fine, odd = torch.ones(3), torch.tensor([1.0, math.nan])
    check_tensors([("a", fine), ("number", torch.tensor(3))], "saving")
    with pytest.raises(NumbersError, match=r"saving policy: w0, w1, w2 and 1 more not finite; expected finite weights"):
        check_tensors([("a", fine), *((f"w{number}", odd) for number in range(4))], "saving policy")
