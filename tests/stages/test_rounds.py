import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_dist.errors import DataError
from rlhf_dist.stages.rounds import Round, compared, keep_round, policy_number, read_rounds, run_before

GOLD = st.lists(st.tuples(*[st.none() | st.sampled_from([0.0, 0.25, 0.5, 1.0])] * 2), max_size=12)


def finished(folder: Path, gold: list[float | None], kl: float) -> Path:
    """An RL run's folder, as far as rounds read it."""
    (folder / "policy").mkdir(parents=True, exist_ok=True)
    rows = [{"prompt": f"p{number}", "gold_after": each} for number, each in enumerate(gold)]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "summary.json").write_text(json.dumps({"kl_end": kl}))
    return folder


def a_round(number: int, **facts: object) -> Round:
    return Round(number, 5, "d", 4, 0.5, [0.25, 0.75], [0.1, 0.2], [1.0, 2.0], **facts)


@given(gold=GOLD)
def test_a_win_counts_one_and_a_tie_half_of_the_prompts_that_are_judged_in_both(
    gold: list[tuple[float | None, float | None]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("runs")
    before, after = (finished(folder / str(side), [pair[side] for pair in gold], kl=side + 1.0) for side in (0, 1))
    found = compared(before, after)
    wins, both = 0.0, [(old, new) for old, new in gold if old is not None and new is not None]
    for old, new in both:
        wins += 1 if new > old else 0.5 if new == old else 0
    assert found["kl"] == [1.0, 2.0]
    assert found["prompts"] == len(both)
    if not both:
        assert (found["gold_win_rate"], found["gold_score"]) == (None, None)
        return
    assert found["gold_win_rate"] == pytest.approx(wins / len(both))
    assert found["gold_score"] == pytest.approx([sum(side) / len(both) for side in zip(*both, strict=True)])
    if len(both) > 1:
        low, high = found["gold_interval"]
        assert 0 <= low <= found["gold_win_rate"] <= high <= 1


def test_the_policy_before_is_the_newest_that_was_finished(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no policy of the round before; expected earlier-N/policy"):
        run_before(tmp_path)
    for number in (2, 9, 10):
        finished(tmp_path / f"earlier-{number}", [], 0.0)
    finished(tmp_path / "earlier-11", [], 0.0).joinpath("summary.json").unlink()
    (tmp_path / "earlier-12").mkdir()
    assert run_before(tmp_path) == tmp_path / "earlier-10"


def test_rounds_are_numbered_from_the_pipelines_own_and_each_is_kept_once(tmp_path: Path) -> None:
    assert (policy_number(tmp_path), read_rounds(tmp_path)) == (1, [])
    for made in (a_round(2), a_round(2, tasks=7), a_round(3)):
        keep_round(tmp_path, made)
    assert policy_number(tmp_path) == 3
    assert read_rounds(tmp_path) == [a_round(2, tasks=7), a_round(3)]


def test_a_round_with_one_prompt_or_without_a_gold_judge_is_told_as_it_is_read(tmp_path: Path) -> None:
    before, after = (finished(tmp_path / name, [0.5], kl=1.5) for name in ("before", "after"))
    keep_round(tmp_path, Round(2, 5, "d", **compared(before, after)))
    (kept,) = read_rounds(tmp_path)
    assert "prefers policy-2 over policy-1 on 50.0% [0.0%, 100.0%] of 1 held-out prompts" in kept.told()
    none = Round(2, 5, "d", **compared(*(finished(tmp_path / name, [None], kl=1.5) for name in ("before", "after"))))
    assert none.told() == "policy-2 learnt from 5 judgements of people: KL to the reference 1.50 -> 1.50 nats"
