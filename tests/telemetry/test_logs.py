import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf_dist.errors import DataError
from rlhf_dist.run_folder.log_view import as_text, show_logs
from rlhf_dist.telemetry import logs


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    logs.to_file(str(tmp_path / "logs"), "rollout-0")
    logs.CONTEXT.update(iteration=3, version=2)
    yield tmp_path
    logs.CONTEXT.clear()
    for handler in [h for h in logging.getLogger().handlers if isinstance(h.formatter, logs.JsonLines)]:
        logging.getLogger().removeHandler(handler)
        handler.close()


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "logs" / "rollout-0.jsonl").read_text().splitlines()]


def test_each_line_has_actor_iteration_version_and_extras(folder: Path) -> None:
    logging.getLogger("rlhf_dist.rollout").info("pulled %s", "weights", extra={"seconds": 0.5})
    (line,) = lines(folder)
    assert {
        "actor": "rollout-0",
        "iteration": 3,
        "version": 2,
        "message": "pulled weights",
        "seconds": 0.5,
    }.items() <= line.items()


def test_others_warnings_are_kept_and_their_chatter_is_not(folder: Path) -> None:
    logging.getLogger("vllm").warning("odd")
    logging.getLogger("vllm").info("chatter")
    try:
        raise ValueError("broken on purpose")
    except ValueError:
        logging.getLogger("rlhf_dist").exception("it failed")
    assert [line["message"] for line in lines(folder)] == ["odd", "it failed"]
    assert "broken on purpose" in str(lines(folder)[1]["traceback"])


def test_half_a_line_waits_for_its_other_half(tmp_path: Path) -> None:
    file, offsets = tmp_path / "a.jsonl", dict[Path, int]()
    file.write_text('{"time": "1", "n": 1}\n{"time": "2"')
    assert [line["n"] for line in logs.read_new(tmp_path, offsets)] == [1]
    with file.open("a") as stream:
        stream.write(', "n": 2}\n')
    assert [line["n"] for line in logs.read_new(tmp_path, offsets)] == [2]
    assert list(logs.read_new(tmp_path, offsets)) == []


def test_lines_of_several_actors_come_in_the_order_of_time(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text('{"time": "1"}\n{"time": "3"}\n')
    (tmp_path / "a.jsonl").write_text('{"time": "2"}\n')
    assert [line["time"] for line in logs.read_new(tmp_path, {})] == ["1", "2", "3"]


def test_a_folder_that_cannot_be_written_does_not_stop_a_worker() -> None:
    logs.to_file("/proc/nowhere", "rollout-0")


def test_text_is_one_line_with_what_matters(folder: Path) -> None:
    logging.getLogger("rlhf_dist").warning("slow", extra={"seconds": 1.23456})
    text = as_text(lines(folder)[0]).plain
    assert text.split(maxsplit=1)[1] == "rollout-0    i3 v2      slow seconds=1.235"


def test_an_unknown_actor_is_answered_with_those_there_are(folder: Path) -> None:
    with pytest.raises(DataError, match=r"no log of 'rollout-7'; there are rollout-0"):
        show_logs(folder, follow=False, actor="rollout-7", as_json=False)
    with pytest.raises(DataError, match="no logs; expected a run folder"):
        show_logs(folder / "logs", follow=False, actor=None, as_json=False)


def test_a_line_that_was_torn_is_shown_and_the_next_one_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"time": "1", "message": "who')
    logs.to_file(str(tmp_path), "a")
    logging.getLogger("rlhf_dist").warning("back again")
    torn, whole = logs.read_new(tmp_path, {})
    assert torn["message"] == '(a torn line) {"time": "1", "message": "who'
    assert whole["message"] == "back again"
    assert "torn" in as_text({**torn, "time": whole["time"]}).plain


def test_a_full_disk_silences_the_log_and_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").symlink_to("/dev/full")
    logs.to_file(str(tmp_path), "a")
    logging.getLogger("rlhf_dist").warning("lost")
    logs.to_file(str(tmp_path / "elsewhere"), "a")
    assert "Traceback" not in capsys.readouterr().err
