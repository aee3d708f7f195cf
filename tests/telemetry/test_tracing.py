import json
import time
from pathlib import Path

import pytest

from rlhf_dist.telemetry import tracing
from rlhf_dist.telemetry.tracing import Span, write_trace


def test_a_span_has_its_name_times_and_facts() -> None:
    tracing.take()
    before = time.time() * 1e6
    with tracing.span("work", rows=3):
        time.sleep(0.02)
    with pytest.raises(RuntimeError), tracing.span("failing"):
        raise RuntimeError
    work, failing = tracing.take()
    assert (work.name, work.facts, failing.name) == ("work", {"rows": 3}, "failing")
    assert before <= work.start_us <= failing.start_us
    assert 15_000 < work.duration_us <= failing.start_us - before
    assert tracing.take() == []


def test_what_nobody_takes_is_bounded() -> None:
    for number in range(tracing.KEPT_SPANS + 5):
        with tracing.span("x", number=number):
            pass
    taken = tracing.take()
    assert len(taken) == tracing.KEPT_SPANS
    assert taken[-1].facts == {"number": tracing.KEPT_SPANS + 4}


def test_a_trace_has_a_named_track_per_actor_and_rays_events(tmp_path: Path) -> None:
    spans = {"store": [Span("publish", 10.0, 5.0, {})], "learner-0": [Span("update", 20.0, 7.0, {"rows": 2})]}
    ray_event = {"ph": "X", "name": "task", "ts": 12.0, "dur": 1.0, "pid": "10.0.0.1", "tid": "w"}
    write_trace(tmp_path / "trace.json", spans, [ray_event])
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    tracks = {event["tid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    drawn = {
        (tracks.get(event["tid"]), event["name"], event["ts"], event["dur"]) for event in events if event["ph"] == "X"
    }
    assert drawn == {
        ("store", "publish", 10.0, 5.0),
        ("learner-0", "update", 20.0, 7.0),
        (None, "task", 12.0, 1.0),
    }
