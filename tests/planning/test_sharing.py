"""What an engine may take of a card."""

import pytest

from rlhf_dist.config import RLConfig
from rlhf_dist.planning.sharing import OWN_CARD, SharedCard, engine_share
from tests.planning.test_memory import SIZES, config

GB = 10**9


def colocated(**sections: object) -> RLConfig:
    return config(cluster={"placement": "colocated"}, **sections)


def test_an_engine_has_nearly_all_of_its_own_card_and_of_a_shared_one_what_the_others_leave() -> None:
    assert engine_share(config(), 80.0, 20.0) == OWN_CARD
    assert engine_share(config(cluster={"gpu_share": 0.2}), 80.0, 20.0) == pytest.approx(0.2 * OWN_CARD)
    assert engine_share(colocated(), 80.0, 20.0) == pytest.approx(OWN_CARD - 0.25)
    assert engine_share(colocated(), 80.0, 100.0) == 0.0
    for made in (config, colocated):
        assert engine_share(made(rollout={"gpu_memory_fraction": 0.3}), 80.0, 20.0) == 0.3


def test_the_cache_is_what_is_left_of_the_engines_part() -> None:
    shared = SharedCard.of(colocated(learner={"precision": "bf16"}), SIZES)
    # Policy and critic, a reward model and a reference on one card: of a million parameters each.
    assert (shared.weights, shared.beside) == (2e6, 4 * 2e6)
    options = shared.engine_options(GB)
    assert options["gpu_memory_utilization"] == pytest.approx(0.9 - 0.008)
    assert options["kv_cache_memory_bytes"] == pytest.approx(GB * 0.892 - 2e6, abs=1)
    sharded = SharedCard.of(colocated(learner={"precision": "bf16", "zero_stage": 3, "ranks": 4}), SIZES)
    assert sharded.beside == 2e6 * (2 / 4 + 1), "a quarter of each, and one scorer"
    handed_over = SharedCard.of(colocated(learner={"precision": "bf16"}, weights={"transport": "cuda_ipc"}), SIZES)
    assert handed_over.beside == shared.beside + 2e6, "the version stays on the card"
    assert shared.engine_options(1e6)["kv_cache_memory_bytes"] == 1, "which vLLM refuses"


def test_an_engine_over_several_cards_has_a_part_of_its_weights_on_each() -> None:
    over = {"learner": {"precision": "bf16", "ranks": 2}, "rollout": {"tensor_parallel": 2}}
    one, two = (SharedCard.of(colocated(**made), SIZES) for made in ({**over, "rollout": {}}, over))
    assert (two.weights, two.beside) == (one.weights / 2, one.beside)
