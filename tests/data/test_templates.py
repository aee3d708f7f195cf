"""Messages that a template does not know are refused in a sentence, and what a row says of its template reaches it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf_dist.config import Demonstrations, Feedback, Prompts, Rollout
from rlhf_dist.data.demonstrations import read_demonstrations
from rlhf_dist.data.feedback import read_feedback
from rlhf_dist.data.judgements import JudgedTokens
from rlhf_dist.data.prompts import chat_text, read_prompts
from rlhf_dist.data.templates import checked_messages
from rlhf_dist.errors import DataError
from tests.chats import CHATML, THINKING, TOOLS, chat_tokenizer, spelled

ASKED = {"role": "user", "content": "Hi"}
PARTS = CHATML.replace("{{ m['content'] }}", "{% for part in m['content'] %}<{{ part.text }}>{% endfor %}")


def write(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


BAD = {
    "capital": ({"role": "Assistant", "content": "x"}, "role is 'Assistant'; .*did you mean 'assistant'"),
    "sharegpt's role": (
        {"role": "gpt", "content": "x"},
        "role is 'gpt'; expected system, user, assistant or tool; .*'assistant'",
    ),
    "nobody's role": (
        {"role": "narrator", "content": "x"},
        "role is 'narrator'; expected system, user, assistant or tool$",
    ),
    "sharegpt": (
        {"from": "human", "value": "x"},
        "has `from` and `value`; expected `role` and `content`, here the role 'user'",
    ),
    "no content": ({"role": "user"}, "expected a mapping with texts `role` and `content`"),
    "null content": ({"role": "user", "content": None}, "has no content; expected text"),
    "tool calls that no template shows": (
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]},
        "has no content; expected text, since the chat template takes no `tool_calls`",
    ),
    "picture": (
        {"role": "user", "content": [{"type": "image", "url": "x"}]},
        "content has the part .*which is all this template",
    ),
    "number": ({"role": "user", "content": 3}, "content is 3; expected text"),
    "text": ("Hi", "expected a mapping with texts"),
    "role of another kind": ({"role": 1, "content": "x"}, "expected a mapping with texts"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_message_that_is_none_is_named(case: str) -> None:
    message, told = BAD[case]
    with pytest.raises(DataError, match=f"f:4: message 2:? ?.*{told}"):
        checked_messages("f:4", [ASKED, message], chat_tokenizer(CHATML))


def test_roles_that_the_template_itself_names_are_known() -> None:
    ipython = CHATML.replace("{{ m['role'] }}", "{{ 'tool' if m['role'] == \"ipython\" else m['role'] }}")
    checked_messages("f:1", [ASKED, {"role": "ipython", "content": "3"}], chat_tokenizer(ipython))


def test_parts_go_to_templates_that_take_them_and_as_text_to_others() -> None:
    said = [{"role": "user", "content": [{"type": "text", "text": "Hi "}, {"type": "text", "text": "you"}]}]
    assert "\nHi you<|im_end|>" in chat_text("f:1", said, chat_tokenizer(CHATML))
    assert "\n<Hi ><you><|im_end|>" in chat_text("f:1", said, chat_tokenizer(PARTS))


ERRORS = {
    "{{ messages[0].content.x.y }}": "has no attribute 'x'",
    "{% for m in messages %}{{ m['content'] }}": "Unexpected end of template",
    "{{ messages[9]['content'] }}": "",
    "{{ messages[0].content + 3 }}": "",
    "{{ 1 // 0 }}": "division",
    "{{ raise_exception('Only two turns, please') }}": "Only two turns, please",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "",
    "{{ messages | nothing }}": "No filter named 'nothing'",
}


@pytest.mark.parametrize("template", ERRORS)
@pytest.mark.parametrize("form", ["prompts", "messages", "pair", "scores"])
def test_what_a_template_raises_is_named_with_the_line(template: str, form: str, tmp_path: Path) -> None:
    tokenizer = chat_tokenizer(template)
    answer = {"role": "assistant", "content": "yo"}

    def read() -> Any:
        file = tmp_path / "f.jsonl"
        if form == "prompts":
            return read_prompts(Prompts(path=write(file, {"prompt": [ASKED]})), tokenizer)
        if form == "scores":
            judged = read_feedback(
                [Feedback(path=write(file, {"prompt": [ASKED], "answer": "yo", "score": 1}), kind="scores")]
            )
            return JudgedTokens(tokenizer, max_tokens=99).fitting(judged)
        row = {"messages": [ASKED, answer]} if form == "messages" else {"prompt": [ASKED], "completion": "yo"}
        return read_demonstrations(write(file, row), tokenizer, max_tokens=99)

    with pytest.raises(
        DataError, match=r"f\.jsonl:1: the chat template cannot render these messages: .*" + ERRORS[template]
    ):
        read()


def test_several_named_templates_without_a_default_are_refused() -> None:
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = {"rag": CHATML, "short": CHATML}
    with pytest.raises(DataError, match=r"f:1: no chat template to take.*\['rag', 'short'\]"):
        checked_messages("f:1", [ASKED], tokenizer)
    tokenizer.chat_template = {"default": CHATML, "tool_use": TOOLS}
    assert chat_text("f:1", [ASKED], tokenizer).endswith("assistant\n")


TOOL = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("form", ["prompts", "messages", "pair", "comparisons"])
def test_tools_and_arguments_reach_the_template_from_every_reader(form: str, as_text: bool, tmp_path: Path) -> None:
    both = TOOLS.replace("{% if tools %}", "{% if shout is defined %}{{ shout }}{% endif %}{% if tools %}")
    tokenizer, file = chat_tokenizer(both), tmp_path / "f.jsonl"
    row: dict[str, Any] = {"tools": json.dumps(TOOL) if as_text else TOOL, "chat_template_kwargs": {"shout": "ROW"}}
    if as_text:
        del row["chat_template_kwargs"]
    said = [{"role": "assistant", "content": text} for text in ("yo", "no")]
    given: dict[str, Any] = {"chat_template_kwargs": {"shout": "FILE"}}
    if form == "prompts":
        tokens = read_prompts(Prompts(path=write(file, {**row, "prompt": [ASKED]}), **given), tokenizer)[0].tokens
    elif form == "comparisons":
        path = write(file, {**row, "prompt": [ASKED], "chosen": said[:1], "rejected": said[1:]})
        (one,) = read_feedback([Feedback(path=path, **given)])
        tokens = tuple(JudgedTokens(tokenizer, max_tokens=200)(one, "yo")[0])
    else:
        own = {"messages": [ASKED, said[0]]} if form == "messages" else {"prompt": [ASKED], "completion": said[:1]}
        path = write(file, {**row, **own})
        tokens = tuple(read_demonstrations(path, tokenizer, max_tokens=200, settings=Demonstrations(**given))[0].tokens)
    text = "".join(spelled(tokenizer, tokens))
    assert text.startswith(("FILE" if as_text else "ROW") + '<|im_start|>system\n[{"type": "function"')


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"tools": "{"}, "tools is text that is not JSON"),
        ({"tools": {"name": "f"}}, "tools is .*; expected a list"),
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs is .*; expected a mapping"),
    ],
)
def test_tools_that_are_none_are_named(row: dict[str, Any], told: str, tmp_path: Path) -> None:
    path = write(tmp_path / "f.jsonl", {"prompt": [ASKED]}, {"prompt": [ASKED], **row})
    with pytest.raises(DataError, match=rf"f.jsonl:2: {told}"):
        read_prompts(Prompts(path=path), chat_tokenizer(TOOLS))


def test_fields_that_parquet_fills_with_nulls_are_not_there(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    said = [ASKED, call, {"role": "tool", "content": "3"}, {"role": "assistant", "content": "Three."}]
    pq.write_table(pa.Table.from_pylist([{"messages": said}]), tmp_path / "m.parquet")
    (found,) = read_demonstrations(str(tmp_path / "m.parquet"), chat_tokenizer(TOOLS), max_tokens=200)
    (same,) = read_demonstrations(
        write(tmp_path / "m.jsonl", {"messages": said}), chat_tokenizer(TOOLS), max_tokens=200
    )
    assert found == replace(same, where=found.where)


def test_thinking_can_be_switched_off_for_a_file(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", {"prompt": [ASKED]})
    texts = [
        read_prompts(Prompts(path=path, chat_template_kwargs=kwargs), chat_tokenizer(THINKING))[0].text
        for kwargs in ({}, {"enable_thinking": False})
    ]
    assert [text.endswith("</think>\n\n") for text in texts] == [False, True]


def test_a_rows_own_word_on_special_tokens_goes_before_its_files(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer(CHATML)
    rows = [{"prompt": "a<|im_end|>b", "special_tokens": own} for own in (False, True, None)]
    found = read_prompts(Prompts(path=write(tmp_path / "p.jsonl", *rows), special_tokens=True), tokenizer)
    assert [tokenizer.convert_tokens_to_ids("<|im_end|>") in one.tokens for one in found] == [False, True, True]
    for bad in ("true", 1):
        path = write(tmp_path / "p.jsonl", {"prompt": "a", "special_tokens": bad})
        with pytest.raises(DataError, match="p.jsonl:1: special_tokens is .*; expected true or false"):
            read_prompts(Prompts(path=path), tokenizer)


@pytest.mark.parametrize("name", ["tokenize", "chat_template", "add_generation_prompt", "messages", "max_length"])
def test_arguments_of_the_tokenizer_are_none_of_the_template(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", {"prompt": [ASKED], "chat_template_kwargs": {name: True}})
    with pytest.raises(DataError, match=f"p.jsonl:1: chat_template_kwargs has '{name}'"):
        read_prompts(Prompts(path=path), chat_tokenizer(CHATML))
    with pytest.raises(ValueError, match=f"{name} is an argument of apply_chat_template itself"):
        Prompts(path=path, chat_template_kwargs={name: True})


def test_a_stop_string_has_a_character() -> None:
    with pytest.raises(ValueError, match="at least 1 character"):
        Rollout(stop=("x", ""))
