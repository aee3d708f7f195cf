"""A chat for people: all that is said, by whom, and nothing of a template."""

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_dist.config import Prompts
from rlhf_dist.data.conversations import Said, spoken_text, turns
from rlhf_dist.data.prompts import read_prompts
from tests.chats import CHATML, SPECIAL, TEMPLATES, TOOLS, chat_tokenizer

CALL = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Köln"}'}}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Tells it.", "parameters": {}}}


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([{"role": "user", "content": " Hi \n"}], [Said("user", "Hi")]),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}], [Said("user", "ab")]),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], [Said("user", '{"type": "image", "url": "x"}')]),
        ([{"role": "assistant", "content": None, "tool_calls": [CALL]}], [Said("assistant", 'weather({"city": "Köln"})')]),
        ([{"role": "assistant", "content": "So:", "tool_calls": [{"x": 1}]}], [Said("assistant", 'So:\n{"x": 1}')]),
        ([{"role": "tool", "name": "weather", "content": "rain"}], [Said("tool", "rain", "weather")]),
        ([{"role": "system", "content": ""}, {"role": "user", "content": "a"}], [Said("user", "a")]),
    ],
)  # fmt: skip
def test_each_message_says_what_it_holds(messages: list[dict[str, Any]], expected: list[Said]) -> None:
    assert turns({"prompt_messages": messages}) == expected


def test_tools_come_first_and_a_text_has_no_turns() -> None:
    said = turns({"prompt_messages": [{"role": "user", "content": "a"}], "tools": [TOOL, {"name": "b"}, 3]})
    assert said == [Said("tools", "weather: Tells it.\nb\n3"), Said("user", "a")]
    assert turns({"prompt": "a", "special_tokens": True}) == []


def test_a_chat_is_read_paragraph_by_paragraph() -> None:
    assert spoken_text([Said("user", "a\nb"), Said("tool", "c", "d")]) == "User: a\nb\n\nTool (d): c"


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_people_are_shown_has_nothing_of_a_template(name: str, tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": "Hi <eos>"}]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]},
        {"prompt": "<bos>plain"},
        {"prompt": "<|im_start|>user\nHi<|im_end|>\n", "special_tokens": True},
        {"prompt": "<|user|>", "special_tokens": True},
    ]  # fmt: skip
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = read_prompts(Prompts(path=str(tmp_path / "p.jsonl")), chat_tokenizer(TEMPLATES[name][0]))
    assert [one.shown for one in prompts] == [
        "User: Hi <eos>",
        "User: a\n\nAssistant: b\n\nUser: c",
        "plain",
        "user\nHi\n",
        "<|user|>",  # else there would be nothing to show
    ]
    assert any(special in prompts[1].text for special in SPECIAL), "judges and rewards are given what they were"


def test_tools_are_shown_with_the_chat(tmp_path: Path) -> None:
    row = {"prompt": [{"role": "user", "content": "Hi"}], "tools": [TOOL]}
    (tmp_path / "p.jsonl").write_text(json.dumps(row) + "\n")
    (prompt,) = read_prompts(Prompts(path=str(tmp_path / "p.jsonl")), chat_tokenizer(TOOLS))
    assert prompt.shown == "Tools: weather: Tells it.\n\nUser: Hi"


def test_a_text_that_is_shown_as_it_is_needs_no_source(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a <|im_end|>"}\n')
    (prompt,) = read_prompts(Prompts(path=str(tmp_path / "p.jsonl")), chat_tokenizer(CHATML))
    assert (prompt.source, prompt.spoken, prompt.shown) == ("", "", "a <|im_end|>")
