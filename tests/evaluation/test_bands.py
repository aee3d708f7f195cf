import pytest

from rlhf_dist.config import StopOn
from rlhf_dist.evaluation.bands import left_band

METRICS = {"objective/kl": 4.0, "response_length/mean": 20.0, "actor/ratio_max": 3.0, "actor/ppo_kl": 0.2}


def reason(bands: StopOn, gold: list[float]) -> str | None:
    left = left_band(bands, METRICS, gold)
    assert left is None or (left.stops and left.undo == 0), "it stops unless it is told to roll back"
    return left.reason if left else None


def test_a_run_stops_on_the_band_that_it_leaves_and_on_no_other() -> None:
    assert reason(StopOn(), [1.0, 0.0]) is None
    within = StopOn(kl_above=4.0, length_below=20, length_above=20, ratio_above=3.0, policy_kl_above=0.2)
    assert reason(within, []) is None
    assert reason(StopOn(kl_above=3.5), []) == "objective/kl is 4, above rl.stop_on.kl_above = 3.5"
    assert reason(StopOn(ratio_above=2.5), []) == "actor/ratio_max is 3, above rl.stop_on.ratio_above = 2.5"
    assert reason(StopOn(policy_kl_above=0.1), []) == "actor/ppo_kl is 0.2, above rl.stop_on.policy_kl_above = 0.1"
    assert "below rl.stop_on.length_below" in (reason(StopOn(length_below=21), []) or "")
    assert "above rl.stop_on.length_above" in (reason(StopOn(length_above=19), []) or "")


def test_a_falling_gold_score_stops_a_run_when_its_mean_has_fallen_far_enough() -> None:
    bands = StopOn(gold_drop=0.1, patience=2)
    rise = [0.2, 0.4, 0.6, 0.6]
    assert reason(bands, rise) is None
    assert reason(bands, [*rise, 0.45]) is None, "one bad iteration is noise"
    assert "fell by 0.125" in (reason(bands, [*rise, 0.45, 0.5]) or "")
    assert reason(bands, [0.9]) is None


@pytest.mark.parametrize(
    ("band", "updates"),
    [({"ratio_above": 2.0}, 1), ({"policy_kl_above": 0.1}, 1), ({"kl_above": 3.5}, 2), ({"length_above": 19}, 2)],
)
def test_what_led_out_of_a_band_is_undone_and_the_run_goes_on_so_many_times(
    band: dict[str, float], updates: int
) -> None:
    bands = StopOn(then="roll_back", roll_backs=2, **band)
    found = [left_band(bands, METRICS, [], rolled_back=number) for number in range(3)]
    assert [left.undo for left in found if left] == [updates] * 3, "a run that stops leaves no exploded policy behind"
    assert [left.stops for left in found if left] == [False, False, True]
    assert "after 2 roll-backs in a row" in (found[2].reason if found[2] else "")


def test_an_update_all_of_whose_steps_were_left_out_leaves_no_band() -> None:
    assert left_band(StopOn(ratio_above=2.0, policy_kl_above=0.1), {"objective/kl": 4.0}, []) is None
