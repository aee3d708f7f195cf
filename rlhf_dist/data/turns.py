"""Where the assistant's answers stand in a chat that a template renders: behind what an engine is asked, up to their ends."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from rlhf_dist.data.templates import RENDER_ERRORS, Reading, apply_template, render
from rlhf_dist.data.words import Words

_MARK = re.compile("mark\\d+\U0010fffd")


class Turn(NamedTuple):
    """An answer's place in a rendered chat."""

    start: int
    stop: int
    ended: bool
    """Whether the template has put the end token there."""
    asked: bool
    """Whether what precedes it is what an engine is given."""
    own: bool
    """Whether the answer stands there as it does alone, behind what an engine is given: only then it is learnt."""
    number: int
    """Of its message."""


@dataclass(frozen=True)
class Rendering:
    """A chat and its template, special tokens in people's words hidden."""

    tokenizer: Any
    words: Words
    reading: Reading
    messages: list[dict[str, Any]]
    where: str
    end: int | None
    """What the template puts behind answers; None: nothing."""
    ask: bool
    """Whether it goes up to where the assistant answers."""

    @cached_property
    def text(self) -> str:
        """The chat as text.

        Raises:
            DataError: the template refuses it; names file and line.
        """
        text = render(self.where, self.tokenizer, self.messages, ask=self.ask, reading=self.reading)
        return self._asking(text, self.messages) if self.ask else text

    @cached_property
    def turns(self) -> list[Turn] | None:
        """Every answer's place; None where that cannot be told."""
        numbers = [n for n, message in enumerate(self.messages) if message["role"] == "assistant"]
        befores = {n: self._part(self.messages[:n], ask=True) for n in numbers if n}
        asked = {n: n == 0 or ((before := befores[n]) is not None and self.text.startswith(before)) for n in numbers}
        starts = []
        for n in numbers:
            start = len(befores[n] or "") if n and asked[n] else self._contents.get(n, (None,))[0]
            if start is None:
                return None
            starts.append(start)
        if starts != sorted(starts):
            return None
        limits = [*starts[1:], *([len(self.text)] if starts else [])]
        return [self._turn(n, *span, asked=asked[n]) for n, *span in zip(numbers, starts, limits, strict=True)]

    def _turn(self, number: int, start: int, limit: int, *, asked: bool) -> Turn:
        """An answer that begins at `start`, and ends before `limit`."""
        content = self._contents.get(number)
        last = number == len(self.messages) - 1
        known = self.text if last else self._part(self.messages[: number + 1]) or ""
        whole = last or bool(known and self.text.startswith(known))
        if whole:
            limit = min(limit, len(known))
        after = max(start, content[1]) if content else start
        end = self.words.end.search(self.text, after, limit) if self.end is not None or whole else None
        if end is not None:
            own = asked and known[: end.end()] == self.text[: end.end()]
            return Turn(start, end.end(), ended=True, asked=asked, own=own, number=number)
        # Some put it before the next message, so that it is not there yet when the answer is the last.
        late = self.words.end.match(self.text, after) if content else None
        if late is not None:
            own = asked and known[:after] == self.text[:after]
            return Turn(start, late.end(), ended=True, asked=asked, own=own, number=number)
        calls = whole and self.messages[number].get("tool_calls")
        stop = after if content and not calls else start + len(self.text[start:limit].rstrip())
        own = asked and known[:stop] == self.text[:stop]
        return Turn(start, stop, ended=False, asked=asked, own=own, number=number)

    @cached_property
    def _contents(self) -> dict[int, tuple[int, int]]:
        """First and last character of the assistant's words by message, as far as the template shows them as they are."""
        marks = {
            n: f"mark{n}\U0010fffd"
            for n, each in enumerate(self.messages)
            if each["role"] == "assistant" and isinstance(each["content"], str) and each["content"].strip()
        }
        marked = self._part(
            [{**each, "content": marks.get(n, each["content"])} for n, each in enumerate(self.messages)], ask=self.ask
        )
        if marked is None or _MARK.findall(marked) != [*marks.values()]:
            return {}
        between = _MARK.split(marked)
        found, at = dict[int, tuple[int, int]](), 0
        for number, before, after in zip(marks, between, between[1:], strict=False):
            start, said = at + len(before), self.messages[number]["content"]
            forms = (said, said.strip(), said.lstrip(), said.rstrip(), said.strip("\n"))
            fit = next((form for form in forms if self.text.startswith(form + after, start)), None)
            if fit is None or not self.text.startswith(before, at):
                return {}
            at = start + len(fit)
            found[number] = (start, at)
        return found

    def _part(self, messages: list[dict[str, Any]], *, ask: bool = False) -> str | None:
        """A part of the chat as text; None where the template takes only the whole."""
        try:
            text = apply_template(self.tokenizer, messages, ask=ask, reading=self.reading)
        except RENDER_ERRORS:
            return None
        return self._asking(text, messages) if ask else text

    def _asking(self, text: str, messages: list[dict[str, Any]]) -> str:
        """What an engine is given: without the end that some templates put behind everything, the question too."""
        bare = self.words.without_end(text.rstrip())
        if bare == text.rstrip():
            return text
        answered = self._part([*messages, {"role": "assistant", "content": "x"}])
        return bare if answered and answered.startswith(bare) and not answered.startswith(text) else text
