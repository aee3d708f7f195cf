"""Texts as token ids: where a text begins, where it ends, and what in it is a special token."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any

from rlhf_dist.data.ends import Ends, added_tokens, pattern_of, special_tokens, tokens_that_eat_spaces
from rlhf_dist.data.templates import Quotes


class Words:
    """A tokenizer that is asked for parts of a sequence, and so must not put a beginning or an end around each."""

    def __init__(self, tokenizer: Any, ends: Ends) -> None:
        """Take a tokenizer, and what ends answers."""
        self._tokenizer = tokenizer
        self._added = added_tokens(tokenizer)
        self._end_ids = frozenset({*ends.ids, ends.text, ends.of_chat})
        self.end = pattern_of(text for text, token in self._added.items() if token in self._end_ids)
        """Any token that ends an answer, as text."""
        self._last_end = re.compile(f"(?:{self.end.pattern})\\Z")
        self._own = pattern_of(self._added)
        self._eaters = tokens_that_eat_spaces(tokenizer)
        self.bos: str = getattr(tokenizer, "bos_token", None) or ""
        special = special_tokens(tokenizer)
        # Ends that the tokenizer does not call special, and finds in a text even when told to find none.
        stubborn = [text for text, token in self._added.items() if token in self._end_ids and text not in special]
        self._stubborn = pattern_of(stubborn)
        self.quotes = Quotes([*special, *stubborn])

    def ids(self, text: str, *, first: bool = False, split: bool = False) -> list[int]:
        """Tokens of a text and nothing around them.

        Args:
            text: part of a sequence.
            first: whether it is the first; others get no space in front, which some tokenizers put before any text.
            split: whether special tokens that it spells are ordinary text.
        """
        if not text:
            return []
        cuts = [found.start() + 1 for found in self._stubborn.finditer(text)] if split else []
        if cuts:
            parts = [text[start:stop] for start, stop in zip([0, *cuts], [*cuts, None], strict=True)]
            return [one for n, part in enumerate(parts) for one in self.ids(part, first=first and n == 0, split=True)]
        options = {"split_special_tokens": True} if split else {}
        if not first and self._anchor:
            whole = self._tokenizer("\n" + text, add_special_tokens=False, **options)["input_ids"]
            if whole[: len(self._anchor)] == self._anchor:
                return list(whole[len(self._anchor) :])
        return list(self._tokenizer(text, add_special_tokens=False, **options)["input_ids"])

    def begun(self, text: str, *, split: bool, rendered: bool) -> list[int]:
        """A plain text behind the tokenizer's own beginning, which is there once, and without an end; empty: it has no tokens.

        Args:
            text: the whole of a prompt.
            split: whether special tokens that it spells are ordinary text, but for BOS at its very beginning.
            rendered: whether it may come from a template, and then needs no beginning where it has a special token there.
        """
        bare = self.without_bos(text)
        words = self.ids(bare, first=True, split=split)
        if not words:
            return []
        as_it_is = rendered and self._own.match(bare) is not None
        tokens = words if as_it_is else self._behind_beginning(bare, words, split=split)
        bos = self._tokenizer.bos_token_id if bare != text else None
        return tokens if bos is None or tokens[0] == bos else [bos, *tokens]

    def _behind_beginning(self, text: str, words: list[int], *, split: bool) -> list[int]:
        """A text's words with what the tokenizer puts before them, and without what some put after them."""
        options = {"split_special_tokens": True} if split else {}
        whole: list[int] = list(self._tokenizer(text, **options)["input_ids"])
        for start in range(len(whole) - len(words) + 1):
            if whole[start : start + len(words)] == words:
                return whole[: start + len(words)]
        while whole and whole[-1] in self._end_ids:
            whole.pop()
        return whole

    def segment(self, text: str, *, before: str = "") -> list[int]:
        """Part of a rendered chat: the template's own tokens, and among them what people wrote, as text.

        Args:
            text: the part, special tokens in people's words hidden.
            before: what precedes it.
        """
        if before.endswith(self._eaters):
            text = text.lstrip()
        if not Quotes.has(text):
            return self.ids(text, first=not before)
        tokens: list[int] = []
        for part in self._runs(text):
            plain = self.quotes.show(part.lstrip() if before.endswith(self._eaters) else part)
            tokens += self.ids(plain, first=not before, split=Quotes.has(part))
            before += part
        return tokens

    def _runs(self, text: str) -> list[str]:
        """A rendered text cut where the template's own tokens meet words in which some are hidden."""
        parts, at = [], 0
        for found in self._own.finditer(text):
            parts += [text[at : found.start()], found[0]]
            at = found.end()
        runs = [""]
        for part in [*parts, text[at:]]:
            if Quotes.has(part) or Quotes.has(runs[-1]):
                runs.append(part)
            else:
                runs[-1] += part
        return [run for run in runs if run]

    def without_bos(self, text: str) -> str:
        """A text that may begin with BOS, spelled, without it."""
        while self.bos and text.startswith(self.bos):
            text = text.removeprefix(self.bos)
        return text

    def without_end(self, text: str) -> str:
        """An answer that may spell its end, without it."""
        while (found := self._last_end.search(text)) is not None:
            text = text[: found.start()]
        return text

    def is_end(self, token: int) -> bool:
        """Whether a token ends answers."""
        return token in self._end_ids

    def tail(self, tokens: list[int], most: int) -> list[int]:
        """The end of a prompt that is too long, behind its BOS if it has one."""
        begins = bool(self.bos) and most > 1 and tokens[:1] == [self._tokenizer.bos_token_id]
        return [*tokens[:1], *tokens[len(tokens) - most + 1 :]] if begins else tokens[len(tokens) - most :]

    @cached_property
    def _anchor(self) -> list[int]:
        """A line break's tokens, if a text on its own gets a space in front, as Llama 2's tokenizer does; else none."""
        alone, line, both = (
            self._tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a", "\n", "\na")
        )
        return list(line) if both[: len(line)] == line and both[len(line) :] != alone else []
