"""Long rows are counted over the whole file, and become what the config says."""

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_dist.config import Demonstrations, Feedback, Prompts
from rlhf_dist.data.demonstrations import read_demonstrations
from rlhf_dist.data.encoder import Encoder
from rlhf_dist.data.feedback import read_feedback
from rlhf_dist.data.judgements import JudgedTokens, judged_set
from rlhf_dist.data.prompts import read_prompts
from rlhf_dist.errors import DataError
from tests.chats import chat_tokenizer

TEXTS = ["ab", "q" * 30, "cd", "r" * 20 + "xyz"]


def write(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def prompts(path: Path, too_long: str, most: int = 10) -> tuple[list[Any], Encoder]:
    encoder = Encoder(chat_tokenizer())
    file = write(path, *({"prompt": text} for text in TEXTS))
    return read_prompts(Prompts(path=file, max_tokens=most, too_long=too_long), encoder), encoder


def test_refused_prompts_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    told = (
        r"p.jsonl:2: the prompt has 31 tokens; expected at most 10 \(prompts.max_tokens\). 2 of 4 rows have more than 10 "
        r"tokens. Raise the limit, or set prompts.too_long to truncate or leave_out"
    )
    with pytest.raises(DataError, match=told):
        prompts(tmp_path / "p.jsonl", "refuse")


def test_a_truncated_prompt_keeps_its_end_and_its_beginning_of_sequence(tmp_path: Path) -> None:
    found, encoder = prompts(tmp_path / "p.jsonl", "truncate")
    assert [len(prompt.tokens) for prompt in found] == [3, 10, 3, 10]
    assert encoder.tokenizer.decode(found[3].tokens) == "<bos>rrrrrrxyz"
    assert encoder.notes() == [
        f"{tmp_path / 'p.jsonl'}: 2 of 4 rows have more than 10 tokens: 2 truncated (prompts.too_long)"
    ]


def test_prompts_that_are_left_out_leave_the_others_their_numbers(tmp_path: Path) -> None:
    found, encoder = prompts(tmp_path / "p.jsonl", "leave_out")
    assert [prompt.id for prompt in found] == [0, 2]
    assert "2 left out (prompts.too_long)" in encoder.notes()[0]
    with pytest.raises(DataError, match="4 of 4 rows have more than 2 tokens, so that none is left"):
        prompts(tmp_path / "p.jsonl", "leave_out", most=2)


def demonstrations(path: Path, too_long: str, *rows: object) -> list[Any]:
    settings = Demonstrations(too_long=too_long)
    return read_demonstrations(write(path, *rows), chat_tokenizer(), max_tokens=8, settings=settings)


def test_a_truncated_demonstration_keeps_its_beginning_and_learns_no_end(tmp_path: Path) -> None:
    rows = [
        {"prompt": "ab", "completion": "cdefghij"},
        {"prompt": "a" * 20, "completion": "x"},
        {"prompt": "a", "completion": "b"},
    ]
    found = demonstrations(tmp_path / "d.jsonl", "truncate", *rows)
    assert [len(row.tokens) for row in found] == [8, 4], "the second has nothing left to learn"
    assert found[0].selected == [2, 3, 4, 5, 6]
    assert chat_tokenizer().eos_token_id not in found[0].tokens
    assert len(demonstrations(tmp_path / "d.jsonl", "leave_out", *rows)) == 1
    with pytest.raises(
        DataError, match=r"d.jsonl:1: the row has 12 tokens; expected at most 8 \(data.max_tokens\). 2 of 3 rows"
    ):
        demonstrations(tmp_path / "d.jsonl", "refuse", *rows)


def comparisons(path: Path) -> list[Any]:
    rows = [("p" * 20 + "?", "yes", "certainly"), ("p", "yes", "no"), ("p", "y" * 20, "no")]
    made = ({"prompt": prompt, "chosen": chosen, "rejected": rejected} for prompt, chosen, rejected in rows)
    return read_feedback([Feedback(path=write(path, *made))])


def test_both_answers_of_a_truncated_comparison_follow_the_same_end_of_the_prompt(tmp_path: Path) -> None:
    judged, tokenizer = comparisons(tmp_path / "c.jsonl"), chat_tokenizer()
    tokens = JudgedTokens(tokenizer, max_tokens=14, too_long="truncate")
    kept = tokens.fitting(judged)
    assert [one.answers[1] for one in kept] == ["certainly", "no"], "the third's answer alone is too long"
    made = judged_set(kept, tokens, select="last").table.column("tokens").to_pylist()
    assert [tokenizer.decode(each) for each in made[:2]] == ["<bos>pp?yes<eos>", "<bos>pp?certainly<eos>"]
    assert max(map(len, made)) == 14
    assert [one.answers[1] for one in JudgedTokens(tokenizer, max_tokens=14, too_long="leave_out").fitting(judged)] == [
        "no"
    ]


def test_refused_judgements_are_counted(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"c.jsonl:1: prompt and answer have 32 tokens; expected at most 14.*2 of 3 rows"
    ):
        JudgedTokens(chat_tokenizer(), max_tokens=14).fitting(comparisons(tmp_path / "c.jsonl"))
