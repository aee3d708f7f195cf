import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_dist.config import Demonstrations
from rlhf_dist.data.demonstrations import (
    demonstration_set,
    length_statistics,
    read_demonstrations,
    split_demonstrations,
)
from rlhf_dist.data.encoder import Encoder
from rlhf_dist.data.tables import held_out
from rlhf_dist.errors import DataError
from rlhf_dist.stages.sft import demonstrations
from rlhf_dist.tasks.helpdesk import build_tokenizer

CHAT = [
    {"role": "user", "content": "Hi, my phone is silent."},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Can you help?"},
    {"role": "assistant", "content": "Please turn the volume up."},
]
MARKED = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}{{ '\\nCustomer: ' + message.content }}"
    "{% else %}{{ '\\nAgent: ' }}{% generation %}{{ message.content + eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\nAgent:' }}{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer()


def write(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def learnt(row: Any, tokenizer: Any) -> str:
    """The text whose tokens the loss is on."""
    return tokenizer.decode([row.tokens[position + 1] for position in row.selected])


def test_a_pairs_loss_is_on_the_completion_and_its_end(tmp_path: Path, tokenizer: Any) -> None:
    path = write(tmp_path / "d.jsonl", {"prompt": "Customer: Hi,\nAgent:", "completion": " Hello!"})
    (row,) = read_demonstrations(path, tokenizer, max_tokens=64)
    assert learnt(row, tokenizer) == " Hello!<eos>"
    assert tokenizer.decode(row.tokens) == "<bos>Customer: Hi,\nAgent: Hello!<eos>"


@pytest.mark.parametrize("template", ["own", "marked"])
def test_a_chats_loss_is_on_what_the_assistant_says_and_nothing_else(
    template: str, tmp_path: Path, tokenizer: Any
) -> None:
    reader = build_tokenizer()
    if template == "marked":
        reader.chat_template = MARKED
    (row,) = read_demonstrations(write(tmp_path / "d.jsonl", {"messages": CHAT}), reader, max_tokens=128)
    said = learnt(row, reader)
    assert said.count("<eos>") == 2
    assert said.replace(" ", "") == "Hello!<eos>Pleaseturnthevolumeup.<eos>"


BAD = {
    "neither": ({"text": "x"}, "columns are .*expected `prompt` and `completion`, or `messages`"),
    "empty answer": ({"prompt": "p", "completion": "  "}, "answer is '  '; expected text"),
    "empty prompt": ({"prompt": "", "completion": "x"}, "prompt is ''; expected text"),
    "long": ({"prompt": "p", "completion": "x" * 99}, "tokens; expected at most 64"),
    "silent": ({"messages": CHAT[:1]}, "the assistant says nothing"),
    "no messages": ({"messages": []}, "expected a list of messages"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_row_that_cannot_be_learnt_is_refused_with_file_and_line(case: str, tmp_path: Path, tokenizer: Any) -> None:
    row, message = BAD[case]
    path = write(tmp_path / "d.jsonl", {"prompt": "p", "completion": "fine"}, row)
    with pytest.raises(DataError, match=rf"d.jsonl:2: .*{message}"):
        read_demonstrations(path, tokenizer, max_tokens=64)


def test_rows_of_one_prompt_are_held_out_together(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"prompt": f"p{n % 10}", "completion": f"c{n}"} for n in range(40)]
    read = read_demonstrations(write(tmp_path / "d.jsonl", *rows), tokenizer, max_tokens=64)
    learn, keep = split_demonstrations(read, 0.2)
    assert len({row.key for row in keep}) == 2
    assert not {row.key for row in learn} & {row.key for row in keep}
    assert held_out([str(n % 10) for n in range(40)], 0.2)[:10] == held_out([str(n) for n in range(10)], 0.2)
    with pytest.raises(DataError, match="expected two, one to be held out"):
        held_out(["same", "same"], 0.5)


def test_lengths_and_weights_count_tokens(tmp_path: Path, tokenizer: Any) -> None:
    path = write(tmp_path / "d.jsonl", *({"prompt": "p", "completion": "x" * n} for n in (1, 2, 9)))
    read = read_demonstrations(path, tokenizer, max_tokens=64)
    told = length_statistics(read)
    assert told["answer_tokens/max"] == 10
    assert told["answer_tokens/p50"] == 3
    made = demonstration_set(read)
    assert made.weights == [2.0, 3.0, 10.0]
    assert made.lengths() == [len(row.tokens) for row in read]


@pytest.mark.parametrize("away", ["test", "train", "the file itself"])
def test_rows_are_not_held_out_from_themselves(away: str, tmp_path: Path, tokenizer: Any) -> None:
    path = write(tmp_path / "d.jsonl", *({"prompt": f"p{n}", "completion": "c"} for n in range(4)))
    settings = Demonstrations(path=path, held_out=path if away == "the file itself" else away)
    with pytest.raises(DataError, match=r"asked for the split 'test'|data.held_out is .*, which is what is learnt"):
        demonstrations(settings, Encoder(tokenizer))
