import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_dist.errors import DataError
from rlhf_dist.run_folder.charts import curves, line_chart, smoothed, stacked_bars, ticks
from rlhf_dist.run_folder.report import write_report

SUMMARY = {
    "stage": "rl",
    "iterations": 2,
    "engine": "vllm",
    "schedule": "sync",
    "gold_win_rate": 0.81,
    "gold_score_before": 0.4,
    "gold_score_after": 0.7,
    "reward_start": -1.0,
    "reward_end": 2.0,
    "kl_end": 3.0,
    "samples_per_second": 30.0,
    "seconds": {"gen": 1.0, "total": 61.0},
    "versions": {"torch": "2"},
    "model": "1.3 M parameters",
    "seed": 0,
    "machine": "2 cores",
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    rows = [
        {"iteration": i, "critic/score/mean": i - 1.0, "timing_s/gen": 0.5, "timing_s/update": 1.0} for i in range(2)
    ]
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sample = {
        "prompt": "<b>p</b>",
        "before": "x",
        "after": "<script>alert(1)</script>",
        "gold_before": 0.1,
        "gold_after": 0.9,
    }
    (tmp_path / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    return tmp_path


def test_report_stands_alone_and_shows_samples_as_text(run: Path) -> None:
    page = write_report(run).read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "http" not in page.replace("http-equiv", "")
    for text in ("81%", "from the reference policy", "1 min 01 s", "Reward", "Time per phase", "gold 0.90"):
        assert text in page


def test_answers_are_shown_as_their_readers_see_them_and_prompts_line_by_line(run: Path) -> None:
    sample = {"prompt": "User: a\n\nAssistant: b\u202e", "before": "**x** $y^2$", "after": "one\n\n- two"}
    (run / "samples.jsonl").write_text(json.dumps(sample | {"gold_before": None, "gold_after": None}) + "\n")
    page = write_report(run).read_text()
    assert "User: a\n\nAssistant: b⟨U+202E⟩" in page
    for part in ("<strong>x</strong>", "<msup><mi>y</mi><mn>2</mn></msup>", "<li"):
        assert part in page


def test_what_is_no_number_is_a_dash_and_no_point(run: Path) -> None:
    nothing = dict.fromkeys(("gold_score_after", "reward_end", "kl_end", "samples_per_second"))
    (run / "summary.json").write_text(json.dumps(SUMMARY | nothing))
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"iteration": 2, "critic/score/mean": None, "timing_s/gen": None}) + "\n")
    page = write_report(run).read_text()
    assert "-1.00 → –" in page
    assert "highest 0" in page, "the chart is of the two numbers that there are"


def test_a_chart_without_data_is_left_out(run: Path) -> None:
    assert "Entropy" not in write_report(run).read_text()


def test_a_malformed_line_is_named(run: Path) -> None:
    (run / "metrics.jsonl").write_text('{"iteration": 0}\nnonsense\n')
    with pytest.raises(DataError, match=r"metrics.jsonl:2: not valid JSON"):
        write_report(run)


def test_ticks_cover_the_values_in_round_steps() -> None:
    assert ticks(0.0, 1.0) == [0.0, 0.5, 1.0]
    found = ticks(-0.73, 3.9)
    assert found[0] <= -0.73
    assert found[-1] >= 3.9
    assert ticks(2.0, 2.0)[-1] > 2.0


def test_smoothing_starts_at_the_first_value_and_keeps_constants() -> None:
    assert smoothed([3.0, 3.0, 3.0]) == pytest.approx([3.0, 3.0, 3.0])
    assert smoothed([1.0, 0.0])[0] == pytest.approx(1.0)


def test_charts_of_one_point_are_drawn_and_named() -> None:
    assert 'aria-label="KL: from 2' in line_chart("KL", [1], [2.0])
    assert stacked_bars("Time", [1], {"gen": [1.0], "update": [2.0]}).count("<rect") == 2


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=6))
def test_every_finite_figure_can_be_drawn(values: list[float]) -> None:
    """A loss of 1e-30, figures that differ in their last bit, and 1e308."""
    xs = [*range(len(values))]
    for drawn in (line_chart("a", xs, values), curves("b", {"c": (xs, values)})):
        places = re.findall(r' (?:cx|cy|x|y|y1|d)="([^"]*)"', drawn)
        assert places
        assert not any("nan" in each or "inf" in each for each in places)


def test_ticks_of_small_figures_are_told_apart() -> None:
    assert ticks(0.0, 4e-30) == pytest.approx([0.0, 1e-30, 2e-30, 3e-30, 4e-30], rel=1e-6)
    assert ticks(1e-12, 1e-12)[0] <= 1e-12 <= ticks(1e-12, 1e-12)[-1]
