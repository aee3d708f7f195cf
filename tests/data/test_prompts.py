import json
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_dist.config import Prompts
from rlhf_dist.data.prompts import PromptSampler, read_prompts
from rlhf_dist.data.tables import read_rows
from rlhf_dist.errors import DataError
from rlhf_dist.records import Prompt
from rlhf_dist.tasks.helpdesk import build_tokenizer

TOKENIZER = build_tokenizer()


def read(path: Path, limit: int = 50) -> list[Prompt]:
    return read_prompts(Prompts(path=str(path), max_tokens=limit), TOKENIZER)


def test_jsonl_parquet_and_both_arrow_formats_give_the_same_prompts(tmp_path: Path) -> None:
    table = pa.table({"prompt": ["Customer: Hello", "Customer: Hi"]})
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    pq.write_table(table, tmp_path / "a.parquet")
    for name, opener in (("file.arrow", pa.ipc.new_file), ("stream.arrow", pa.ipc.new_stream)):
        with pa.OSFile(str(tmp_path / name), "wb") as sink, opener(sink, table.schema) as writer:
            writer.write_table(table)
    expected = read(tmp_path / "a.jsonl")
    assert [prompt.id for prompt in expected] == [0, 1]
    for name in ("a.parquet", "file.arrow", "stream.arrow"):
        assert read(tmp_path / name) == expected


def test_chat_messages_go_through_the_template_once(tmp_path: Path) -> None:
    file = tmp_path / "chat.jsonl"
    file.write_text(json.dumps({"messages": [{"role": "user", "content": "Hello"}]}) + "\n")
    (prompt,) = read(file)
    assert prompt.text.endswith("Agent:")
    assert prompt.tokens.count(TOKENIZER.bos_token_id) <= 1


def test_a_rows_other_columns_are_kept_under_their_names_and_further_ones(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Hello", "answer": "4", "level": None, "tests": ["a", {"b": 1.5}], "tools": None},
        {"prompt": "Hello", "target": "own", "answer": "5", "messages": []},
        {"prompt": "Hello"},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = Prompts(path=str(tmp_path / "a.jsonl"), columns={"target": "answer"})
    first, second, third = (prompt.columns for prompt in read_prompts(settings, TOKENIZER))
    assert json.loads(first) == {"target": "4", "answer": "4", "level": None, "tests": ["a", {"b": 1.5}]}
    assert json.loads(second) == {"target": "own", "answer": "5"}
    assert third == ""


def test_what_json_cannot_say_is_no_column_for_functions(tmp_path: Path) -> None:
    table = pa.table({"prompt": ["Hello"], "day": [date(2026, 1, 1)], "image": [b"x"], "solution": ["4"]})
    pq.write_table(table, tmp_path / "a.parquet")
    (prompt,) = read(tmp_path / "a.parquet")
    assert json.loads(prompt.columns) == {"solution": "4"}


BAD = {
    "empty.jsonl": ("", "the file is empty"),
    "broken.jsonl": ('{"prompt": "a"}\n{"prompt":\n', "broken.jsonl:2: not valid JSON"),
    "list.jsonl": ("[1]\n", "list.jsonl:1: found list; expected a JSON object"),
    "gap.jsonl": ('{"prompt": "a"}\n\n{"prompt": "a"}\n', "gap.jsonl:2: an empty line"),
    "column.jsonl": ('{"text": "a"}\n', "columns are \\['text'\\]; expected `prompt` or `messages`"),
    "blank.jsonl": ('{"prompt": "a"}\n{"prompt": " "}\n', "blank.jsonl:2: prompt is ' '"),
    "number.jsonl": ('{"prompt": 3}\n', "number.jsonl:1: prompt is 3; expected text"),
    "long.jsonl": (
        json.dumps({"prompt": "Hello " * 80}) + "\n",
        "long.jsonl:1: the prompt has \\d+ tokens; expected at most 50",
    ),
    "chat.jsonl": ('{"messages": [{"role": "user"}]}\n', "chat.jsonl:1: message .* expected a mapping"),
    "kind.csv": ("a\n", "unknown kind of file '.csv'"),
    "bad.parquet": ("nonsense", "not a readable Parquet file"),
    "bad.arrow": ("nonsense", "neither an Arrow IPC file nor a stream"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named_with_their_line(name: str, tmp_path: Path) -> None:
    content, message = BAD[name]
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / name)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing.jsonl: no such file"):
        read_rows(str(tmp_path / "nothing.jsonl"))


def prompts(count: int) -> list[Prompt]:
    return [Prompt(number, (1, 2), "x") for number in range(count)]


@given(st.integers(1, 50), st.integers(1, 10), st.integers(0, 5))
def test_each_epoch_serves_each_prompt_at_most_once_and_batches_are_full(extra: int, batch: int, seed: int) -> None:
    sampler = PromptSampler(prompts(batch + extra), batch=batch, samples=2, seed=seed)
    per_epoch = (batch + extra) // batch
    served = [task.prompt_id for iteration in range(per_epoch) for task in sampler.batch(iteration)]
    assert len(served) == len(set(served)) == per_epoch * batch
    again = PromptSampler(prompts(batch + extra), batch=batch, samples=2, seed=seed)
    assert again.batch(per_epoch + 1) == sampler.batch(per_epoch + 1)


def test_too_few_prompts_are_refused() -> None:
    with pytest.raises(DataError, match="3 prompts; expected at least rl.prompts_per_iteration = 4"):
        PromptSampler(prompts(3), batch=4, samples=1, seed=0)
