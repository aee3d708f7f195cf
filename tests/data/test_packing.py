from hypothesis import given
from hypothesis import strategies as st

from rlhf_dist.data.packing import Budget, balance, compute_cost, pack_rows, plan_micro_batches

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=40)


@given(LENGTHS, st.integers(1, 5), st.integers(60, 300), st.sampled_from([0, 60, 120]))
def test_a_plan_holds_each_sequence_once_within_bounds_and_equally_often_on_each_rank(
    lengths: list[int], ranks: int, budget: int, row_tokens: int
) -> None:
    plans = plan_micro_batches(lengths, Budget(ranks, budget, row_tokens, hidden=64))
    found = [index for micros in plans for micro in micros for row in micro for index in row]
    assert sorted(found) == list(range(len(lengths)))
    assert len({len(micros) for micros in plans}) == 1
    width = row_tokens or max(lengths)
    for micros in plans:
        for micro in micros:
            widths = [sum(lengths[i] for i in row) for row in micro]
            assert all(w <= width for w in widths)
            assert len(micro) <= 1 or len(micro) * max(widths) <= budget


@given(LENGTHS, st.integers(1, 5))
def test_balance_is_within_one_sequence_of_even(lengths: list[int], parts: int) -> None:
    costs = [compute_cost(n, width=64) for n in lengths]
    assert costs[0] == lengths[0] * (1 + lengths[0] / 768)
    sums = [sum(costs[i] for i in group) for group in balance(costs, parts=parts)]
    assert max(sums) - min(sums) <= max(costs) + 1e-9


@given(LENGTHS, st.integers(1, 4), st.integers(1, 5))
def test_sequences_of_a_unit_come_to_one_rank(lengths: list[int], ranks: int, size: int) -> None:
    units = [[*range(start, min(start + size, len(lengths)))] for start in range(0, len(lengths), size)]
    plans = plan_micro_batches(lengths, Budget(ranks, 80, 0, hidden=64), units=units)
    rank_of = {i: rank for rank, micros in enumerate(plans) for micro in micros for row in micro for i in row}
    assert sorted(rank_of) == list(range(len(lengths)))
    assert all(len({rank_of[i] for i in unit}) == 1 for unit in units)


@given(LENGTHS)
def test_first_fit_leaves_at_most_one_row_half_empty(lengths: list[int]) -> None:
    rows = pack_rows(range(len(lengths)), lengths, row_tokens=64)
    assert sum(sum(lengths[i] for i in row) <= 32 for row in rows) <= 1
