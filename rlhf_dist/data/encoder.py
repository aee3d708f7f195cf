"""Prompts, answers and conversations as tokens, the same for every stage, and as the engines see and make them.

A prompt's tokens are what an engine is given; an answer's are what it would sample, up to and with the token at which it
stops. So a demonstration, a judged answer and a sample of the same conversation are the same tokens:

    <bos><|user|>Hi<|end|><|assistant|>  yo<|end|>  <|user|>...
    `------------ prompt -------------'  `answer'   `- context: what a template adds after the end is never learnt
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from rlhf_dist.data.ends import Ends, takes_probes, template_end, tokenizer_ends
from rlhf_dist.data.templates import PLAIN, RENDER_ERRORS, Reading, checked_messages, template_source
from rlhf_dist.data.turns import Rendering, Turn
from rlhf_dist.data.words import Words
from rlhf_dist.errors import DataError
from rlhf_dist.files import shown

_THOUGHT = re.compile(r"(<think(?:ing)?>|\[THINK\])\s*(</think(?:ing)?>\s*|\[/THINK\]\s*)?\Z")
"""What some templates put before an answer: a thought that is begun, or an empty one."""
_CLOSED = re.compile(r"</think(?:ing)?>|\[/THINK\]")
_GENERATION = re.compile(r"{%[-+]?\s*generation\s*[-+]?%}")


@dataclass(frozen=True)
class Conversation:
    """A prompt with its answer, or a chat with several."""

    key: str
    """Text of what precedes the first answer that is learnt."""
    tokens: list[int]
    """Up to and with the last answer's end."""
    answers: list[tuple[int, int]]
    """Each answer's first token, and one past its last, its end."""

    @property
    def selected(self) -> list[int]:
        """Positions whose next token is an answer's."""
        return [position - 1 for start, stop in self.answers for position in range(start, stop) if position > 0]


class Encoder:
    """A tokenizer with what it means by a beginning, an end, and a special token."""

    def __init__(self, tokenizer: Any, ends: Ends | None = None) -> None:
        """Take a tokenizer, and the ends that a model's folder knows of; without, those that the tokenizer knows of."""
        self.tokenizer = tokenizer
        self._given = ends
        self._spelled: dict[str, set[str]] = defaultdict(set)
        self._shown_otherwise: Counter[str] = Counter()
        self._thoughtless: Counter[str] = Counter()
        self._ends_of_readings: dict[str, int | None] = {}
        self._ended = self._unasked = False
        self._told: list[str] = []

    @classmethod
    def of(cls, tokenizer: Any) -> Encoder:
        """An encoder as it is, or one of a tokenizer alone."""
        return tokenizer if isinstance(tokenizer, Encoder) else cls(tokenizer)

    @cached_property
    def ends(self) -> Ends:
        """What ends answers."""
        return self._given or tokenizer_ends(self.tokenizer)

    @cached_property
    def words(self) -> Words:
        """How parts of a sequence become tokens."""
        return Words(self.tokenizer, self.ends)

    def prompt(self, where: str, value: Any, reading: Reading = PLAIN) -> tuple[str, list[int]]:
        """A prompt's text and tokens: plain text with the tokenizer's own beginning, or a chat up to where the assistant answers.

        Raises:
            DataError: it is neither, or has no tokens; names file and line.
        """
        if isinstance(value, str) and value.strip():
            split = self._stays_text(where, self.words.without_bos(value), reading)
            text, tokens = value, self.words.begun(value, split=split, rendered=reading.special_tokens)
        elif isinstance(value, list) and value:
            _check_asks(where, value[-1])
            chat = self._rendering(where, value, reading, ask=True)
            text, tokens = self.words.quotes.show(chat.text), self._tokens(chat.text, chat.turns or [], chat.end)[0]
        else:
            raise DataError(f"{where}: prompt is {shown(value)}; expected text, or a list of messages")
        if not tokens:
            raise DataError(f"{where}: the prompt {shown(value)} has no tokens; expected some")
        return text, tokens

    def answer(self, where: str, text: str, reading: Reading = PLAIN) -> list[int]:
        """An answer's tokens after a plain text prompt, its end in, once."""
        said = self.words.without_end(text)
        return [*self.words.ids(said, split=self._stays_text(where, said, reading)), self.ends.text]

    def pair(self, where: str, prompt: Any, answer: Any, reading: Reading = PLAIN) -> Conversation:
        """A prompt with its answer; all of the prompt's messages are the prompt's, the assistant's too.

        Args:
            where: file and line.
            prompt: text, or messages.
            answer: text; after messages also a message of the assistant.
            reading: how texts become tokens.

        Raises:
            DataError: the prompt is neither text nor messages, or the template refuses it; names file and line.
        """
        if isinstance(prompt, list) and prompt:
            _check_asks(where, prompt[-1])
            message = answer if isinstance(answer, dict) else {"role": "assistant", "content": answer}
            return self._chat(where, [*prompt, message], reading, only_last=True)
        if not self.words.without_end(answer).strip():
            raise DataError(f"{where}: the answer {shown(answer)} says nothing; expected text")
        text, tokens = self.prompt(where, prompt, reading)
        whole = tokens + self.answer(where, self._behind(where, text, answer), reading)
        return Conversation(text, whole, [(len(tokens), len(whole))])

    def chat(self, where: str, messages: Any, reading: Reading = PLAIN) -> Conversation:
        """A chat with every answer of the assistant.

        Raises:
            DataError: they are no messages, the template refuses them, or the assistant says nothing; names file and line.
        """
        return self._chat(where, messages, reading, only_last=False)

    def tell(self, note: str) -> None:
        """Add a note."""
        self._told.append(note)

    def notes(self) -> list[str]:
        """What was found that a person should know, a sentence for each file."""
        spelled = [
            f"{path}: {len(rows):,} row{'s' if len(rows) > 1 else ''} with special tokens spelled out, taken as text. If they "
            "mean the tokens, set special_tokens: true for this file"
            for path, rows in self._spelled.items()
        ]
        otherwise = [
            f"{path}: {_answers(count)} context only, since the chat template shows them otherwise afterwards than an engine "
            "says them. To learn them, give rows of one answer each"
            for path, count in self._shown_otherwise.items()
        ]
        thoughtless = [
            f"{path}: {_answers(count)} without thoughts, though the chat template begins them with one. To teach no thinking, "
            "set chat_template_kwargs so that it begins none; else expected the thought and its end in the answer"
            for path, count in self._thoughtless.items()
        ]
        return [*self._told, *spelled, *otherwise, *thoughtless, *self._without_end()]

    def _without_end(self) -> list[str]:
        if not getattr(self.tokenizer, "chat_template", None) or self.ends.chat is not None or self._ended:
            return []
        end = self.tokenizer.convert_ids_to_tokens(self.ends.text)
        if self._unasked:
            return [
                "the chat template refuses every chat by which it is asked what ends an answer; where no end is known after one, "
                f"{end} is put there"
            ]
        return [f"the chat template puts no end token after an answer; {end} is put there instead"]

    def _chat(self, where: str, messages: Any, reading: Reading, *, only_last: bool) -> Conversation:
        chat = self._rendering(where, messages, reading, ask=False)
        numbers = [n for n, each in enumerate(chat.messages) if each["role"] == "assistant"]
        numbers = numbers[-1:] if only_last else [n for n in numbers if _has_weight(chat.messages[n])]
        if not numbers:
            raise DataError(f"{where}: the assistant says nothing; expected a message of the role assistant")
        for n in numbers:
            _check_says(f"{where}: message {n + 1}", chat.messages[n])
        chat = replace(chat, messages=chat.messages[: numbers[-1] + 1])
        if chat.turns is None or not chat.turns[-1].asked:
            made = self._composed(chat, numbers)
        else:
            made = self._learnt(chat, chat.turns, chat.text[: chat.turns[-1].stop], numbers)
        if len(made.answers) < len(numbers):
            self._shown_otherwise[_file_of(where)] += len(numbers) - len(made.answers)
        return made

    def _learnt(self, chat: Rendering, turns: Sequence[Turn], text: str, wanted: Sequence[int]) -> Conversation:
        """A rendered chat with those of the wanted answers that stand in it as an engine says them."""
        tokens, places = self._tokens(text, turns, chat.end)
        own = [(turn, place) for turn, place in zip(turns, places, strict=True) if turn.own and turn.number in wanted]
        key = text[: own[0][0].start] if own else text
        return Conversation(self.words.quotes.show(key), tokens, [place for _, place in own])

    def _composed(self, chat: Rendering, wanted: Sequence[int]) -> Conversation:
        """The last answer behind the prompt that an engine would get, where the template renders it otherwise afterwards."""
        *asked, message = chat.messages
        if not asked or not isinstance(message["content"], str) or message.get("tool_calls"):
            return self._marked(chat)
        before = replace(chat, messages=asked, ask=True)
        made = self._learnt(before, before.turns or [], before.text, wanted[:-1])
        said = self._behind(chat.where, before.text, message["content"])
        whole = [*made.tokens, *self.words.segment(said, before=before.text), self._end(chat.end)]
        return Conversation(made.key, whole, [*made.answers, (len(made.tokens), len(whole))])

    def _behind(self, where: str, prompt: str, answer: str) -> str:
        """An answer without the beginning of its thought, where the prompt has that already."""
        found = _THOUGHT.search(prompt)
        if found is None:
            return answer
        opened, bare = (self.words.quotes.hide(text) for text in (found[0], found[0].rstrip()))
        for begun, said in (
            (found[0], answer),
            (opened, answer),
            (found[0].rstrip(), answer.lstrip()),
            (bare, answer.lstrip()),
        ):
            if said.startswith(begun):
                answer = said[len(begun) :]
                break
        if found[2] is None and _CLOSED.search(self.words.quotes.show(answer)) is None:
            self._thoughtless[_file_of(where)] += 1
        return answer

    def _end(self, end: int | None) -> int:
        """What ends an answer to chat messages that a template ends so."""
        return self.ends.of_chat if end is None else end

    def _marked(self, chat: Rendering) -> Conversation:
        """By the template's own marks of what is generated, where answers cannot be found otherwise."""
        if _GENERATION.search(template_source(chat.where, self.tokenizer, chat.reading.tools)) is None:
            raise DataError(
                f"{chat.where}: the chat template rewrites earlier messages, so where the assistant's words stand cannot be "
                "told; expected a template with {% generation %}, or rows of one answer each"
            )
        if self.words.quotes.hides([chat.messages, chat.reading.tools]):
            raise DataError(
                f"{chat.where}: a message spells a special token, which cannot stay text where the chat template rewrites "
                "earlier messages; expected none, or special_tokens: true"
            )
        options = {"return_dict": True, "return_assistant_tokens_mask": True, **chat.reading.template}
        try:
            told = self.tokenizer.apply_chat_template(chat.messages, tools=chat.reading.tools, **options)
        except RENDER_ERRORS as error:
            raise DataError(f"{chat.where}: the chat template cannot render these messages: {error}") from error
        end = self._end(chat.end)
        tokens, answers = self._with_ends(list(told["input_ids"]), list(told["assistant_masks"]), end)
        if not answers:
            raise DataError(
                f"{chat.where}: the template's {{% generation %}} marks nothing; expected the assistant's words"
            )
        return Conversation(self.tokenizer.decode(tokens[: answers[0][0]]), tokens[: answers[-1][1]], answers)

    def _with_ends(self, tokens: list[int], mask: list[int], end: int) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokens with an end behind each marked run, and where each then stands."""
        made: list[int] = []
        answers: list[tuple[int, int]] = []
        open_at: int | None = None
        for token, said in zip([*tokens, None], [*mask, 0], strict=True):
            ends = token is not None and self.words.is_end(token)
            if open_at is not None and (not said or ends):
                made.append(token if ends and token is not None else end)
                answers.append((open_at, len(made)))
                open_at = None
                if ends:
                    continue
            # What is marked behind an end, such as a line break, belongs to the answer before.
            elif said and open_at is None and not (answers and answers[-1][1] == len(made)):
                open_at = len(made)
            made += [] if token is None else [token]
        return made, answers

    def _tokens(self, text: str, turns: Sequence[Turn], end: int | None) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokens of a rendered chat, answers apart from what surrounds them, as an engine's prompt and its samples are."""
        tokens: list[int] = []
        answers, at = [], 0
        for turn in turns:
            tokens += self.words.segment(text[at : turn.start], before=text[:at])
            start = len(tokens)
            tokens += self.words.segment(text[turn.start : turn.stop], before=text[: turn.start])
            if not turn.ended:
                tokens.append(self._end(end))
            self._ended |= turn.ended
            answers.append((start, len(tokens)))
            at = turn.stop
        return tokens + self.words.segment(text[at:], before=text[:at]), answers

    def _rendering(self, where: str, messages: Any, reading: Reading, *, ask: bool) -> Rendering:
        """Messages as their template takes them, special tokens hidden unless they are meant, and no answer spelling its end."""
        checked = checked_messages(where, messages, self.tokenizer, tools=reading.tools)
        end = self._template_end(reading)
        for message in checked:
            if message["role"] == "assistant" and isinstance(message["content"], str):
                message["content"] = self.words.without_end(message["content"])
        if not reading.special_tokens:
            before = self.words.quotes.hidden
            checked = self.words.quotes.hide(checked)
            if self.words.quotes.hidden > before:
                self._spelled[_file_of(where)].add(where)
            reading = replace(reading, tools=self.words.quotes.hide(reading.tools))
        return Rendering(self.tokenizer, self.words, reading, checked, where, end, ask)

    def _template_end(self, reading: Reading) -> int | None:
        """What ends an answer as the template that these messages go through ends it, which may need a file's arguments."""
        named = not isinstance(self.tokenizer.chat_template, str) and reading.tools
        if self.ends.chat is not None and not named:
            return self.ends.chat
        key = repr((dict(reading.template), bool(reading.tools)))
        if key not in self._ends_of_readings:
            self._ends_of_readings[key] = found = template_end(self.tokenizer, reading)
            self._unasked = found is None and not takes_probes(self.tokenizer, reading)
            if found is not None and (self.ends.chat is None or not self.words.is_end(found)):
                self._given = replace(self.ends.also([found]), chat=self.ends.chat if named else found)
                self.__dict__.pop("ends", None)
                self.__dict__.pop("words", None)
        return self._ends_of_readings[key]

    def _stays_text(self, where: str, text: str, reading: Reading) -> bool:
        """Whether a text spells special tokens that it does not mean."""
        found = not reading.special_tokens and self.words.quotes.spells(text)
        if found:
            self._spelled[_file_of(where)].add(where)
        return found


def _check_asks(where: str, message: Any) -> None:
    """An answer behind an answer is what no template has a place for, and renders all the same."""
    if isinstance(message, dict) and message.get("role") == "assistant":
        raise DataError(
            f"{where}: the prompt ends with a message of the assistant; expected one that it answers. Where the last message is "
            "an answer to learn from, give it as the answer"
        )


def _file_of(where: str) -> str:
    return where.rpartition(":")[0] or where


def _answers(count: int) -> str:
    return f"{count:,} answer{'s are' if count > 1 else ' is'}"


def _has_weight(message: Mapping[str, Any]) -> bool:
    """Whether a chat's answer is one to learn, by the columns that other tools have for it."""
    return message.get("weight") != 0 and message.get("train") is not False


def _check_says(where: str, message: Mapping[str, Any]) -> None:
    """An empty answer would teach to say nothing."""
    content = message["content"]
    if not (content.strip() if isinstance(content, str) else content) and not message.get("tool_calls"):
        raise DataError(f"{where}, of the assistant, is empty; expected text")
