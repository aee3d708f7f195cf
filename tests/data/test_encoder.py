"""One conversation is the same tokens wherever it comes from, and ends where the engine stops."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_dist.data.encoder import Encoder
from rlhf_dist.data.ends import Ends, template_end, tokenizer_ends
from rlhf_dist.data.templates import Quotes, Reading
from rlhf_dist.errors import DataError
from tests.chats import (
    CHATML,
    ENDLESS,
    GEMMA,
    INST,
    LLAMA3,
    PHI,
    PREFILL,
    SPECIAL,
    TEMPLATES,
    THINKING,
    TOOLS,
    chat_tokenizer,
    spelled,
)

ENCODERS = {name: Encoder(chat_tokenizer(template)) for name, (template, _) in TEMPLATES.items()}


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def said(encoder: Encoder, tokens: list[int]) -> str:
    return "".join(spelled(encoder.tokenizer, tokens))


def answers(encoder: Encoder, made: Any) -> list[str]:
    return [said(encoder, made.tokens[start:stop]) for start, stop in made.answers]


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_turns_end_is_what_the_template_puts_behind_the_answer(name: str) -> None:
    template, end = TEMPLATES[name]
    tokenizer = chat_tokenizer(template)
    assert template_end(tokenizer) == tokenizer.convert_tokens_to_ids(end)
    assert set(tokenizer_ends(tokenizer).ids) == {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(end)}


@pytest.mark.parametrize("template", [None, ENDLESS, "{{ messages[0].content.nothing.at_all }}", "{% for"])
def test_a_template_that_teaches_no_end_says_so(template: str | None) -> None:
    assert template_end(chat_tokenizer(template)) is None


def test_an_end_that_only_follows_other_words_is_none() -> None:
    loud = chat_tokenizer("{% for m in messages %}{{ m['content'] }} and so on <|end|>{% endfor %}")
    assert template_end(loud) is None


@pytest.mark.parametrize("name", TEMPLATES)
def test_one_conversation_is_the_same_tokens_in_every_form(name: str) -> None:
    encoder, end = ENCODERS[name], TEMPLATES[name][1]
    forms = [
        encoder.chat("here", [user("Hi"), assistant("yo")]),
        encoder.pair("here", [user("Hi")], "yo"),
        encoder.pair("here", [user("Hi")], assistant("yo")),
        encoder.pair("here", [user("Hi")], f"yo{end}"),
    ]
    assert all(form == forms[0] for form in forms)
    prompt = encoder.prompt("here", [user("Hi")])[1]
    ((start, stop),) = forms[0].answers
    assert forms[0].tokens[:start] == prompt
    assert stop == len(forms[0].tokens)
    assert said(encoder, forms[0].tokens[-1:]) == end
    assert forms[0].tokens.count(forms[0].tokens[-1]) <= 2, "the user's and the assistant's"
    assert [forms[0].tokens[position + 1] for position in forms[0].selected] == forms[0].tokens[start:stop]


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_turn_is_learnt_up_to_its_end_behind_the_prompt_that_an_engine_gets(name: str) -> None:
    encoder, end = ENCODERS[name], TEMPLATES[name][1]
    chat = [user("Hi"), assistant("yo"), user("So?"), assistant("ok.")]
    made = encoder.chat("here", chat)
    # These show an answer otherwise once it is history, so that an engine says only the last one as it stands.
    learnt = [f"ok.{end}"] if name in ("thinking", "prefill") else [f"yo{end}", f"ok.{end}"]
    assert [text.strip().removeprefix("<think>\n\n</think>\n\n") for text in answers(encoder, made)] == learnt
    assert encoder.prompt("here", chat[:3])[1] == made.tokens[: made.answers[-1][0]]
    assert encoder.pair("here", chat[:3], "ok.").tokens == made.tokens
    assert encoder.pair("here", chat[:3], "ok.").answers == made.answers[-1:]
    one = encoder.pair("here", chat[:1], "yo")
    assert (made.tokens[: len(one.tokens)] == one.tokens) == (len(learnt) == 2)


def test_what_a_template_adds_behind_the_end_is_context() -> None:
    encoder = ENCODERS["gemma"]
    made = encoder.chat("here", [user("a"), assistant("b"), user("c"), assistant("d"), user("e")])
    assert said(encoder, made.tokens).endswith("d<end_of_turn>")
    assert "\n" not in "".join(answers(encoder, made))
    assert "<end_of_turn>\n<start_of_turn>user\nc" in said(encoder, made.tokens)


def test_of_a_template_that_renders_history_otherwise_only_what_an_engine_says_is_learnt() -> None:
    encoder = Encoder(chat_tokenizer(THINKING))
    made = encoder.chat("f:1", [user("a"), assistant("b"), user("c"), assistant("d")])
    assert answers(encoder, made) == ["<think>\n\n</think>\n\nd<|im_end|>"]
    (note,) = encoder.notes()
    assert note.startswith("f: 1 answer is context only")
    quiet = Reading(template={"enable_thinking": False})
    made = encoder.pair("here", [user("a")], "b", quiet)
    assert answers(encoder, made) == ["b<|im_end|>"]
    assert encoder.prompt("here", [user("a")], quiet)[1] == made.tokens[:-2]


def test_without_an_end_in_the_template_the_answer_gets_eos_and_a_note() -> None:
    encoder = Encoder(chat_tokenizer(ENDLESS))
    made = encoder.chat("here", [user("a"), assistant("b"), user("c"), assistant("d")])
    assert said(encoder, made.tokens) == "user: a\nassistant: b<eos>\nuser: c\nassistant: d<eos>"
    assert answers(encoder, made) == ["b<eos>", "d<eos>"]
    assert encoder.notes() == ["the chat template puts no end token after an answer; <eos> is put there instead"]
    assert ENCODERS["phi"].notes() == []


def test_a_folders_own_ends_are_the_engines_and_the_answer_has_one() -> None:
    tokenizer = chat_tokenizer(LLAMA3)
    ends = Ends((2, 7, 13), 7, 2)
    made = Encoder(tokenizer, ends).pair("here", [user("a")], "b<|eot_id|><|end|>")
    assert spelled(tokenizer, made.tokens[-2:]) == ["b", "<|eot_id|>"]


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hi", ["<bos>", "H", "i"]),
        ("<bos>Hi", ["<bos>", "H", "i"]),
        ("<bos><bos>Hi", ["<bos>", "H", "i"]),
        ("Hi<eos>", ["<bos>", "H", "i", *"<eos>"]),
    ],
)
def test_a_plain_prompt_has_one_bos_and_no_end(text: str, expected: list[str], ends: bool) -> None:
    encoder = Encoder(chat_tokenizer(ends=ends))
    assert spelled(encoder.tokenizer, encoder.prompt("here", text)[1]) == expected


def test_a_bos_that_is_spelled_is_there_though_the_tokenizer_puts_none() -> None:
    encoder = Encoder(chat_tokenizer(begins=False))
    assert spelled(encoder.tokenizer, encoder.prompt("here", "<bos>Hi")[1]) == ["<bos>", "H", "i"]
    assert spelled(encoder.tokenizer, encoder.prompt("here", "Hi")[1]) == ["H", "i"]


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("text", [" yo", " yo<eos>", " yo<eos><eos>"])
def test_an_answer_has_one_end(text: str, ends: bool) -> None:
    encoder = Encoder(chat_tokenizer(ends=ends))
    made = encoder.pair("here", "Hi", text)
    assert spelled(encoder.tokenizer, made.tokens) == ["<bos>", "H", "i", " ", "y", "o", "<eos>"]
    assert made.answers == [(3, 7)]


def test_a_tokenizer_that_begins_texts_with_a_space_puts_none_before_an_answer() -> None:
    encoder = Encoder(chat_tokenizer(INST, spaced=True))
    whole = encoder.tokenizer("Q:yo")["input_ids"]
    assert encoder.pair("here", "Q:", "yo").tokens == [*whole, 2]
    rendered = encoder.tokenizer.apply_chat_template([user("a"), assistant("b")], return_dict=False)
    assert encoder.chat("here", [user("a"), assistant("b")]).tokens == rendered


def test_tokens_that_swallow_space_swallow_it_between_turns_too() -> None:
    encoder = Encoder(chat_tokenizer(PHI))
    chat = [user("a"), assistant("b"), user("c")]
    rendered = encoder.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert encoder.prompt("here", chat)[1] == rendered


@given(st.data(), st.sampled_from(sorted(TEMPLATES)))
@settings(max_examples=60, deadline=None)
def test_whatever_people_write_stays_text(data: Any, name: str) -> None:
    encoder = ENCODERS[name]
    words = st.lists(st.sampled_from([*SPECIAL, "a", " ", "\n", "é", "\U000f0001"]), min_size=1, max_size=6).map(
        "".join
    )
    asked = data.draw(words.filter(lambda text: text.strip()))
    text, tokens = encoder.prompt("f:1", [user(asked)])
    plain = encoder.prompt("f:1", [user("plain")])[1]
    ids = set(encoder.tokenizer.all_special_ids) | {n for n, t in encoder.tokenizer.added_tokens_decoder.items()}
    assert [token for token in tokens if token in ids] == [token for token in plain if token in ids]
    assert asked.strip() in text
    assert asked.strip() in encoder.tokenizer.decode(tokens)


def test_special_tokens_that_are_meant_are_tokens() -> None:
    encoder = Encoder(chat_tokenizer(CHATML))
    asked = Reading(special_tokens=True)
    rendered = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert encoder.prompt("f:1", rendered, asked)[1] == encoder.prompt("f:1", [user("Hi")])[1]
    assert encoder.notes() == []
    assert encoder.prompt("f:1", rendered)[1] != encoder.prompt("f:1", [user("Hi")])[1]
    encoder.prompt("f:2", [user("a<|eot_id|>b")])
    (note,) = encoder.notes()
    assert note.startswith("f: 2 rows with special tokens spelled out, taken as text")
    assert "special_tokens: true" in note


@pytest.mark.parametrize("value", ["<bos>", "", " \n", [], None, 3])
def test_a_prompt_of_no_tokens_is_refused(value: Any) -> None:
    with pytest.raises(DataError, match="f:7: "):
        Encoder(chat_tokenizer(CHATML)).prompt("f:7", value)


def test_a_prompt_that_ends_with_an_answer_is_refused_and_so_is_a_chat_without_one() -> None:
    encoder = ENCODERS["chatml"]
    for call in (
        lambda: encoder.prompt("f:7", [user("a"), assistant("b")]),
        lambda: encoder.pair("f:7", [user("a"), assistant("b")], "c"),
    ):
        with pytest.raises(DataError, match="f:7: the prompt ends with a message of the assistant"):
            call()
    with pytest.raises(DataError, match="f:7: the assistant says nothing"):
        encoder.chat("f:7", [user("a")])


def test_tools_and_tool_calls_reach_the_template() -> None:
    encoder = Encoder(chat_tokenizer(TOOLS))
    tools = [{"type": "function", "function": {"name": "weather", "description": "<|im_end|>"}}]
    text, tokens = encoder.prompt("here", [user("Hi")], Reading(tools=tools))
    assert text.startswith('<|im_start|>system\n[{"type": "function", "function": {"name": "weather"')
    assert tokens.count(encoder.ends.of_chat) == 2
    call = assistant(None, tool_calls=[{"function": {"name": "weather", "arguments": {}}}])
    made = encoder.chat("here", [user("Hi"), call, {"role": "tool", "content": "rain"}, assistant("Rain.")])
    assert [text[-11:] for text in answers(encoder, made)] == ["}}]<|im_end|>"[-11:], "n.<|im_end|>"[-11:]]


CALL = {"tool_calls": [{"function": {"name": "f"}}]}


def test_a_template_that_rewrites_history_beyond_recognition_needs_its_own_marks_for_calls() -> None:
    odd = (
        "{% for m in messages %}{% if m['role'] == 'user' or loop.last %}<|im_start|>{{ m['role'] }}\nMARK{{ m['content'] }}END"
        "<|im_end|>{% else %}{{ m['content'] | upper }};{% endif %}{% endfor %}{% if add_generation_prompt %}?{% endif %}"
    )
    chat = [user("a"), assistant("b"), user("c"), assistant("d")]
    made = Encoder(chat_tokenizer(odd)).chat("here", chat)
    assert answers(Encoder(chat_tokenizer(odd)), made) == ["d<eos>"]
    chat[-1] |= CALL
    with pytest.raises(DataError, match=r"here: the chat template rewrites earlier messages.*\{% generation %\}"):
        Encoder(chat_tokenizer(odd)).chat("here", chat)
    marks = odd.replace("MARK", "{% generation %}").replace("END<|im_end|>", "{% endgeneration %}<|im_end|>\n")
    made = Encoder(chat_tokenizer(marks)).chat("here", chat)
    assert answers(Encoder(chat_tokenizer(marks)), made)[-1] == "d<|im_end|>"


@given(st.lists(st.sampled_from(["a", "<b>", "<b", ">", "\U000f0000", "\U0010fffd", "\U00100003"])).map("".join))
def test_hiding_is_undone(text: str) -> None:
    quotes = Quotes(["<b>", "<b><b>"])
    hidden = quotes.hide({"role": "<b>", "content": [text, {"x": text}]})
    assert hidden["role"] == "<b>"
    assert "<b>" not in hidden["content"][0]
    assert quotes.show(hidden["content"][1]["x"]) == text


def test_gemma_refuses_a_system_role_in_one_sentence() -> None:
    with pytest.raises(
        DataError, match="f:3: the chat template cannot render these messages: System role not supported"
    ):
        Encoder(chat_tokenizer(GEMMA)).prompt("f:3", [{"role": "system", "content": "x"}, user("y")])


def test_a_template_that_ends_everything_leaves_a_prompt_without_an_end() -> None:
    loud = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% endfor %}"
    loud += "{% if add_generation_prompt %}assistant: {% endif %}"
    encoder = Encoder(chat_tokenizer(loud + "{{ eos_token }}"))
    assert said(encoder, encoder.prompt("f:1", [user("Hi")])[1]) == "user: Hiassistant: "
    made = encoder.pair("f:1", [user("Hi")], "yo")
    assert answers(encoder, made) == ["yo<eos>"]
    assert said(encoder, made.tokens) == "user: Hiassistant: yo<eos>"


def test_an_answer_that_the_template_marks_without_its_end_is_learnt_with_one() -> None:
    """Where history is rewritten, only the template's marks say where answers stand."""
    odd = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '>' if loop.last else ';' }}{% generation %}"
        "{{ m['content'] if loop.last else m['content'] | upper }}{% endgeneration %}{{ END }}{% else %}"
        "{{ m['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}?{% endif %}"
    )
    chat = [user("a"), assistant("b"), user("c"), assistant("d", **CALL)]
    for end, expected in (("'<|end|>'", ["B<|end|>", "d<|end|>"]), ("''", ["B<eos>", "d<eos>"])):
        encoder = Encoder(chat_tokenizer(odd.replace("END", end)))
        made = encoder.chat("f:1", chat)
        assert answers(encoder, made) == expected
        assert said(encoder, made.tokens) == f"a;{expected[0]}c>{expected[1]}"


LATER = "{% if m['role'] == 'assistant' and not loop.last %}<|end|>{% else %}<|im_end|>{% endif %}"


@pytest.mark.parametrize("end", [LATER, LATER.replace("<|end|>", "")])
def test_no_users_words_are_learnt_where_only_the_last_answer_has_the_end(end: str) -> None:
    encoder = Encoder(chat_tokenizer(CHATML.replace("<|im_end|>", end)))
    made = encoder.chat("here", [user("a"), assistant("b"), user("SECRET"), assistant("d")])
    assert "SECRET" not in "".join(answers(encoder, made))
    assert answers(encoder, made)[-1] == "d<|im_end|>"


@pytest.mark.parametrize("answer", ["<think>\nx\n</think>\n\ny", "<think>x\n</think>\n\ny", "x\n</think>\n\ny"])
def test_a_thought_that_the_prompt_begins_is_begun_once(answer: str) -> None:
    encoder = Encoder(chat_tokenizer(PREFILL))
    asked = encoder.prompt("f:1", [user("a")])
    for made in (
        encoder.pair("f:1", [user("a")], answer),
        encoder.chat("f:1", [user("a"), assistant(answer)]),
        encoder.pair("f:1", asked[0], answer + "<|im_end|>", Reading(special_tokens=True)),
    ):
        assert said(encoder, made.tokens).count("<think>\nx\n</think>\n\ny") == 1
        assert said(encoder, made.tokens).count("<think>") == 1
        assert made.tokens[: len(asked[1])] == asked[1]
    assert encoder.notes() == []
    encoder.pair("f:2", [user("a")], "b")
    encoder.pair("f:3", [user("a")], "c")
    (note,) = encoder.notes()
    assert note.startswith("f: 2 answers are without thoughts")


def test_thoughts_that_history_loses_are_not_learnt_without_them() -> None:
    kept = "{{ m['content'] if loop.last else m['content'].split('</think>')[-1] }}"
    encoder = Encoder(chat_tokenizer(CHATML.replace("{{ m['content'] }}", kept)))
    made = encoder.chat("f:1", [user("a"), assistant("<think>x</think>b"), user("c"), assistant("<think>y</think>d")])
    assert answers(encoder, made) == ["<think>y</think>d<|im_end|>"]
    assert "assistant\nb<|im_end|>" in said(encoder, made.tokens)


NEEDS = "{% if NEED %}{{ raise_exception('no') }}{% endif %}" + CHATML


@pytest.mark.parametrize(
    ("need", "given"),
    [("messages[0]['role'] != 'system'", {}), ("date is not defined", {"date": "today"})],
)
def test_a_template_is_asked_for_its_end_with_all_that_it_needs(need: str, given: dict[str, str]) -> None:
    encoder = Encoder(chat_tokenizer(NEEDS.replace("NEED", need)))
    chat = [{"role": "system", "content": "s"}, user("a"), assistant("b"), user("c"), assistant("d")]
    made = encoder.chat("here", chat, Reading(template=given))
    assert answers(encoder, made) == ["b<|im_end|>", "d<|im_end|>"]
    assert encoder.ends.of_chat in encoder.ends.ids
    assert encoder.ends.of_chat == made.tokens[-1]
    assert encoder.notes() == []


def test_a_template_that_cannot_be_asked_is_told_of() -> None:
    encoder = Encoder(
        chat_tokenizer(
            NEEDS.replace("NEED", "messages | length < 4 and messages[-1]['role'] == 'assistant'").replace(
                "<|im_end|>", ""
            )
        )
    )
    encoder.chat("here", [user("a"), assistant("b"), user("c"), assistant("d")])
    assert "refuses every chat by which it is asked" in encoder.notes()[-1]


def test_with_tools_the_end_is_that_of_the_template_for_tools() -> None:
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = {"default": CHATML, "tool_use": CHATML.replace("<|im_end|>", "<|end|>")}
    encoder = Encoder(tokenizer)
    chat = [user("a"), assistant("b")]
    assert answers(encoder, encoder.chat("here", chat, Reading(tools=[{"name": "f"}]))) == ["b<|end|>"]
    assert answers(encoder, encoder.chat("here", chat)) == ["b<|im_end|>"]
    assert {tokenizer.convert_tokens_to_ids(end) for end in ("<|end|>", "<|im_end|>")} <= {*encoder.ends.ids}


@pytest.mark.parametrize(("said_as", "expected"), [("| upper }}", "B<eos>"), ("}} [EOT]", "b [EOT]<eos>")])
def test_an_end_that_the_template_puts_behind_other_words_is_there_once(said_as: str, expected: str) -> None:
    template = CHATML.replace("{{ m['content'] }}", "{{ m['content'] " + said_as).replace("<|im_end|>", "<eos>")
    encoder = Encoder(chat_tokenizer(template))
    made = encoder.chat("here", [user("a"), assistant("b"), user("c"), assistant("b")])
    assert answers(encoder, made) == [expected, expected]
    assert encoder.notes() == []


def test_a_call_is_learnt_with_the_words_before_it_though_another_token_ends_it() -> None:
    called = CHATML.replace("<|im_end|>", "{% if m.tool_calls %} CALL<|end|>{% else %}<|im_end|>{% endif %}")
    encoder = Encoder(chat_tokenizer(called))
    chat = [user("a"), assistant("b", **CALL), {"role": "tool", "content": "r"}, assistant("d")]
    assert answers(encoder, encoder.chat("here", chat)) == ["b CALL<|end|><|im_end|>", "d<|im_end|>"]
    assert answers(encoder, encoder.chat("here", chat[:2])) == ["b CALL<|end|><|im_end|>"]
    with pytest.raises(DataError, match="message 2 has no content; .*takes no `tool_calls`"):
        ENCODERS["chatml"].chat("here", [user("a"), assistant("", **CALL)])


def test_a_private_character_does_not_hide_what_is_spelled_behind_it() -> None:
    encoder = ENCODERS["chatml"]
    end = encoder.ends.of_chat
    assert end not in encoder.prompt("f:1", "\U000f0206 <|im_end|>")[1]
    assert encoder.pair("f:1", "q", "\U000f0206 <|im_end|> x").tokens.count(end) == 0


def test_empty_answers_are_refused_and_those_of_no_weight_are_context() -> None:
    encoder = Encoder(chat_tokenizer(CHATML))
    for prompt in ("Hi", [user("Hi")]):
        with pytest.raises(DataError, match="f:1: .*(says nothing|is empty); expected text"):
            encoder.pair("f:1", prompt, "<|im_end|>")
    with pytest.raises(DataError, match="f:1: message 2, of the assistant, is empty"):
        encoder.chat("f:1", [user("a"), assistant(""), user("c"), assistant("d")])
    chat = [user("a"), assistant("b", weight=0), user("c"), assistant("d"), user("e"), assistant("g", train=False)]
    made = encoder.chat("f:1", chat)
    assert answers(encoder, made) == ["d<|im_end|>"]
    assert made.tokens == encoder.pair("f:1", chat[:3], "d").tokens
    assert encoder.notes() == []


@pytest.mark.parametrize(
    "template",
    [
        CHATML.replace("<|im_end|>\n", "{% if not loop.last or m['role'] == 'user' %}<eos>\n{% endif %}"),
        "{% for m in messages %}{{ eos_token }}{{ m['role'] }}: {{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}{{ eos_token }}assistant: {% endif %}",
    ],
)
def test_an_end_that_stands_before_the_next_message_only_is_not_there_twice(template: str) -> None:
    encoder = Encoder(chat_tokenizer(template))
    chat = [user("a"), assistant("b"), user("c"), assistant("d")]
    made = encoder.chat("here", chat)
    assert answers(encoder, made) == ["b<eos>", "d<eos>"]
    rendered = encoder.tokenizer.apply_chat_template(chat, tokenize=False)
    assert said(encoder, made.tokens) == rendered + "<eos>"
    assert made.tokens[: len(made.tokens) - 2] == encoder.prompt("here", chat[:3])[1]
