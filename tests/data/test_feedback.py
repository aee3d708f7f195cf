import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_dist.config import Feedback
from rlhf_dist.data.feedback import read_feedback
from rlhf_dist.data.judgements import KINDS, JudgedTokens, judged_set
from rlhf_dist.errors import DataError
from rlhf_dist.feedback.exchange import write_rows
from rlhf_dist.tasks.helpdesk import build_tokenizer
from tests.chats import CHATML, LLAMA3, chat_tokenizer, spelled


def read(path: Path, kind: str, *rows: object, **settings: object):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_feedback([Feedback(path=str(path), kind=kind, **settings)])


def test_trl_rows_and_raw_judgements_are_the_same_comparisons(tmp_path: Path) -> None:
    asked = [{"role": "user", "content": "q"}]
    said = [[*asked, {"role": "assistant", "content": text}] for text in ("x", "y")]
    rows = [
        {"prompt": "q", "chosen": "x", "rejected": "y", "margin": 0.5},
        {"prompt": "q", "a": "x", "b": "y", "preference": "a", "annotator": 7},
        {"prompt": "q", "a": "x", "b": "y", "preference": "tie"},
        {"prompt": "q", "a": "x", "b": "y", "preference": 0.25},
        {"chosen": said[0], "rejected": said[1]},
    ]
    found = read(tmp_path / "c.jsonl", "comparisons", *rows)
    assert [one.label for one in found] == [1.0, 1.0, 0.5, 0.25, 1.0]
    assert [one.answers for one in found] == [("x", "y")] * 5
    assert (found[0].margin, found[1].annotator, found[4].prompt) == (0.5, "7", asked)
    assert found[0].source == "c"


def test_scores_are_mapped_from_their_scale(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "answer": "x", "score": value} for value in (1, 3, 5)]
    assert [one.label for one in read(tmp_path / "s.jsonl", "scores", *rows, scale=(1, 5))] == [0.0, 0.5, 1.0]


BAD = {
    "same answers": ("comparisons", {"prompt": "q", "chosen": "x", "rejected": "x"}, "both answers look the same"),
    "the same but for white space": (
        "comparisons",
        {"prompt": "q", "a": "x y", "b": " x\n\ty ", "preference": "a"},
        "look the same",
    ),
    "odd scale": (
        "scores",
        {"prompt": "q", "answer": "x", "score": 1, "scale": [5, 1]},
        r"scale is .5, 1.; expected .worst",
    ),
    "huge score": ("scores", {"prompt": "q", "answer": "x", "score": 10**400}, "score is 1000"),
    "odd preference": ("comparisons", {"prompt": "q", "a": "x", "b": "y", "preference": "left"}, "expected a, b, tie"),
    "bad label": ("comparisons", {"prompt": "q", "chosen": "x", "rejected": "y", "label": 2}, "label is 2"),
    "odd label": ("comparisons", {"prompt": "q", "chosen": "x", "rejected": "y", "label": True}, "label is True"),
    "one of KTO": (
        "comparisons",
        {"prompt": "q", "completion": "x", "label": True},
        "Rows of one answer are kind: scores",
    ),
    "negative margin": ("comparisons", {"prompt": "q", "chosen": "x", "rejected": "y", "margin": -1}, "margin is -1"),
    "no rejected": ("comparisons", {"prompt": "q", "chosen": "x"}, "no 'rejected' among"),
    "no prompt": ("comparisons", {"chosen": "x", "rejected": "y"}, "no `prompt`; expected one, or two chats"),
    "score outside": ("scores", {"prompt": "q", "answer": "x", "score": 1.5}, "expected a number from 0 to 1"),
    "one answer": ("rankings", {"prompt": "q", "answers": ["x"]}, "two or more, best first"),
    "silent comment": ("comments", {"prompt": "q", "answer": "x", "comment": " "}, "comment is ' '; expected text"),
    "empty answer": ("scores", {"prompt": "q", "answer": "", "score": 1}, "answer is ''; expected text"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_row_that_cannot_be_is_refused_with_file_and_line(case: str, tmp_path: Path) -> None:
    kind, row, message = BAD[case]
    with pytest.raises(DataError, match=rf"f.jsonl:1: .*{message}"):
        read(tmp_path / "f.jsonl", kind, row)


def test_weights_make_the_mean_over_units_the_sum_of_the_kinds_means(tmp_path: Path) -> None:
    judged = [
        *read(
            tmp_path / "c.jsonl",
            "comparisons",
            *({"prompt": "q", "chosen": f"x{n}", "rejected": "y"} for n in range(6)),
        ),
        *read(tmp_path / "s.jsonl", "scores", *({"prompt": "q", "answer": f"x{n}", "score": 0.5} for n in range(2))),
        *read(tmp_path / "r.jsonl", "rankings", {"prompt": "q", "answers": ["x", "y", "z"]}),
    ]
    coefficients = {"comparisons": 2.0, "scores": 0.5, "rankings": 1.0}
    made = judged_set(judged, JudgedTokens(build_tokenizer(), max_tokens=64), select="last", coefficients=coefficients)
    kind, weight, unit = (made.table.column(name).to_numpy(zero_copy_only=False) for name in ("kind", "weight", "unit"))
    weight = np.array([each[0] for each in weight])
    assert [len(rows) for rows in made.units] == [2] * 6 + [1] * 2 + [3]
    first = np.array([rows[0] for rows in made.units])
    for name, coefficient in coefficients.items():
        mine = first[kind[first] == KINDS[name]]
        assert weight[mine].sum() / len(made.units) == pytest.approx(coefficient)
    assert unit.tolist() == sorted(unit.tolist())
    left_out = judged_set(
        judged, JudgedTokens(build_tokenizer(), max_tokens=64), select="last", coefficients={"scores": 0.0}
    )
    assert len(left_out.units) == 7


def test_selected_positions_are_the_last_the_answers_or_those_before_them(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    judged = read(tmp_path / "s.jsonl", "scores", {"prompt": "Hi", "answer": " Hello!", "score": 1})
    found = {
        select: judged_set(judged, JudgedTokens(tokenizer, max_tokens=64), select=select).table
        for select in ("last", "answer", "before")
    }
    tokens = found["last"].column("tokens")[0].as_py()
    start, stop = len(tokenizer("Hi")["input_ids"]), len(tokens)
    assert found["last"].column("selected")[0].as_py() == [stop - 1]
    assert found["answer"].column("selected")[0].as_py() == list(range(start, stop))
    assert found["before"].column("selected")[0].as_py() == list(range(start - 1, stop - 1))
    with pytest.raises(DataError, match=r"s.jsonl:1: .* expected at most 3"):
        judged_set(judged, JudgedTokens(tokenizer, max_tokens=3), select="last")


def test_an_answer_is_tokenised_once_however_many_sets_it_is_part_of(tmp_path: Path) -> None:
    tokenizer, asked = build_tokenizer(), []

    def counting(text: str, **options: object) -> object:
        asked.append(text)
        return tokenizer(text, **options)

    counting.eos_token_id = tokenizer.eos_token_id  # type: ignore[attr-defined]
    rows = [{"prompt": "Hi", "answer": answer, "score": 1} for answer in (" Hello!", " Bye!")]
    judged = read(tmp_path / "s.jsonl", "scores", *rows)
    tokens = JudgedTokens(counting, max_tokens=64)
    first = judged_set(judged, tokens, select="last").table.column("tokens")
    before = len(asked)
    again = judged_set([judged[1], judged[0]], tokens, select="answer").table.column("tokens")
    assert before == len(asked) > 0
    assert again.to_pylist() == first.to_pylist()[::-1]


def judged_tokens(tokenizer, path: Path, kind: str, row: object) -> list[str]:
    table = judged_set(read(path, kind, row), JudgedTokens(tokenizer, max_tokens=999), select="before").table
    tokens, places = table.column("tokens").to_pylist(), table.column("selected").to_pylist()
    return [
        "".join(spelled(tokenizer, [own[place + 1] for place in at])) for own, at in zip(tokens, places, strict=True)
    ]


@pytest.mark.parametrize("form", ["chats", "messages", "score", "ranking"])
def test_an_answers_tool_calls_are_judged_with_it(form: str, tmp_path: Path) -> None:
    tokenizer = chat_tokenizer(CHATML.replace("<|im_end|>", "{{ m.tool_calls | tojson if m.tool_calls }}<|im_end|>"))
    asked = [{"role": "user", "content": "q"}]
    called = [{"role": "assistant", "content": "ok", "tool_calls": [{"name": name}]} for name in ("f", "g")]
    kind, row = {
        "chats": ("comparisons", {"chosen": [*asked, called[0]], "rejected": [*asked, called[1]]}),
        "messages": ("comparisons", {"prompt": asked, "chosen": called[:1], "rejected": called[1:]}),
        "score": ("scores", {"prompt": asked, "answer": called[0], "score": 1}),
        "ranking": ("rankings", {"prompt": asked, "answers": called}),
    }[form]
    expected = [f'ok[{{"name": "{name}"}}]<|im_end|>' for name in ("f", "g")]
    assert judged_tokens(tokenizer, tmp_path / "f.jsonl", kind, row) == expected[: 1 if form == "score" else 2]


def test_answers_that_are_the_same_tokens_are_refused(tmp_path: Path) -> None:
    tokenizer, asked = chat_tokenizer(LLAMA3), [{"role": "user", "content": "q"}]
    trimmed = chat_tokenizer(CHATML.replace("m['content']", "m['content'] | trim"))
    row: dict[str, object] = {"prompt": asked, "chosen": "x<|eot_id|>", "rejected": "x"}
    with pytest.raises(DataError, match="f.jsonl:1: the answers 'x.*' and 'x' are the same tokens"):
        judged_tokens(tokenizer, tmp_path / "f.jsonl", "comparisons", row)
    several = judged_tokens(tokenizer, tmp_path / "f.jsonl", "rankings", {"prompt": asked, "answers": ["x", "y", "x"]})
    assert several == ["x<|eot_id|>", "y<|eot_id|>", "x<|eot_id|>"], "a policy's own samples may repeat"
    assert judged_tokens(
        trimmed, tmp_path / "f.jsonl", "comparisons", {"prompt": asked, "chosen": "x", "rejected": "y"}
    )


def test_the_same_words_with_other_tools_are_another_question(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "answer": "x", "score": 1, "tools": [{"name": name}]} for name in ("f", "g", "f")]
    tasks = [one.task for one in read(tmp_path / "s.jsonl", "scores", *rows)]
    assert tasks[0] == tasks[2] != tasks[1]


@pytest.mark.parametrize("prompt", [5, {}, "else"])
@pytest.mark.parametrize("asked", ["", "q", [{"type": "text", "text": "q"}]])
def test_a_prompt_that_is_not_the_chats_is_refused(prompt: object, asked: object, tmp_path: Path) -> None:
    chats = [[{"role": "user", "content": asked}, {"role": "assistant", "content": text}] for text in ("x", "y")]
    with pytest.raises(DataError, match="f.jsonl:1: prompt is .*, which the chats do not begin with"):
        read(tmp_path / "f.jsonl", "comparisons", {"prompt": prompt, "chosen": chats[0], "rejected": chats[1]})


def test_messages_that_are_none_leave_the_prompt_as_it_is(tmp_path: Path) -> None:
    (one,) = read(tmp_path / "s.jsonl", "scores", {"prompt": "q", "prompt_messages": [], "answer": "x", "score": 1})
    assert one.prompt == "q"


ODD_TEXT = "a\x00b\r\nc\rd\x1b[31m\u202e\u2028\ufffe\U0010ffff"


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_control_characters_reach_the_model_as_they_are(suffix: str, tmp_path: Path) -> None:
    """NUL, bare carriage returns, escapes and non-characters are text; files, Arrow and tokenizers take them."""
    row = {"kind": "comparisons", "prompt": ODD_TEXT, "a": ODD_TEXT, "b": "y", "preference": 1.0, "annotator": ODD_TEXT}
    write_rows(tmp_path / f"f.{suffix}", [row])
    (one,) = read_feedback([Feedback(path=str(tmp_path / f"f.{suffix}"))])
    assert (one.prompt, one.answers[0], one.annotator) == (ODD_TEXT,) * 3
    tokens = JudgedTokens(chat_tokenizer(CHATML), max_tokens=999)
    table = judged_set([one], tokens, select="last").table
    assert len(table.column("tokens")[0].as_py()) > len(ODD_TEXT)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 10**400)
    | st.floats()
    | st.text(max_size=3)
    | st.sampled_from(["[{}]", "[1]"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "text"]), inner),
    max_leaves=5,
)
COLUMNS = [
    "kind",
    "prompt",
    "a",
    "b",
    "answer",
    "answers",
    "score",
    "scale",
    "label",
    "preference",
    "margin",
    "criterion",
]
COLUMNS += [
    "chosen",
    "rejected",
    "completion",
    "comment",
    "gold",
    "tools",
    "prompt_messages",
    "special_tokens",
    "annotator",
]
WHOLE: list[dict[str, object]] = [
    {"kind": "comparisons", "prompt": "q", "a": "x", "b": "y", "preference": 1},
    {"kind": "rankings", "prompt": "q", "answers": ["x", "y"]},
    {"kind": "scores", "prompt": "q", "answer": "x", "score": 1},
    {"kind": "comments", "prompt": "q", "answer": "x", "comment": "c"},
    {"chosen": [{"role": "user", "content": "q"}] * 2, "rejected": [{"role": "user", "content": "q"}] * 2},
    {"prompt": "q", "completion": "x", "label": True},
]


@given(row=st.sampled_from(WHOLE), odd=st.dictionaries(st.sampled_from(COLUMNS), JSON, max_size=3))
@settings(max_examples=150, deadline=None)
def test_whatever_stands_in_a_row_is_judgements_or_a_sentence(row: dict[str, object], odd: dict[str, object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file, told = Path(folder) / "f.jsonl", ""
        try:
            file.write_text(json.dumps({**row, **odd}) + "\n")
            judged = read_feedback([Feedback(path=str(file))])
            JudgedTokens(chat_tokenizer(CHATML), max_tokens=999).fitting(judged)
        except DataError as error:
            told = str(error)
        assert not told or told.startswith(str(file))
