import os
from pathlib import Path

import pytest

from rlhf_dist.errors import DataError
from rlhf_dist.files import read_json_lines, whole_lines, write_json_lines, write_text, written_aside


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
