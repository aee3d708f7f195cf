"""Prompts, answers and conversations as tokens, the same for every stage, and as the engines see and make them.

A prompt's tokens are what an engine is given; an answer's are what it would sample, up to and with the token at which it
stops. So a demonstration, a judged answer and a sample of the same conversation are the same tokens:

    <bos><|user|>Hi<|end|><|assistant|>  yo<|end|>  <|user|>...
    `------------ prompt -------------'  `answer'   `- context: what a template adds after the end is never learnt
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from rlhf_dist.data.ends import Ends, added_tokens, pattern_of, special_tokens, tokenizer_ends, tokens_that_eat_spaces
from rlhf_dist.data.templates import (
    PLAIN,
    RENDER_ERRORS,
    Quotes,
    Reading,
    apply_template,
    checked_messages,
    render,
    template_source,
)
from rlhf_dist.errors import DataError
from rlhf_dist.files import shown

_MARKS = re.compile(r"{%[-+]?\s*generation\s*[-+]?%}")
_MARK = re.compile("mark\\d+\U0010fffd")


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


class _Turn(NamedTuple):
    """Where an assistant's answer stands in a rendered chat."""

    start: int
    stop: int
    ended: bool
    """Whether the template has put the end token there."""
    asked: bool
    """Whether what precedes it is what an engine is given."""


class Encoder:
    """A tokenizer with what it means by a beginning, an end, and a special token."""

    def __init__(self, tokenizer: Any, ends: Ends | None = None) -> None:
        """Take a tokenizer, and the ends that a model's folder knows of; without, those that the tokenizer knows of."""
        self.tokenizer = tokenizer
        self._given = ends
        self._spelled: Counter[str] = Counter()
        self._told: list[str] = []

    @classmethod
    def of(cls, tokenizer: Any) -> Encoder:
        """An encoder as it is, or one of a tokenizer alone."""
        return tokenizer if isinstance(tokenizer, Encoder) else cls(tokenizer)

    @cached_property
    def ends(self) -> Ends:
        """What ends answers."""
        return self._given or tokenizer_ends(self.tokenizer)

    def prompt(self, where: str, value: Any, reading: Reading = PLAIN) -> tuple[str, list[int]]:
        """A prompt's text and tokens: plain text with the tokenizer's own beginning, or a chat up to where the assistant answers.

        Raises:
            DataError: it is neither, or has no tokens; names file and line.
        """
        if isinstance(value, str) and value.strip():
            return value, self._text_prompt(where, value, reading)
        if not isinstance(value, list) or not value:
            raise DataError(f"{where}: prompt is {shown(value)}; expected text, or a list of messages")
        messages = self._quoted(where, self._ended_once(value), reading)
        _check_asks(where, messages[-1])
        text = render(where, self.tokenizer, messages, ask=True, reading=self._hidden(reading))
        tokens, _ = self._tokens(text, self._turns(text, messages, reading))
        if not tokens:
            raise DataError(f"{where}: the chat template renders no tokens from the prompt; expected some")
        return self._quotes.show(text), tokens

    def answer(self, where: str, text: str, reading: Reading = PLAIN) -> list[int]:
        """An answer's tokens after a plain text prompt, its end in, once."""
        return [*self._continued(where, self._without_end(text), reading), self.ends.text]

    def pair(self, where: str, prompt: Any, answer: Any, reading: Reading = PLAIN) -> Conversation:
        """A prompt with its answer, as text or a message of the assistant; all other messages are the prompt's.

        Raises:
            DataError: the prompt is neither text nor messages, or the template refuses it; names file and line.
        """
        if isinstance(prompt, list) and prompt:
            _check_asks(where, prompt[-1])
            message = answer if isinstance(answer, dict) else {"role": "assistant", "content": answer}
            return self._chat(where, [*prompt, message], reading, only_last=True)
        text, tokens = self.prompt(where, prompt, reading)
        said = answer["content"] if isinstance(answer, dict) else answer
        whole = tokens + self.answer(where, said, reading)
        return Conversation(text, whole, [(len(tokens), len(whole))])

    def chat(self, where: str, messages: Any, reading: Reading = PLAIN) -> Conversation:
        """A chat with every answer of the assistant.

        Raises:
            DataError: they are no messages, the template refuses them, or the assistant says nothing; names file and line.
        """
        return self._chat(where, messages, reading, only_last=False)

    def end_of(self, tokens: list[int], most: int) -> list[int]:
        """The end of a prompt that is too long, behind its BOS if it has one."""
        begins = bool(self._bos) and most > 1 and tokens[:1] == [self.tokenizer.bos_token_id]
        return [*tokens[:1], *tokens[len(tokens) - most + 1 :]] if begins else tokens[len(tokens) - most :]

    def tell(self, note: str) -> None:
        """Add a note."""
        self._told.append(note)

    def notes(self) -> list[str]:
        """What was found that a person should know, a sentence for each file."""
        found = [
            *self._told,
            *self._spelling(),
        ]
        if getattr(self.tokenizer, "chat_template", None) and self.ends.chat is None:
            found.append(
                f"the chat template puts no end token after an answer; {self._named(self.ends.text)} is put there instead"
            )
        return found

    def _spelling(self) -> list[str]:
        return [
            f"{path}: {count} text{'s' if count > 1 else ''} with special tokens spelled out, taken as text. If they mean the "
            "tokens, set special_tokens: true for this file"
            for path, count in self._spelled.items()
        ]

    def _chat(self, where: str, messages: Any, reading: Reading, *, only_last: bool) -> Conversation:
        quoted = self._quoted(where, self._ended_once(messages), reading)
        last = max((n for n, each in enumerate(quoted) if each["role"] == "assistant"), default=None)
        if last is None:
            raise DataError(f"{where}: the assistant says nothing; expected a message of the role assistant")
        quoted = quoted[: last + 1]
        text = render(where, self.tokenizer, quoted, ask=False, reading=self._hidden(reading))
        turns = self._turns(text, quoted, reading)
        if turns is None and not only_last and sum(each["role"] == "assistant" for each in quoted) > 1:
            return self._marked(where, quoted, reading)
        if turns is None or not turns[-1].asked:
            return self._composed(where, quoted, reading, only_last=only_last)
        tokens, answers = self._tokens(text[: turns[-1].stop], turns)
        first = turns[-1 if only_last else 0]
        return Conversation(self._quotes.show(text[: first.start]), tokens, answers[-1:] if only_last else answers)

    def _composed(self, where: str, messages: list[Any], reading: Reading, *, only_last: bool) -> Conversation:
        """The last answer behind the prompt that an engine would get, where the template renders it otherwise afterwards."""
        *asked, message = messages
        if not asked or not isinstance(message["content"], str):
            return self._marked(where, messages, reading)
        text = render(where, self.tokenizer, asked, ask=True, reading=self._hidden(reading))
        turns = self._turns(text, asked, reading) or []
        before, earlier = self._tokens(text, turns)
        said = self._segment(message["content"], first=False)
        whole = [*before, *said, self.ends.of_chat]
        answers = [*([] if only_last else earlier), (len(before), len(whole))]
        first = text if only_last or not turns else text[: turns[0].start]
        return Conversation(self._quotes.show(first), whole, answers)

    def _marked(self, where: str, messages: list[Any], reading: Reading) -> Conversation:
        """By the template's own marks of what is generated, where answers cannot be found otherwise."""
        if _MARKS.search(template_source(where, self.tokenizer, reading.tools)) is None:
            raise DataError(
                f"{where}: the chat template rewrites earlier messages, so where the assistant's words stand cannot be told; "
                "expected a template with {% generation %}, or rows of one answer each"
            )
        if not reading.special_tokens and self._quotes.hides(messages):
            raise DataError(
                f"{where}: a message spells a special token, which cannot stay text where the chat template rewrites earlier "
                "messages; expected none, or special_tokens: true"
            )
        try:
            told = self.tokenizer.apply_chat_template(
                messages,
                tools=reading.tools,
                return_dict=True,
                return_assistant_tokens_mask=True,
                **reading.template,
            )
        except RENDER_ERRORS as error:
            raise DataError(f"{where}: the chat template cannot render these messages: {error}") from error
        tokens, mask = list(told["input_ids"]), list(told["assistant_masks"])
        answers = []
        starts = [n for n, said in enumerate(mask) if said and not (n and mask[n - 1])]
        for start in starts:
            stop = next((n for n in range(start, len(mask)) if not mask[n]), len(mask))
            end = next((n + 1 for n in range(start, min(stop + 1, len(tokens))) if tokens[n] in self._end_ids), stop)
            answers.append((start, end))
        if not answers:
            raise DataError(
                f"{where}: the chat template's {{% generation %}} marks nothing; expected the assistant's words"
            )
        key = self.tokenizer.decode(tokens[: answers[0][0]])
        return Conversation(key, tokens[: answers[-1][1]], answers)

    def _turns(self, text: str, messages: list[Any], reading: Reading) -> list[_Turn] | None:
        """Where each answer of the assistant stands in a rendered chat; None where that cannot be told."""
        numbers = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
        if not numbers:
            return []
        contents = self._contents(text, messages, reading)
        starts, asked = [], []
        for number in numbers:
            before = self._rendered(messages[:number], reading, ask=True) if number else None
            asked.append(not number or (before is not None and text.startswith(before)))
            start = len(before) if before and asked[-1] else contents.get(number, (None,))[0]
            if start is None:
                return None
            starts.append(start)
        if starts != sorted(starts):
            return None
        limits = [*starts[1:], len(text)]
        found = []
        for number, follows, start, limit in zip(numbers, asked, starts, limits, strict=True):
            after = contents.get(number, (start, start))[1]
            known = self._rendered(messages[: number + 1], reading)
            if number != len(messages) - 1 and known and text.startswith(known):
                limit = min(limit, len(known))
            end = self._end_pattern.search(text, max(start, after), limit) if self.ends.chat is not None else None
            if end is not None:
                found.append(_Turn(start, end.end(), True, follows))
            elif number in contents and after >= start:
                found.append(_Turn(start, after, False, follows))
            else:
                found.append(_Turn(start, start + len(text[start:limit].rstrip()), False, follows))
        return found

    def _contents(self, text: str, messages: list[Any], reading: Reading) -> dict[int, tuple[int, int]]:
        """First and last character of what the assistant says in each message, as far as the template shows it as it is."""
        marks = {
            n: f"mark{n}\U0010fffd"
            for n, each in enumerate(messages)
            if each["role"] == "assistant" and isinstance(each["content"], str) and each["content"].strip()
        }
        with_marks = [{**each, "content": marks.get(n, each["content"])} for n, each in enumerate(messages)]
        rendered = self._rendered(with_marks, reading, ask=messages[-1]["role"] != "assistant")
        if rendered is None or _MARK.findall(rendered) != [*marks.values()]:
            return {}
        between = _MARK.split(rendered)
        found, at = dict[int, tuple[int, int]](), 0
        for number, before, after in zip(marks, between, between[1:], strict=False):
            start, content = at + len(before), messages[number]["content"]
            forms = (content, content.strip(), content.lstrip(), content.rstrip(), content.strip("\n"))
            fit = next((form for form in forms if text.startswith(form + after, start)), None)
            if fit is None or not text.startswith(before, at):
                return {}
            at = start + len(fit)
            found[number] = (start, at)
        return found

    def _tokens(self, text: str, turns: Sequence[_Turn] | None) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokens of a rendered chat, answers apart from what surrounds them, as an engine's prompt and its samples are."""
        tokens: list[int] = []
        answers = []
        at = 0
        for turn in turns or []:
            tokens += self._segment(text[at : turn.start], first=at == 0, before=text[:at])
            start = len(tokens)
            tokens += self._segment(text[turn.start : turn.stop], first=turn.start == 0, before=text[: turn.start])
            if not turn.ended:
                tokens.append(self.ends.of_chat)
            answers.append((start, len(tokens)))
            at = turn.stop
        return tokens + self._segment(text[at:], first=at == 0, before=text[:at]), answers

    def _segment(self, text: str, *, first: bool, before: str = "") -> list[int]:
        """Part of a rendered chat: the template's own tokens, and around them what people wrote, as text."""
        if before.endswith(self._eaters):
            text = text.lstrip()
        if not Quotes.has(text):
            return self._ids(text, first=first)
        tokens: list[int] = []
        own, said = "", False
        for part in [*self._split(text), ""]:
            if part and not Quotes.has(part):
                own, said = own + part, False
                continue
            tokens += self._ids(own, first=first and not tokens)
            if part:
                plain = self._quotes.show(part.lstrip() if own.endswith(self._eaters) else part)
                tokens += self._ids(plain, first=first and not tokens and not said, split=True)
            own, said = "", bool(part)
        return tokens

    def _split(self, text: str) -> list[str]:
        """A rendered text cut at the template's own special tokens."""
        parts, at = [], 0
        for found in self._added_pattern.finditer(text):
            parts += [text[at : found.start()], found[0]]
            at = found.end()
        return [part for part in [*parts, text[at:]] if part]

    def _text_prompt(self, where: str, text: str, reading: Reading) -> list[int]:
        """Plain text behind the tokenizer's own beginning, which is there once, and without an end."""
        bos = self._bos
        bare = text
        while bos and bare.startswith(bos):
            bare = bare.removeprefix(bos)
        begun = bare != text
        split = not reading.special_tokens and self._spells(where, bare)
        rendered = reading.special_tokens and self._added_pattern.match(bare) is not None
        words = self._ids(bare, first=True, split=split) if bare else []
        if not words:
            raise DataError(f"{where}: the prompt {shown(text)} has no tokens; expected some")
        if rendered:
            return [self.tokenizer.bos_token_id, *words] if begun else words
        tokens = self._begun(bare, words, split=split)
        return [self.tokenizer.bos_token_id, *tokens] if begun and tokens[0] != self.tokenizer.bos_token_id else tokens

    def _begun(self, text: str, words: list[int], *, split: bool) -> list[int]:
        """A text with what the tokenizer puts before it, and without what some put after it."""
        whole: list[int] = self.tokenizer(text, **({"split_special_tokens": True} if split else {}))["input_ids"]
        for start in range(len(whole) - len(words) + 1):
            if whole[start : start + len(words)] == words:
                return list(whole[: start + len(words)])
        while whole and whole[-1] in self._end_ids:
            whole = whole[:-1]
        return list(whole)

    def _continued(self, where: str, text: str, reading: Reading) -> list[int]:
        split = not reading.special_tokens and self._spells(where, text)
        return self._ids(text, first=False, split=split)

    def _ids(self, text: str, *, first: bool, split: bool = False) -> list[int]:
        """Tokens of a text and nothing around them; unless it is the first, without the space that some put before a text."""
        if not text:
            return []
        cuts = [found.start() + 1 for found in self._stubborn.finditer(text)] if split else []
        if cuts:
            parts = [text[start:stop] for start, stop in zip([0, *cuts], [*cuts, None], strict=True)]
            return [
                token for n, part in enumerate(parts) for token in self._ids(part, first=first and n == 0, split=True)
            ]
        options = {"split_special_tokens": True} if split else {}
        if not first and self._anchor:
            whole = self.tokenizer("\n" + text, add_special_tokens=False, **options)["input_ids"]
            if whole[: len(self._anchor)] == self._anchor:
                return list(whole[len(self._anchor) :])
        return list(self.tokenizer(text, add_special_tokens=False, **options)["input_ids"])

    @cached_property
    def _anchor(self) -> list[int]:
        """A line break's tokens, if a text on its own gets a space in front, as Llama 2's tokenizer does; else none."""
        alone, line, both = (self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a", "\n", "\na"))
        return list(line) if both[: len(line)] == line and both[len(line) :] != alone else []

    def _quoted(self, where: str, messages: Any, reading: Reading) -> list[dict[str, Any]]:
        """Messages as the template takes them, special tokens in them hidden unless they are meant."""
        checked = checked_messages(where, messages, self.tokenizer, tools=reading.tools)
        if reading.special_tokens:
            return checked
        before = self._quotes.hidden
        hidden: list[dict[str, Any]] = self._quotes.hide(checked)
        if self._quotes.hidden > before:
            self._note(where)
        return hidden

    def _hidden(self, reading: Reading) -> Reading:
        if reading.special_tokens or not reading.tools:
            return reading
        return Reading(False, reading.template, self._quotes.hide(reading.tools))

    def _ended_once(self, messages: Any) -> Any:
        """Messages whose answers do not spell their own end, which the template adds."""
        if not isinstance(messages, list):
            return messages
        return [
            {**each, "content": self._without_end(each["content"])}
            if isinstance(each, dict) and each.get("role") == "assistant" and isinstance(each.get("content"), str)
            else each
            for each in messages
        ]

    def _without_end(self, text: str) -> str:
        while (found := self._last_end.search(text)) is not None:
            text = text[: found.start()]
        return text

    def _rendered(self, messages: list[Any], reading: Reading, *, ask: bool = False) -> str | None:
        """A part of a chat; None where the template takes only the whole."""
        try:
            return apply_template(self.tokenizer, messages, ask=ask, reading=self._hidden(reading))
        except RENDER_ERRORS:
            return None

    def _spells(self, where: str, text: str) -> bool:
        found = self._quotes.spells(text)
        if found:
            self._note(where)
        return found

    def _note(self, where: str) -> None:
        self._spelled[where.rpartition(":")[0] or where] += 1

    def _named(self, token: int) -> str:
        text: str = self.tokenizer.convert_ids_to_tokens(token)
        return text

    @cached_property
    def _quotes(self) -> Quotes:
        return Quotes([*special_tokens(self.tokenizer), *self._other_ends])

    @cached_property
    def _other_ends(self) -> list[str]:
        """Ends that the tokenizer does not call special, and takes for tokens wherever they are spelled."""
        known = special_tokens(self.tokenizer)
        added = added_tokens(self.tokenizer)
        return [text for text, token in added.items() if token in self._end_ids and text not in known]

    @cached_property
    def _stubborn(self) -> re.Pattern[str]:
        return pattern_of(self._other_ends)

    @cached_property
    def _bos(self) -> str:
        return getattr(self.tokenizer, "bos_token", None) or ""

    @cached_property
    def _eaters(self) -> tuple[str, ...]:
        return tokens_that_eat_spaces(self.tokenizer)

    @cached_property
    def _added_pattern(self) -> re.Pattern[str]:
        return pattern_of(added_tokens(self.tokenizer))

    @cached_property
    def _end_ids(self) -> frozenset[int]:
        return frozenset({*self.ends.ids, self.ends.text, self.ends.of_chat})

    @cached_property
    def _end_pattern(self) -> re.Pattern[str]:
        return pattern_of(text for text, token in added_tokens(self.tokenizer).items() if token in self._end_ids)

    @cached_property
    def _last_end(self) -> re.Pattern[str]:
        return re.compile(f"(?:{self._end_pattern.pattern})\\Z")


def _check_asks(where: str, message: Any) -> None:
    """An answer behind an answer is what no template has a place for, and renders all the same."""
    if isinstance(message, dict) and message.get("role") == "assistant":
        raise DataError(
            f"{where}: the prompt ends with a message of the assistant; expected one that it answers. Where the last message is "
            "an answer to learn from, give it as the answer"
        )
