from hypothesis import given
from hypothesis import strategies as st

from rlhf_dist.data.packing import balance, pack_rows, plan_micro_batches

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=40)


@given(LENGTHS, st.integers(1, 5), st.integers(60, 300), st.sampled_from([0, 60, 120]))
def test_a_plan_holds_each_sequence_once_within_bounds_and_equally_often_on_each_rank(
    lengths: list[int], ranks: int, budget: int, row_tokens: int
) -> None:
    plans = plan_micro_batches(lengths, ranks=ranks, micro_batch_tokens=budget, row_tokens=row_tokens, hidden=64)
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
    groups = balance(lengths, parts=parts, width=64)
    costs = [sum(lengths[i] * (1 + lengths[i] / 768) for i in group) for group in groups]
    assert max(costs) - min(costs) <= max(n * (1 + n / 768) for n in lengths) + 1e-9


@given(LENGTHS)
def test_first_fit_leaves_at_most_one_row_half_empty(lengths: list[int]) -> None:
    rows = pack_rows(range(len(lengths)), lengths, row_tokens=64)
    assert sum(sum(lengths[i] for i in row) <= 32 for row in rows) <= 1
