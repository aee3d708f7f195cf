"""Which fields of another tool's record are the prompt and the answers, and which of them a name means."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlhf_dist.data.templates import SHAREGPT
from rlhf_dist.errors import DataError
from rlhf_dist.files import shown

PROMPTS = ("prompt", "instruction", "question", "query", "input", "messages", "conversation", "chat", "dialogue")
ONLY = ("answer", "response", "completion", "output", "reply", "generation")
STEMS = (*ONLY, "", "candidate", "model", "option", "text", "assistant", "item")
"""What stands before the number or letter of one of several answers."""
TIES = ("tie", "both", "neither", "equal", "same", "draw")
PAIRS = (("chosen", "rejected"), ("left", "right"))
KNOWN = (
    f"{', '.join(PROMPTS)} for the prompt; {', '.join(ONLY)}, alone or numbered (response_1, response-a), for answers"
)
BODY = ("body", "text", "html", "title")
"""Where an item of a list has its text."""
INDEXED = re.compile(r"(?:(?P<stem>.*?)[-_ .]*(?P<number>\d{1,3})|(?:(?P<word>.*?)[-_ .]+)?(?P<letter>[a-z]))")

Prompt = str | list[dict[str, Any]]


@dataclass(frozen=True)
class Fields:
    """A record's prompt and answers, and what it has beside them."""

    prompt: Prompt
    answers: Mapping[str, str]
    """By name, in the order of their numbers."""
    others: Mapping[str, Any]

    @property
    def names(self) -> list[str]:
        """Of the answers."""
        return [*self.answers]

    def answer(self, name: str) -> str | None:
        """The name of the answer that a name means: its own, however it is spelled, or its number or letter; or None."""
        plain = _plain(name)
        own = next((each for each in self.answers if _plain(each) == plain), None)
        if own is not None:
            return own
        if len(self.answers) == 2 and any(plain in pair for pair in PAIRS):
            return self.names[next(pair.index(plain) for pair in PAIRS if plain in pair)]
        stem, index = _index(name)
        if index is None or stem not in (*STEMS, *(_index(each)[0] for each in self.answers)):
            return None
        indices = {_index(each)[1]: each for each in self.answers}
        if index in indices or any(type(each) is type(index) for each in indices):
            return indices.get(index)
        place = index - 1 if isinstance(index, int) else ord(index) - ord("a")
        return self.names[place] if 0 <= place < len(self.answers) else None

    def side(self, text: str) -> str | None:
        """The better of several answers by a label, or one of `TIES`; None: it says nothing of which is better."""
        plain = text.strip().lower()
        if len(self.answers) < 2:
            return None
        return plain if plain in TIES else self.answer(plain.removesuffix("is better"))

    def about(self, question: str) -> tuple[str | None, str]:
        """The answer that a question's name ends or begins with, and what is left of the name: `rating-response_1`."""
        spelled = question.lower()
        for name in sorted(self.answers, key=len, reverse=True):
            for rest in (spelled.removesuffix(name.lower()), spelled.removeprefix(name.lower())):
                if rest != spelled and (not rest or rest.strip("-_ .") != rest):
                    return name, rest.strip("-_ .")
        return None, question


def fields_of(where: str, found: Mapping[str, Any]) -> Fields:
    """Tell prompt and answers of a record by their names.

    Args:
        where: file and record.
        found: all fields; an answer may be text or one message, a prompt text or messages, and one list of items the answers.

    Raises:
        DataError: there is no prompt or answer under a known name; names the fields, and the names that are known.
    """
    by_name = {name.lower(): name for name in found}
    asked = next((by_name[name] for name in PROMPTS if name in by_name and found[by_name[name]]), None)
    texts = {name: text for name in found if name != asked and (text := _text(found[name])) is not None}
    told = f"{where}: fields are {sorted(found)}; expected"
    if asked is None:
        raise DataError(f"{told} a prompt. Known names are {KNOWN}")
    prompt = _prompt(f"{where}: {asked}", found[asked])
    answers = _items({name: found[name] for name in found if name != asked}) or _named(told, texts)
    if not answers and isinstance(prompt, list) and len(prompt) > 1 and prompt[-1]["role"] == "assistant":
        answers, prompt = {asked: prompt[-1]["content"]}, prompt[:-1]
    if not answers:
        raise DataError(f"{told} an answer. Known names are {KNOWN}")
    return Fields(prompt, answers, {name: found[name] for name in found if name != asked and name not in answers})


def _plain(name: str) -> str:
    return re.sub(r"[-_\s.]+", "", name.lower())


def _index(name: str) -> tuple[str, int | str | None]:
    """What a name begins with, and the number or letter at its end."""
    found = INDEXED.fullmatch(name.strip().lower())
    if found is None:
        return "", None
    stem = found["word"] if found["number"] is None else found["stem"]
    return (stem or "").strip("-_ ."), found["letter"] or int(found["number"])


def _text(value: Any) -> str | None:
    """An answer: text, or one message."""
    message = value[0] if isinstance(value, list) and len(value) == 1 else value
    text = message.get("content") if isinstance(message, dict) else message
    return text if isinstance(text, str) and text.strip() else None


def _named(told: str, texts: Mapping[str, str]) -> dict[str, str]:
    """Answers by their names: usual ones that differ by a number or letter, a pair, one alone, then others with numbers."""
    groups: dict[str, list[tuple[bool, Any, str]]] = defaultdict(list)
    for name in texts:
        stem, index = _index(name)
        if index is not None:
            groups[stem].append((isinstance(index, str), index, name))
    several = {stem: [name for *_, name in sorted(group)] for stem, group in groups.items() if len(group) > 1}
    by_name = {name.lower(): name for name in texts}
    alone = [name for name in texts if name.lower() in ONLY] + [name for name in texts if _index(name)[0] in ONLY]
    choices: list[list[list[str]]] = [
        [names for stem, names in several.items() if stem in STEMS],
        [[by_name[name] for name in pair] for pair in PAIRS if all(name in by_name for name in pair)],
        [[name] for name in alone[:1] if name.lower() in ONLY],
        [*several.values()],
        [[name] for name in alone[:1]],
    ]
    found: list[list[str]] = next((names for names in choices if names), [[]])
    if len(found) > 1:
        stems = ", ".join(names[0] for names in found)
        raise DataError(f"{told} the answers under one name with numbers, found several such: {stems}")
    return {name: texts[name] for name in found[0]}


def _items(found: Mapping[str, Any]) -> dict[str, str]:
    """Answers of a list of items, each with an id and a text."""
    for value in found.values():
        if isinstance(value, list) and value and all(isinstance(each, dict) and "id" in each for each in value):
            texts = {str(item["id"]): next((t for key in BODY if (t := _text(item.get(key)))), None) for item in value}
            if len(texts) == len(value) and all(texts.values()):
                return {name: text for name, text in texts.items() if text is not None}
    return {}


def _prompt(where: str, value: Any) -> Prompt:
    """Text, or messages of {role, content}, as some tools have it {author, text}."""
    if isinstance(value, str) and value.strip():
        return value
    if not isinstance(value, list) or not value:
        raise DataError(f"{where} is {shown(value)}; expected text, or a list of messages")
    messages = []
    for message in value:
        said = message if isinstance(message, dict) else {}
        role = next((said[key] for key in ("role", "author", "from") if isinstance(said.get(key), str)), None)
        text = next((said[key] for key in ("content", "text", "value") if isinstance(said.get(key), str)), None)
        if role is None or text is None:
            raise DataError(f"{where} has {shown(message)}; expected messages with texts `role` and `content`")
        messages.append({"role": SHAREGPT.get(role.lower(), role.lower()), "content": text})
    return messages


def part(where: str, record: Any, name: str) -> dict[str, Any]:
    """A mapping that a record must have.

    Raises:
        DataError: it has none.
    """
    found = record.get(name) if isinstance(record, dict) else None
    if not isinstance(found, dict):
        raise DataError(f"{where}: no {name!r}; expected a record as the tool exports it")
    return found


def mappings(where: str, name: str, given: Any) -> list[dict[str, Any]]:
    """What a record lists under a name; null is nothing, and so is a null in the list.

    Raises:
        DataError: it is something else.
    """
    several = [each for each in given if each is not None] if isinstance(given, list) else given
    if several is None:
        return []
    if not isinstance(several, list) or not all(isinstance(each, dict) for each in several):
        raise DataError(f"{where}: {name} is {shown(given)}; expected a list of mappings")
    return several
