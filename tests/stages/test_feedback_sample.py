"""From answers to tasks; the sampling itself: tests/integration/test_demo.py."""

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_dist.config import Feedback, Prompts
from rlhf_dist.data.feedback import read_feedback
from rlhf_dist.data.judgements import JudgedTokens
from rlhf_dist.data.prompts import read_prompts
from rlhf_dist.feedback.task_files import read_tasks, write_tasks
from rlhf_dist.records import Prompt
from rlhf_dist.stages.feedback_sample import EMPTY, EQUAL, NO_TEXT, Wanted, tasks
from tests.chats import CHATML, GEMMA, INST, LLAMA3, chat_tokenizer

WANTED = Wanted(Path("run"), against="sft", kind="comparison", prompts=9, seed=0)


def prompts(*texts: str) -> list[Prompt]:
    return [Prompt(number, (1,), text) for number, text in enumerate(texts)]


def test_pairs_that_ask_nothing_or_cannot_be_kept_are_left_out_and_counted() -> None:
    asked = prompts("p", "q", "r", "s", "t", "nul \0")
    ours = ["a", "a b", " ", "a\0", "a\ud800", "a"]
    sampled = tasks(WANTED, asked, ("policy", ours), ("sft", ["b", " a\nb", "b", "b", "b", "b"]))
    assert [row.prompt for row in sampled.rows] == ["p"]
    assert sampled.left_out == {EQUAL: 1, EMPTY: 1, NO_TEXT: 3}
    assert sampled.told().startswith(
        "left out 5 prompts: 1, since both answers look the same, but for white space at most; 1, since"
    )
    nothing = tasks(WANTED, prompts("p"), ("policy", ["a"]), ("sft", ["b"]))
    assert (len(nothing.rows), nothing.left_out, nothing.told()) == (1, {}, "")


def test_one_answer_is_asked_about_alone() -> None:
    sampled = tasks(Wanted(Path("run"), "sft", "score", 2, 0), prompts("p", "q"), ("policy", ["a", ""]), ("sft", None))
    ((row, *others),) = [sampled.rows]
    assert (row.kind, row.a, row.b, row.source_a, others) == ("score", "a", None, "policy", [])
    assert sampled.left_out == {EMPTY: 1}


def test_a_coin_decides_which_side_is_ours() -> None:
    rows = tasks(WANTED, prompts(*"abcdefghijklmnop"), ("policy", ["ours"] * 16), ("sft", ["theirs"] * 16)).rows
    assert {row.source_a for row in rows} == {"policy", "sft"}
    assert all((row.a == "ours") == (row.source_a == "policy") for row in rows)


@pytest.mark.parametrize("begins", [True, False])
@pytest.mark.parametrize("template", [CHATML, GEMMA, INST, LLAMA3])
def test_people_read_no_template_and_reward_models_the_tokens_that_the_policy_saw(
    template: str, begins: bool, tmp_path: Path
) -> None:
    """Templates that begin with BOS themselves, and tokenizers that put it before every text or none."""
    tokenizer = chat_tokenizer(template, begins=begins)
    rows: list[dict[str, Any]] = [
        {"prompt": [{"role": "user", "content": "Hi"}]},
        {"prompt": "<bos>Hi"},
        {"prompt": "Hi"},
        {"prompt": "<|im_start|>user\nHi<|im_end|>\n", "special_tokens": True},
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = read_prompts(Prompts(path=str(tmp_path / "p.jsonl")), tokenizer)
    made = tasks(WANTED, asked, ("policy", ["a"] * 4), ("sft", ["b"] * 4)).rows
    assert [row.prompt for row in made] == ["User: Hi", "Hi", "Hi", "user\nHi\n"]
    write_tasks(tmp_path / "tasks.jsonl", made)
    judged = tmp_path / "judged.jsonl"
    exported = [
        {"a": row.a, "b": row.b, "preference": "a", "prompt": row.prompt, **json.loads(row.prompt_source or "{}")}
        for row in read_tasks(str(tmp_path / "tasks.jsonl"))
    ]
    judged.write_text("".join(json.dumps(row) + "\n" for row in exported))
    tokens = JudgedTokens(tokenizer, max_tokens=99)
    for one, prompt in zip(read_feedback([Feedback(path=str(judged))]), asked, strict=True):
        read, start = tokens(one, "a")
        assert tuple(read[:start]) == prompt.tokens
        assert read[:start].count(tokenizer.bos_token_id) <= 1
