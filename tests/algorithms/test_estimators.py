import pytest
import torch

from rlhf_dist.algorithms.advantages import gae
from rlhf_dist.algorithms.estimators import GeneralisedAdvantages, LeaveOneOutAdvantages, Trajectories
from rlhf_dist.config import Gae, LeaveOneOut

LENGTHS = torch.tensor([2, 1, 3, 2])
REWARDS = torch.tensor([0.5, 1.0, -2.0, 0.0, 1.0, 3.0, 0.25, 0.25])
VALUES = torch.linspace(-1, 1, 8)


def batch(values: torch.Tensor | None) -> Trajectories:
    return Trajectories(REWARDS, LENGTHS, torch.tensor([7, 3, 7, 3]), values)


def test_gae_is_the_formula_with_its_own_numbers() -> None:
    found = GeneralisedAdvantages(0.9, 0.8)(batch(VALUES))
    advantages, returns = gae(REWARDS, VALUES, LENGTHS, gamma=0.9, lam=0.8)
    torch.testing.assert_close(found.advantages, advantages)
    torch.testing.assert_close(found.returns, returns)


def test_leave_one_out_compares_each_sample_with_the_others_of_its_prompt_wherever_they_stand() -> None:
    found = LeaveOneOutAdvantages()(batch(None))
    # Sequences' rewards are 1.5, -2, 4 and 0.5; the first and third belong together, and the second and fourth.
    torch.testing.assert_close(found.advantages, torch.repeat_interleave(torch.tensor([-2.5, -2.5, 2.5, 2.5]), LENGTHS))
    assert found.returns is None


def test_leave_one_out_of_three_takes_the_mean_of_the_other_two() -> None:
    three = Trajectories(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([1, 1, 1]), torch.tensor([0, 0, 0]), None)
    assert LeaveOneOutAdvantages()(three).advantages.tolist() == pytest.approx([1 - 4, 2 - 3.5, 6 - 1.5])


@pytest.mark.parametrize("section", [Gae(), LeaveOneOut(kind="leave_one_out")])
def test_the_config_knows_of_each_estimator_whether_it_needs_values(section: Gae | LeaveOneOut) -> None:
    assert section.needs_values == section.build().needs_values
