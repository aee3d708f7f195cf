"""Columns by other names, in the shapes of public data, are read or named with what they should be called."""

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_dist.config import Feedback, Prompts
from rlhf_dist.data.columns import meant
from rlhf_dist.data.demonstrations import read_demonstrations
from rlhf_dist.data.feedback import read_feedback
from rlhf_dist.data.judgements import JudgedTokens
from rlhf_dist.data.prompts import read_prompts
from rlhf_dist.errors import DataError
from tests.chats import LLAMA3, chat_tokenizer

TOKENIZER = chat_tokenizer(LLAMA3)
ASKED = {"role": "user", "content": "Why?"}
CHATS = [[ASKED, {"role": "assistant", "content": text}] for text in ("So.", "No.")]


def write(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def judged(path: Path, row: object, kind: str = "comparisons") -> list[Any]:
    return read_feedback([Feedback(path=write(path, row), kind=kind)])


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"promt": "x", "completion": "y"}, "`promt` for `prompt`. Rename it"),
        ({"Prompt": "x", "Completion": "y"}, "`Prompt` for `prompt`, `Completion` for `completion`"),
        (
            {"instruction": "x", "input": "", "output": "y"},
            "`instruction` for `prompt`, `output` for `completion`. Rename them",
        ),
        ({"question": "x", "answer": "y"}, "`question` for `prompt`, `answer` for `completion`"),
        ({"message": [ASKED]}, "`message` for `messages`"),
        ({"conversations": [{"from": "human", "value": "x"}]}, "`conversations` for `messages`"),
    ],
)
def test_misspelt_columns_are_named_with_what_was_meant(row: dict[str, Any], told: str, tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", {"prompt": "a", "completion": "b"}, row)
    with pytest.raises(
        DataError, match=f"d.jsonl:2: columns are .*; expected `prompt` and `completion`.* Did you mean {told}"
    ):
        read_demonstrations(path, TOKENIZER, max_tokens=99)


def test_nothing_is_meant_by_columns_that_look_like_none() -> None:
    assert meant({"id": 1, "url": "x"}, "prompt", "completion") == ""


def test_a_row_further_down_without_the_column_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", {"prompt": "a"}, {"messages": [ASKED]}, {"query": "c"})
    with pytest.raises(
        DataError, match=r"p.jsonl:3: columns are \['query'\]; expected `prompt` or `messages`.*`query` for `prompt`"
    ):
        read_prompts(Prompts(path=path), TOKENIZER)
    assert (
        len(read_prompts(Prompts(path=write(tmp_path / "q.jsonl", {"prompt": "a"}, {"messages": [ASKED]})), TOKENIZER))
        == 2
    )
    with pytest.raises(
        DataError, match=r"p.jsonl:1: columns are .*; expected `promts` \(prompts.column\). Did you mean"
    ):
        read_prompts(Prompts(path=path, column="promts"), TOKENIZER)


@pytest.mark.parametrize("prompt", [None, "Why?", [ASKED]])
def test_whole_chats_beside_their_prompt_are_chats(prompt: Any, tmp_path: Path) -> None:
    row = {"prompt": prompt, "chosen": CHATS[0], "rejected": CHATS[1], "messages": CHATS[0], "score_chosen": 8.5}
    (one,) = judged(tmp_path / "u.jsonl", row)
    plain = judged(tmp_path / "t.jsonl", {"prompt": [ASKED], "chosen": "So.", "rejected": CHATS[1][-1:]})[0]
    assert (one.prompt, one.answers) == ([ASKED], ("So.", "No.")) == (plain.prompt, plain.answers)
    tokens = JudgedTokens(TOKENIZER, max_tokens=99)
    assert tokens(one, "So.") == tokens(plain, "So.")
    (shown,) = read_demonstrations(write(tmp_path / "d.jsonl", {"messages": CHATS[0]}), TOKENIZER, max_tokens=99)
    assert tokens(one, "So.")[0] == shown.tokens


def test_a_system_message_before_the_prompts_text_is_part_of_the_chat(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be brief."}
    (one,) = judged(
        tmp_path / "u.jsonl", {"prompt": "Why?", "chosen": [system, *CHATS[0]], "rejected": [system, *CHATS[1]]}
    )
    assert one.prompt == [system, ASKED]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (
            {"chosen": CHATS[0], "rejected": [{"role": "user", "content": "How?"}, CHATS[1][1]]},
            "differ before their last",
        ),
        (
            {"prompt": "Else", "chosen": CHATS[0], "rejected": CHATS[1]},
            "prompt is 'Else', which the chats do not begin with",
        ),
        (
            {"prompt": "q", "chosen": [ASKED], "rejected": "x"},
            "the answer is a message of the role 'user'; expected assistant",
        ),
        ({"prompt": "q", "chosen": None, "rejected": "x"}, "chosen is null; expected chosen, rejected"),
        ({"instruction": "q", "chosen": "x", "rejected": "y"}, "no `prompt`;.* `instruction` for `prompt`"),
        ({"prompt": "q", "accepted": "x", "rejected": "y"}, "no 'chosen' among.*`accepted` for `chosen`"),
        (
            {"prompt": "q", "completion": "x", "label": True},
            "one completion with a label; expected chosen and rejected",
        ),
    ],
)
def test_comparisons_that_are_none_are_named(row: object, told: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"c.jsonl:1: .*{told}"):
        judged(tmp_path / "c.jsonl", row)


def test_scores_rankings_and_comparisons_of_one_conversation_are_the_same_tokens(tmp_path: Path) -> None:
    tokens = JudgedTokens(TOKENIZER, max_tokens=99)
    rows = {
        "scores": {"prompt": [ASKED], "answer": CHATS[0][1], "score": 1},
        "rankings": {"prompt": [ASKED], "answers": ["So.<|eot_id|>", "No."]},
        "comparisons": {"prompt": [ASKED], "a": "So.", "b": "No.", "preference": "tie"},
        "comments": {"prompt": [ASKED], "answer": "So.", "comment": "good"},
    }
    found = [
        tokens(one, one.answers[0])
        for kind, row in rows.items()
        for one in judged(tmp_path / f"{kind}.jsonl", row, kind)
    ]
    assert len(found) == 4
    assert all(each == found[0] for each in found)
    assert found[0][0][-1] == TOKENIZER.convert_tokens_to_ids("<|eot_id|>")
