"""What is set of DeepSpeed, and what users may add; the installed one says what it knows."""

from typing import Any

import pytest

from rlhf_dist.config import Learner
from rlhf_dist.errors import ConfigError
from rlhf_dist.learner.deepspeed_settings import check_deepspeed, settings_of
from rlhf_dist.planning.zero_buffers import zero_buffer_bytes, zero_buffers

GOOD: list[dict[str, Any]] = [
    {},
    {"zero_optimization": {"overlap_comm": True, "reduce_bucket_size": 10**8}},
    {"communication_data_type": "bf16", "wall_clock_breakdown": True},
    {"zero_optimization": {"zero_hpz_partition_size": 8}, "comms_logger": {"enabled": True}},
]
BAD: list[tuple[dict[str, Any], str]] = [
    ({"zero_optimisation": {}}, "learner.deepspeed.zero_optimisation: DeepSpeed has no such setting; expected one of"),
    ({"zero_optimization": {"overlap": True}}, "refuses it: 1 validation error for DeepSpeedZeroConfig overlap Extra"),
    ({"zero_optimization": {"reduce_bucket_size": "many"}}, "reduce_bucket_size Input should be a valid integer"),
    ({"zero_optimization": 2}, "zero_optimization is 2; expected settings by name"),
    (
        {"zero_optimization": {"stage": 1}},
        "zero_optimization.stage is the learner's own .* `learner.zero_stage` instead",
    ),
    ({"bf16": {"enabled": True}}, "deepspeed.bf16 is the learner's own to set; expected `learner.precision` instead"),
    ({"optimizer": {"type": "Adam"}}, "deepspeed.optimizer is the learner's own"),
    ({"steps_per_print": 1}, "deepspeed.steps_per_print is the learner's own to set; expected it left out"),
]


@pytest.mark.parametrize("given", GOOD, ids=str)
def test_what_deepspeed_knows_reaches_it(given: dict[str, Any]) -> None:
    learner = Learner(deepspeed=given, zero_stage=3)
    check_deepspeed(learner)
    made = settings_of(learner, clip=1.0, hidden=64)
    for name, value in given.items():
        assert made[name] == value or made[name].items() >= value.items()
    assert made["zero_optimization"]["stage"] == 3


@pytest.mark.parametrize(("given", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_unknown_names_and_those_that_are_ours_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_deepspeed(Learner(deepspeed=given))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_buffers_follow_the_hidden_size_and_deepspeed_knows_them(stage: int) -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    for hidden in (64, 4096, 8192):
        sizes = zero_buffers(hidden, stage)
        assert sizes["reduce_bucket_size"] == max(hidden**2, 2**24)
        DeepSpeedZeroConfig(**sizes, stage=stage)
        assert zero_buffer_bytes(hidden, stage, 10**11, width=2) == (
            0 if stage == 0 else 4 * sizes["reduce_bucket_size"] + 2 * sizes.get("stage3_max_live_parameters", 0)
        )
    assert zero_buffer_bytes(64, 2, 1000, width=2) == 4000, "no more than there is to reduce"
