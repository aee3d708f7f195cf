"""A row is read, or named with file and line."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_dist.config import DataFile
from rlhf_dist.data.tables import read_rows, read_table
from rlhf_dist.errors import DataError

ROWS = [{"prompt": f"grüße {n}", "messages": [{"role": "user", "content": f"é {n}"}]} for n in range(12)]


def lines(path: Path, *rows: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def arrow(path: Path, opener: object = pa.ipc.new_file) -> Path:
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(path), "wb") as sink, opener(sink, table.schema) as writer:  # type: ignore[operator]
        writer.write_table(table)
    return path


def test_empty_lines_at_the_end_are_none_and_one_between_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n{"prompt": "b"}\r\n\r\n  \n')
    assert [row["prompt"] for row in read_rows(str(file))] == ["a", "b"]
    file.write_bytes(b'{"prompt": "a"}\n\n{"prompt": "b"}\n\n')
    with pytest.raises(DataError, match="a.jsonl:2: an empty line"):
        read_rows(str(file))


def refusal(file: Path) -> str | None:
    """Why a file cannot be read; None: it can. Whatever else is raised passes."""
    try:
        read_rows(str(file))
    except DataError as error:
        return str(error)
    return None


def nested(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"prompt": "x\\udc00"}', r"a lone surrogate \\udc00"),
        ('{"messages": [{"role": "user", "content": "a\\uD83D b"}]}', r"a lone surrogate \\ud83d"),
        ('{"a": {"\\udfff": 1}}', r"a lone surrogate \\udfff"),
        (nested(150), "nested too deep; expected at most 100"),
        (nested(100_000), "nested too deep"),
        ('{"a": ' + "[" * 5000 + "]" * 5000 + "}", "nested too deep"),
        ("[{}]", "found list; expected a JSON object"),
        ('{"a": 1,}', "not valid JSON"),
        ("{} {}", "not valid JSON"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(line: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(f'{{"prompt": "fine \\ud83d\\ude00"}}\n{line}\n')
    with pytest.raises(DataError, match=f"a.jsonl:2: .*{told}"):
        read_rows(str(file))


@given(st.binary(max_size=60))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_rows_or_an_error_with_their_place(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    file = tmp_path_factory.mktemp("any") / "a.jsonl"
    file.write_bytes(data)
    told = refusal(file)
    assert told is None or str(file) in told


@pytest.mark.parametrize("kind", ["file.arrow", "stream.arrow", "table.parquet"])
def test_a_flipped_bit_is_an_error_or_other_rows_and_never_a_crash(kind: str, tmp_path: Path) -> None:
    good = tmp_path / kind
    if kind == "table.parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), good)
    else:
        arrow(good, pa.ipc.new_file if kind == "file.arrow" else pa.ipc.new_stream)
    assert read_rows(str(good)) == ROWS
    data, draws, refused = good.read_bytes(), random.Random(0), 0
    for place in range(0, len(data), 7):
        damaged = bytearray(data)
        damaged[place] ^= 1 << draws.randrange(8)
        good.write_bytes(damaged)
        told = refusal(good)
        refused += told is not None
        assert told is None or str(good) in told
    assert refused > len(data) // 7 // 4


def test_text_that_is_no_unicode_any_more_is_named_with_its_row(tmp_path: Path) -> None:
    file = arrow(tmp_path / "a.arrow")
    data = file.read_bytes()
    place = data.index("grüße 7".encode()) + 2
    file.write_bytes(data[:place] + b"\xff" + data[place + 1 :])
    with pytest.raises(DataError, match="a.arrow:8: the row is damaged in the column 'prompt'"):
        read_rows(str(file))


def test_a_folder_of_save_to_disk_is_read_by_split(tmp_path: Path) -> None:
    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": data.select(range(5)), "held": data.select(range(3))}).save_to_disk(tmp_path / "two")
    assert read_rows(str(tmp_path / "one")) == ROWS
    assert read_rows(str(tmp_path / "two"), split="held") == ROWS[:3]
    assert read_table(DataFile(path=str(tmp_path / "two")))[4] == (f"{tmp_path / 'two'}:5", ROWS[4])
    with pytest.raises(DataError, match="has no split 'test'; expected one of train, held"):
        read_rows(str(tmp_path / "two"), split="test")
    (tmp_path / "one" / "data-00000-of-00001.arrow").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="one: a data set that cannot be read"):
        read_rows(str(tmp_path / "one"))


SHARDS = ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet")


def test_a_folder_of_shards_is_read_in_order_and_by_split(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for number, name in enumerate(SHARDS):
        pq.write_table(pa.Table.from_pylist(ROWS[4 * number : 4 * number + 4]), tmp_path / name)
    assert read_rows(str(tmp_path)) == ROWS[:8]
    assert read_rows(str(tmp_path), split="test") == ROWS[8:]
    assert read_table(DataFile(path=str(tmp_path)))[5][0] == f"{tmp_path / SHARDS[1]}:2"
    with pytest.raises(DataError, match="no files of the split 'validation'; expected one of test, train"):
        read_rows(str(tmp_path), split="validation")


def test_splits_and_subsets_of_many_layouts(tmp_path: Path) -> None:
    for name in ("a/x.jsonl", "a/y.jsonl", "b/train.jsonl", "b/dev.jsonl", "c/one/train.jsonl", "c/two/train.jsonl"):
        lines(tmp_path / name, {"prompt": name})
    for name in ("d/train_sft-00000-of-00001.jsonl", "d/train_rm-00000-of-00001.jsonl", "e/.cache/x.jsonl"):
        lines(tmp_path / name, {"prompt": name})

    def read(folder: str, **how: str) -> list[str]:
        return [row["prompt"] for row in read_rows(str(tmp_path / folder), **how)]

    assert read("a") == ["a/x.jsonl", "a/y.jsonl"]
    assert read("b") == ["b/train.jsonl"]
    assert read("b", split="validation") == read("b", split="dev") == ["b/dev.jsonl"]
    assert read("c", subset="two") == ["c/two/train.jsonl"]
    assert read("d", split="train_rm") == ["d/train_rm-00000-of-00001.jsonl"]
    for folder, how, told in (
        ("c", {}, "has the subsets one, two; expected `subset`"),
        ("c", {"subset": "three"}, "has no subset 'three'; expected one of one, two"),
        ("d", {}, "no files of the split 'train'; expected one of train_rm, train_sft"),
        ("e", {}, "no data files; expected some of .jsonl"),
    ):
        with pytest.raises(DataError, match=told):
            read(folder, **how)


@pytest.mark.parametrize("name", ["a.json", "a.csv", "a.jsonl.gz", "a"])
def test_other_kinds_of_files_are_refused_with_a_way_out(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("[]")
    with pytest.raises(DataError, match=r"unknown kind of file .*expected one of \.jsonl.*to_json writes"):
        read_rows(str(tmp_path / name))


@pytest.mark.parametrize("path", ["/no/where", "./x", "a/b/c", "x.parquet"])
def test_a_path_that_is_not_there_is_no_name_on_the_hub(path: str) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        read_rows(path)


def test_a_subset_reaches_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, subset: str | None, *, split: str) -> list[dict[str, str]]:
        asked.append((name, subset, split))
        if subset is None:
            raise ValueError("Config name is missing.\nPlease pick one among: ['main', 'socratic']")
        return [{"prompt": "x"}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read_rows("acme/sums", split="test", subset="main") == [{"prompt": "x"}]
    assert asked == [("acme/sums", "main", "test")]
    with pytest.raises(DataError, match=r"acme/sums: .*\['main', 'socratic'\]. Set `subset`"):
        read_rows("acme/sums")


def one_saved(folder: Path, rows: Any = ROWS) -> Path:
    datasets.Dataset.from_list(rows).save_to_disk(folder)
    return folder


@pytest.mark.parametrize("how", [{"split": "test"}, {"split": "validation"}, {"subset": "main"}])
def test_one_file_has_no_splits_and_no_subsets(how: dict[str, str], tmp_path: Path) -> None:
    for path in (lines(tmp_path / "a.jsonl", *ROWS), one_saved(tmp_path / "one")):
        ((name, value),) = how.items()
        with pytest.raises(DataError, match=f"{path.name}: .*asked for the {name} '{value}'; expected no {name}"):
            read_rows(str(path), **how)
        other = DataFile(path="data/of/many", split="train_sft", subset="main")
        assert [row for _, row in read_table(other, str(path))] == ROWS
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "two")
    with pytest.raises(DataError, match="two: asked for the subset 'main'"):
        read_rows(str(tmp_path / "two"), subset="main")


def test_damage_in_a_folder_of_save_to_disk_is_named_and_no_crash(tmp_path: Path) -> None:
    """In a process of its own, which damaged offsets would end."""
    file = one_saved(tmp_path / "one") / "data-00000-of-00001.arrow"
    code = f"""
import random
import subprocess
import sys
from pathlib import Path
from typing import Any
from rlhf_dist.data.tables import read_rows
from rlhf_dist.errors import DataError
file, draws, refused = Path({str(file)!r}), random.Random(0), 0
good = file.read_bytes()
for place in range(0, len(good), 23):
    data = bytearray(good)
    data[place] ^= draws.choice((1, 128, 255))
    file.write_bytes(data)
    try:
        read_rows(str(file.parent))
    except DataError:
        refused += 1
file.write_bytes(good.replace("grüße 7".encode(), b"gr\\xff\\xff\\xff\\x9fe 7"))
try:
    read_rows(str(file.parent))
except DataError as error:
    print(refused, error)
"""
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert int(told.split()[0]) > 5
    assert "one:8: the row is damaged" in told


def test_keys_that_arrow_lends_to_other_rows_are_not_there(tmp_path: Path) -> None:
    def row(name: str, argument: str) -> dict[str, Any]:
        call = {"function": {"name": name, "arguments": {argument: 1}}}
        said = [{"role": "assistant", "content": None, "tool_calls": [call]}]
        return {"messages": said, "tools": [{"name": name, "properties": {argument: {"type": "int"}}}], "x": None}

    rows = [row("f", "a"), row("g", "b")]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    assert read_rows(str(tmp_path / "t.parquet")) == rows
    assert read_rows(str(one_saved(tmp_path / "one", rows))) == rows


def test_what_the_system_refuses_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deadin").mkdir()
    (tmp_path / "deadin" / "train.jsonl").symlink_to(tmp_path / "nowhere")
    for name in ("mem.jsonl", "mem.parquet", "mem.arrow"):
        (tmp_path / name).symlink_to("/proc/self/mem")
    for name in ("deadin", "mem.jsonl", "mem.parquet", "mem.arrow", "n" * 300 + ".jsonl"):
        with pytest.raises(DataError, match=rf"{name}.*: (cannot be read: |neither|not a readable)"):
            read_rows(str(tmp_path / name))
    lines(tmp_path / "a" / "x.jsonl", *ROWS)

    def scandir(path: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match="/a: cannot be read: Permission denied"):
        read_rows(str(tmp_path / "a"))


def test_no_path_and_utf_16_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes('{"prompt": "a"}\n'.encode("utf-16"))
    with pytest.raises(DataError, match="a.jsonl:1: the file is UTF-16; expected UTF-8"):
        read_rows(str(tmp_path / "a.jsonl"))
    with pytest.raises(DataError, match="path is empty"):
        read_rows("")


def test_a_value_that_python_does_not_have_is_named_with_its_column(tmp_path: Path) -> None:
    table = pa.table({"prompt": ["a", "b"], "when": pa.array([0, 2**62], pa.timestamp("us"))})
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(DataError, match="t.parquet:2: the row is damaged in the column 'when'"):
        read_rows(str(tmp_path / "t.parquet"))
