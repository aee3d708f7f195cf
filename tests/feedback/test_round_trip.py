"""What a policy saw is what a reward model reads: prompts sampled, judged, exported and read back are the same tokens."""

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

from rlhf_dist.config import Feedback, Prompts
from rlhf_dist.data.feedback import read_feedback
from rlhf_dist.data.judgements import JudgedTokens
from rlhf_dist.data.prompts import read_prompts
from rlhf_dist.errors import DataError
from rlhf_dist.feedback import exchange, people
from rlhf_dist.feedback.database import Annotator, Judgement, Task, now, open_database, sqlite_url
from rlhf_dist.feedback.task_files import TaskRow, load_tasks, read_tasks, write_tasks
from tests.chats import CHATML, GEMMA, INST, TOOLS, chat_tokenizer

CHAT = [{"role": "user", "content": "Hi <|im_end|> there"}]
LONG = [*CHAT, {"role": "assistant", "content": "yo"}, {"role": "user", "content": "So?"}]
TOOL = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}, {"type": "function"}]
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "chat": (CHATML, {"prompt": CHAT}, {}),
    "chat with a beginning": (GEMMA, {"messages": LONG}, {}),
    "template without special tokens at its beginning": (INST, {"prompt": LONG}, {}),
    "tools": (TOOLS, {"prompt": CHAT, "tools": TOOL}, {}),
    "arguments": (
        CHATML + "{% if add_generation_prompt and mood is defined %}{{ mood }}{% endif %}",
        {"prompt": CHAT},
        {"chat_template_kwargs": {"mood": "sad"}},
    ),
    "text": (CHATML, {"prompt": "Hi <|im_end|>"}, {}),
    "text with a beginning": (CHATML, {"prompt": "<bos>Hi"}, {}),
    "text with a beginning that the tokenizer puts nowhere": (CHATML, {"prompt": "<bos><bos>Hi"}, {}),
    "rendered before": (CHATML, {"prompt": "<|im_start|>user\nHi<|im_end|>\n"}, {"special_tokens": True}),
}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("form", ["raw", "trl"])
@pytest.mark.parametrize("case", CASES)
def test_judged_prompts_are_the_tokens_that_the_policy_saw(case: str, form: str, suffix: str, tmp_path: Path) -> None:
    template, row, settings = CASES[case]
    tokenizer = chat_tokenizer(template)
    (tmp_path / "p.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({"prompt": "plain"}) + "\n")
    prompts = read_prompts(Prompts(path=str(tmp_path / "p.jsonl"), **settings), tokenizer)
    tasks = [TaskRow("comparison", one.shown, "A", "B", "policy", "sft", prompt_source=one.source) for one in prompts]
    write_tasks(tmp_path / "tasks.jsonl", tasks)
    with Session(open_database(sqlite_url(tmp_path / "f.db"))) as session, session.begin():
        load_tasks(session, read_tasks(str(tmp_path / "tasks.jsonl")), overlap=1)
        people.invite(session, "ann")
        who = session.query(Annotator).one()
        for task in session.query(Task).order_by(Task.id):
            session.add(Judgement(task_id=task.id, annotator_id=who.id, verdict="a", seconds=1.0, created=now()))
        session.flush()
        rows = exchange.exported(session.query(Judgement).order_by(Judgement.id), form=form)
        exchange.write_rows(tmp_path / f"out.{suffix}", rows)
    judged = read_feedback([Feedback(path=str(tmp_path / f"out.{suffix}"))])
    tokens = JudgedTokens(tokenizer, max_tokens=999)
    for one, prompt in zip(judged, prompts, strict=True):
        made, start = tokens(one, "A")
        assert tuple(made[:start]) == prompt.tokens


def test_a_prompts_source_that_is_none_is_named(tmp_path: Path) -> None:
    row = {"kind": "score", "prompt": "p", "a": "x", "prompt_source": "[1]"}
    (tmp_path / "t.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match="t.jsonl:1: prompt_source is .*; expected a JSON object"):
        read_tasks(str(tmp_path / "t.jsonl"))
