import math
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_dist.data.packing import Budget
from rlhf_dist.learner.recorder import Ranks
from rlhf_dist.learner.rows import to_experience
from rlhf_dist.learner.shards import Shard, cut_into_shards
from rlhf_dist.records import RowKey
from rlhf_dist.store.experience import RowView
from tests.learner import test_policy_update as plain

BATCH = st.lists(st.lists(st.integers(2, 40), min_size=1, max_size=4), min_size=4, max_size=12)


def views(lengths: list[list[int]]) -> list[RowView]:
    """Of each prompt, its samples' lengths; prompts' ids have gaps, as in a data set."""
    return [
        RowView(RowKey(3, 7 * prompt, sample), tokens, {})
        for prompt, samples in enumerate(lengths)
        for sample, tokens in enumerate(samples)
    ]


def cut(lengths: list[list[int]], ranks: int, minis: int, seed: int = 0) -> list[Shard]:
    return cut_into_shards(views(lengths), Budget(ranks, 80, 0, hidden=64), mini_batches=minis, seed=seed)


def prompts_of(shard: Shard, mini: int) -> set[int]:
    return {shard.views[i].key.prompt_id for micro in shard.mini_batches[mini] for row in micro for i in row}


@given(BATCH, st.integers(1, 4), st.integers(1, 4))
def test_every_row_is_learnt_from_once_and_the_samples_of_a_prompt_are_never_parted(
    lengths: list[list[int]], ranks: int, minis: int
) -> None:
    shards = cut(lengths, ranks, minis)
    rows = Counter(view.key for shard in shards for view in shard.views)
    assert rows == Counter(view.key for view in views(lengths))
    homes = Counter(prompt for shard in shards for mini in range(minis) for prompt in prompts_of(shard, mini))
    assert set(homes.values()) == {1}, "one rank, one mini-batch"
    for shard in shards:
        assert len(shard.mini_batches) == minis
        places = [i for mini in shard.mini_batches for micro in mini for row in micro for i in row]
        assert sorted(places) == list(range(len(shard.views)))
        assert [view.key.prompt_id // 7 for view in shard.views] == shard.groups
        assert [views(lengths)[place] for place in shard.places] == shard.views
    for mini in range(minis):
        assert len({len(shard.mini_batches[mini]) for shard in shards}) == 1, "as many micro-batches on every rank"


@given(BATCH, st.integers(2, 4))
def test_mini_batches_hold_the_same_prompts_whatever_the_number_of_ranks(lengths: list[list[int]], minis: int) -> None:
    one, several = cut(lengths, 1, minis), cut(lengths, 3, minis)
    for mini in range(minis):
        assert prompts_of(one[0], mini) == set().union(*(prompts_of(shard, mini) for shard in several))


@given(st.lists(st.lists(st.integers(2, 40), min_size=1, max_size=2), min_size=1, max_size=3), st.integers(1, 4))
def test_where_fewer_prompts_are_left_than_mini_batches_there_are_fewer_of_these_and_none_is_empty(
    lengths: list[list[int]], ranks: int
) -> None:
    shards = cut(lengths, ranks, 4)
    assert {len(shard.mini_batches) for shard in shards} == {min(4, len(lengths))}
    assert all(
        any(shard.mini_batches[mini] and shard.mini_batches[mini][0] for shard in shards)
        for mini in range(len(lengths))
    )
    assert sum(len(shard.views) for shard in shards) == sum(map(len, lengths))


def test_prompts_are_dealt_out_to_mini_batches_at_random_and_otherwise_in_order() -> None:
    lengths = [[5, 5]] * 12
    found = [[sorted(prompts_of(cut(lengths, 1, 3, seed)[0], mini)) for mini in range(3)] for seed in (0, 0, 1)]
    assert found[0] == found[1]
    assert found[0] != found[2]
    in_order = [[7 * prompt for prompt in range(4 * mini, 4 * mini + 4)] for mini in range(3)]
    assert in_order not in found
    assert [view.key for view in cut(lengths, 1, 1)[0].views] == [view.key for view in views(lengths)]


@pytest.mark.parametrize("critic", ["model", "value_head"])
def test_a_rank_without_a_row_takes_part_in_an_update(critic: str) -> None:
    """Where samples failed, fewer prompts than ranks may be left for a mini-batch."""
    total, meeting = [torch.zeros(0)] * 2, threading.Barrier(2)

    def joined(rank: int, how: Callable[..., torch.Tensor], vector: torch.Tensor) -> torch.Tensor:
        total[rank] = vector
        meeting.wait(20)
        both = how(total[0], total[1])
        meeting.wait(20)
        return both

    def learn(rank: int) -> dict[str, float]:
        rows = plain.data(1)
        micros = [[[0]]] if rank == 0 else [[]]
        batch = [to_experience(rows, micro, torch.device("cpu")) for micro in micros]
        ranks = Ranks(2, partial(joined, rank, torch.add), partial(joined, rank, torch.maximum))
        models = plain.models(critic)
        return plain.learn(models, [batch], ranks=ranks).facts

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(learn, range(2))
    assert {name for name in one if not math.isclose(one[name], other[name])} <= {"actor/grad_norm", "critic/grad_norm"}
    assert all(math.isfinite(value) for value in one.values())
