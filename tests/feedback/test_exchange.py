import json
import logging
from pathlib import Path
from typing import Any

import datasets
import pytest

from rlhf_dist.config import Feedback
from rlhf_dist.data.feedback import Judged, read_feedback
from rlhf_dist.errors import DataError
from rlhf_dist.feedback.exchange import imported, write_rows
from tests.feedback.exports import ARGILLA, FLAT, ONE, PAIR, responses


def written(tmp_path: Path, records: object) -> Path:
    path = tmp_path / "e.json"
    path.write_text(json.dumps(records))
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_what_is_imported_is_what_we_read(suffix: str, tmp_path: Path) -> None:
    write_rows(tmp_path / f"rows.{suffix}", imported(written(tmp_path, ARGILLA), "argilla"))

    def read(criterion: str) -> Judged:
        (one,) = read_feedback([Feedback(path=str(tmp_path / f"rows.{suffix}"), criterion=criterion, scale=(1, 5))])
        return one

    one = read("pick")
    assert (one.kind, one.prompt, one.answers, one.label, one.annotator) == ("comparisons", "q", ("x", "y"), 0.0, "u")
    one = read("best")
    asked = [{"role": "user", "content": "hi"}]
    assert (one.kind, one.prompt, one.answers) == ("rankings", asked, ("z", "y", "x"))
    one = read("harmless")
    assert (one.kind, one.answers, one.label, one.source) == ("scores", ("hello there",), 0.0, "rows, harmless")


@pytest.mark.parametrize("form", ["json", "jsonl", "parquet", "folder"])
def test_a_data_set_of_argilla_is_read_from_any_file(form: str, tmp_path: Path) -> None:
    rows = [FLAT[0], {**FLAT[0], "pick.responses.status": ["draft", "submitted"]}]
    file = tmp_path / ("folder" if form == "folder" else f"e.{form}")
    made = datasets.Dataset.from_list(rows)
    if form == "json":
        file.write_text(json.dumps(rows))
    else:
        {"jsonl": made.to_json, "parquet": made.to_parquet, "folder": made.save_to_disk}[form](str(file))
    assert [(row["preference"], row["annotator"]) for row in imported(file, "argilla")] == [
        (1, "u"),
        (0, "v"),
        (0, "v"),
    ]


BAD: dict[str, tuple[object, str]] = {
    "no list": ({"a": 1}, "found dict; expected a list of records"),
    "no responses": ([{"fields": {}}], "record 1: no 'responses'"),
    "nobody said anything": ([{"fields": {"prompt": "q"}, "responses": {}}], "no judgements in 1 records$"),
    "a number about a pair": (
        [{"fields": PAIR, "responses": responses(stars=2)}],
        "no judgements in 1 records; left out: 1 numbers of stars, which say of no answer",
    ),
    "no prompt": (
        [{"fields": {"a": "x"}, "responses": responses(s=3)}],
        r"fields are \['a'\]; expected a prompt. Known",
    ),
    "the same": (
        [{"fields": {**PAIR, "response-2": " x\n"}, "responses": responses(pick="response-1")}],
        "record 1: the answers response-1 and response-2 are the same",
    ),
    "half a character": (
        [{"fields": ONE, "responses": responses(why="\ud800")}],
        r"record 1: a lone surrogate \\ud800",
    ),
    "depth": ([{"fields": ONE, "responses": json.loads("[" * 150 + "]" * 150)}], "record 1: JSON nested too deep"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_not_an_export_is_refused_with_the_record(case: str, tmp_path: Path) -> None:
    records, message = BAD[case]
    with pytest.raises(DataError, match=message):
        imported(written(tmp_path, records), "argilla")


def test_other_tools_and_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="tool is 'doccano'; expected one of argilla, label-studio"):
        imported(written(tmp_path, ARGILLA), "doccano")
    with pytest.raises(DataError, match=r"expected .jsonl or .parquet"):
        write_rows(tmp_path / "rows.csv", [])
    (tmp_path / "e.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"e.json: not a readable JSON file"):
        imported(tmp_path / "e.json", "argilla")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_an_export_with_a_byte_order_mark_is_read(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "e.json").write_bytes(json.dumps(ARGILLA, ensure_ascii=False).encode(encoding))
    assert len(imported(tmp_path / "e.json", "argilla")) == 6


def test_what_is_left_out_is_said_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    states: list[dict[str, Any]] = [
        {"value": 5, "user_id": "u", "status": each} for each in ("draft", "discarded", "draft")
    ]
    with caplog.at_level(logging.WARNING):
        imported(written(tmp_path, [*ARGILLA, {"fields": ONE, "responses": {"helpful": states}}]), "argilla")
    assert caplog.messages == [f"{tmp_path}/e.json: left out: 2 draft responses, 1 discarded responses"]
