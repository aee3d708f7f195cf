import errno
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_dist.errors import DataError, ModelError, RunError, StorageError
from rlhf_dist.files import (
    as_exact_json,
    as_json,
    read_json_lines,
    whole_lines,
    write_json_lines,
    write_text,
    written_aside,
)


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_is_the_old_one_until_the_new_one_is_whole(durable: bool, tmp_path: Path) -> None:
    file = tmp_path / "sub" / "status.json"
    write_text(file, "old", durable=durable)

    def interrupted() -> None:
        with written_aside(file, durable=durable) as aside:
            aside.write_text("ne")
            assert file.read_text() == "old"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert file.read_text() == "old"
    write_text(file, "new", durable=durable)
    assert [path.name for path in file.parent.iterdir()] == ["status.json"], "what was left aside is gone"
    assert file.read_text() == "new"


def test_a_folder_takes_the_place_of_another_whole(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with written_aside(tmp_path / "model") as aside:
            (aside / "deep").mkdir(parents=True)
            (aside / "deep" / name).write_text(name)
    assert [path.name for path in (tmp_path / "model" / "deep").iterdir()] == ["b"]


def test_what_must_last_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[str, bool]] = []
    real, target = os.fsync, tmp_path / "model"

    def fsync(handle: int) -> None:
        synced.append((Path(os.readlink(f"/proc/self/fd/{handle}")).name, target.exists()))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with written_aside(target) as aside:
        aside.mkdir()
        (aside / "weights").write_text("w")
    assert synced == [("weights", False), (".model.partial", False), (tmp_path.name, True)]
    synced.clear()
    write_text(tmp_path / "status.json", "x", durable=False)
    assert synced == []


def test_json_lines_survive_and_a_bad_one_is_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    write_json_lines(file, [{"a": 1}, {"b": "ü\n"}])
    assert read_json_lines(file) == [{"a": 1}, {"b": "ü\n"}]
    for text, told in (
        ("{}\n[1]\n", "rows.jsonl:2: found list"),
        ("{}\n\n", "rows.jsonl:2: an empty line"),
        ("{", ":1: not valid"),
    ):
        file.write_text(text)
        with pytest.raises(DataError, match=told):
            read_json_lines(file)
    with pytest.raises(DataError, match="none.jsonl: no such file"):
        read_json_lines(tmp_path / "none.jsonl")


def test_a_line_that_does_not_end_is_not_read_yet() -> None:
    assert whole_lines(b'{"a": 1}\n{"b"') == [b'{"a": 1}']
    assert whole_lines(b'{"a"') == []
    assert whole_lines(b"") == []


def strict(text: str) -> object:
    """As RFC 8259 and other languages' parsers read it."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_numbers_that_json_lacks_are_null_or_refused() -> None:
    value = {"a": math.nan, "b": [1.5, -math.inf, {"c": (math.inf, "x", None, True)}], "d": 2}
    assert strict(as_json(value)) == {"a": None, "b": [1.5, None, {"c": [None, "x", None, True]}], "d": 2}
    assert as_json({"a": 0.1}, indent=1) == json.dumps({"a": 0.1}, indent=1)
    assert strict(as_exact_json({"a": 0.1}, "state.json")) == {"a": 0.1}
    with pytest.raises(RunError, match="state.json: .*nan.*expected finite"):
        as_exact_json({"a": math.nan}, "state.json")


def test_json_lines_hold_no_bare_nan(tmp_path: Path) -> None:
    write_json_lines(tmp_path / "rows.jsonl", [{"x": math.nan}, {"x": 1.0}])
    assert [strict(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == [{"x": None}, {"x": 1.0}]


def test_json_is_written_in_one_place_only() -> None:
    package = Path(__file__).parent.parent / "rlhf_dist"
    writes = re.compile(r"json\.dumps?\(|model_dump_json\(")
    found = [str(file.relative_to(package)) for file in package.rglob("*.py") if writes.search(file.read_text())]
    assert sorted(found) == [
        "chaos/server.py",  # lies on purpose
        "files.py",
        "models/tokenizers.py",  # only makes a digest of it
        "scoring/function_host.py",  # its numbers are read as they are, NaN too
        "verifiers/sandbox.py",  # imports nothing of ours
    ]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "x"), "No space left on device"),
        (OSError(errno.EROFS, "x"), "Read-only file system"),
        (OSError(errno.EDQUOT, "x"), "Disk quota exceeded"),
        (OSError(errno.EIO, "x"), "Input/output error"),
        (RuntimeError("SafetensorError: I/O error: No space left on device (os error 28)"), "No space left on device"),
        (
            RuntimeError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space"),
            "No space left on device",
        ),
    ],
)
def test_whatever_says_that_the_disk_takes_nothing_is_one_sentence(
    error: Exception, reason: str, tmp_path: Path
) -> None:
    def write() -> None:
        with written_aside(tmp_path / "model") as aside:
            aside.mkdir()
            (aside / "half").write_text("x")
            raise error

    with pytest.raises(StorageError, match=rf"/model: cannot be written: {reason}; [\d,]+ MiB are free on its disk$"):
        write()
    assert [*tmp_path.iterdir()] == [], "nothing half written stays on a full disk"


@pytest.mark.parametrize(
    "error", [ValueError("step 28"), PermissionError(errno.EACCES, "x", "/elsewhere"), ModelError("(os error 28)")]
)
def test_other_errors_stay_what_they_are(error: Exception, tmp_path: Path) -> None:
    def write() -> None:
        with written_aside(tmp_path / "model"):
            raise error

    with pytest.raises(type(error)) as told:
        write()
    assert told.value is error


def test_a_file_limit_is_a_full_disk(tmp_path: Path) -> None:
    code = f"""
import resource, signal
from pathlib import Path
from rlhf_dist.files import write_text
from rlhf_dist.telemetry.trackers import JsonlTracker
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
for write in (
    lambda: write_text(Path({str(tmp_path)!r}) / "a", "x" * 20_000),
    lambda: [JsonlTracker(Path({str(tmp_path)!r}) / "metrics.jsonl").log(n, {{"x": 0.5}}) for n in range(1000)],
):
    try:
        write()
    except Exception as error:
        print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [line.split(";")[0] for line in done.stdout.splitlines()] == [
        f"StorageError {tmp_path}/a: cannot be written: File too large",
        f"StorageError {tmp_path}/metrics.jsonl: cannot be written: File too large",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    rows = read_json_lines(tmp_path / "metrics.jsonl")
    assert [row["iteration"] for row in rows] == [*range(len(rows))]
    assert len(rows) > 300


WRITES = re.compile(
    r"write_text\(|write_bytes\(|\.open\([^)]*[\"'](?:[wax]|r\+)|save_pretrained\(|save_file\(|save_model\(|OSFile\("
)
ASIDE = {
    "chaos/faults.py": "damages on purpose",
    "chaos/sight.py": "what a driver says, as it says it",
    "checkpoint.py": "the digests of a folder that is aside",
    "feedback/exchange.py": "aside",
    "learner/adapters.py": "into a model's folder that is aside",
    "learner/optimizer_state.py": "into a checkpoint's folder that is aside",
    "learner/saving.py": "into a model's folder that is aside",
    "learner/writing.py": "into a folder that is aside",
    "models/ends.py": "into a model's folder that is aside",
    "run_folder/folder.py": "over the status on a full disk, where nothing else is possible",
    "run_folder/quarantine.py": "only grows, by whole lines",
    "scoring/reward_file.py": "into a model's folder that is aside",
    "stages/rl.py": "aside",
    "stages/moving_reference.py": "aside",
    "stages/resume.py": "aside",
    "stages/stage_checkpoints.py": "into a checkpoint's folder that is aside",
    "store/kept.py": "aside",
    "tasks/helpdesk/__init__.py": "aside",
    "tasks/start_model.py": "aside",
    "telemetry/logs.py": "logs only grow",
    "telemetry/trackers.py": "metrics.jsonl only grows, by whole lines",
}


def test_whatever_is_read_later_is_written_aside() -> None:
    """Who writes in another way than by `files.write_text`, and why that is right."""
    package = Path(__file__).parent.parent / "rlhf_dist"
    own = re.compile(r"(?<![.\w])write_text\(")  # `files.write_text`, which writes aside
    found = {
        str(file.relative_to(package))
        for file in package.rglob("*.py")
        if file.name != "files.py" and WRITES.search(own.sub("", file.read_text()))
    }
    assert found == ASIDE.keys()
