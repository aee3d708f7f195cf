"""What people told another tool, as rows of judgements: its questions sorted by what they ask, its words by what they mean."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlhf_dist.data.characters import alike
from rlhf_dist.data.feedback import is_number
from rlhf_dist.errors import DataError
from rlhf_dist.feedback.fields import TIES, Fields

MARGINS = ("margin", "strength", "preference_margin", "preference_strength")
"""Questions about a pair whose number is by how much the better answer is better."""
REMARKS = ("comment", "comments", "why", "reason", "rationale", "explanation", "feedback", "notes")
"""Questions whose answer is a text, however short."""
MAIN = ("preference", "ranking", "score", "comment")
"""Names of questions, as our exports have them, that are no further criterion."""
CARRIED = ("tools", "chat_template_kwargs", "special_tokens")

Kind = Literal["labels", "number", "ranking", "text", "mark"]


@dataclass(frozen=True)
class Statement:
    """An answer to a question of another tool."""

    question: str
    kind: Kind
    value: Any
    """Texts; a number; groups of names, best first; a text; or a mark: {text, start, end, comment}."""
    about: str | None = None
    """The answer that it is about, by name, where the tool says so."""


@dataclass(frozen=True)
class Told:
    """All that one person said of one record."""

    where: str
    task: int
    fields: Fields
    annotator: str
    said: Sequence[Statement]
    created: str | None = None
    seconds: float | None = None


def rows_of(told: Iterable[Told], left_out: Counter[str]) -> list[dict[str, Any]]:
    """Judgements as `feedback export` writes them, in the order of the records.

    Where one question of an export asks for a preference, or for a score, it is the main one; of several, each is a criterion
    under its name. Texts become the comments of what else was said, alone they are judgements. What cannot be told for sure
    is left out.

    Args:
        told: of all records.
        left_out: gets how much is left out, by reason.

    Raises:
        DataError: two answers of which one is said to be better are the same; names the record.
    """
    sorted_out = [_Sorted(one, left_out) for one in told]
    asked: dict[str, set[str]] = defaultdict(set)
    for one in sorted_out:
        for kind, question in one.questions():
            asked[kind].add(question)
    criteria = {kind: len(names) > 1 for kind, names in asked.items()}
    return [row for number, one in enumerate(sorted_out, start=1) for row in one.rows(number, criteria)]


class _Sorted:
    """One person's words on a record, by what they are about."""

    def __init__(self, told: Told, left_out: Counter[str]) -> None:
        self._told, self._fields, self._left_out = told, told.fields, left_out
        self._only = self._fields.names[0] if len(self._fields.answers) == 1 else None
        self._orders: list[tuple[str, list[list[str]]]] = []
        self._scores: list[tuple[str, str, float]] = []
        self._choices: list[tuple[str, str | None, list[str]]] = []
        self._texts: dict[str | None, list[str]] = defaultdict(list)
        self._marks: list[dict[str, Any]] = []
        self._margin = 0.0
        for said in told.said:
            getattr(self, f"_{said.kind}")(said)
        self._marks.sort(key=lambda mark: (mark["answer"], mark["start"]))

    def questions(self) -> list[tuple[str, str]]:
        """Questions that were answered with a preference or a score."""
        orders = [("order", question) for question, _ in self._orders]
        return orders + [("score", question) for question, _, _ in self._scores]

    def rows(self, judgement: int, criteria: dict[str, bool]) -> list[dict[str, Any]]:
        """What was said, one row for each answer to a question."""

        def named(kind: str, question: str) -> dict[str, Any]:
            return {"criterion": question} if criteria.get(kind) and question not in MAIN else {}

        found = [row | named("order", question) for question, groups in self._orders for row in self._order(groups)]
        found += [
            {"kind": "scores", **self._one(name), "score": score, **self._scale(question)} | named("score", question)
            for question, name, score in self._scores
        ]
        found += [
            {
                "kind": "choices",
                **self._shown(name),
                "criterion": question,
                "choice": texts[0] if len(texts) == 1 else texts,
            }
            for question, name, texts in self._choices
        ]
        if self._margin and not self._orders:
            self._left_out["margins without a preference"] += 1
        return [self._common(judgement, row) for row in found or self._comments()]

    def _labels(self, said: Statement) -> None:
        about, question = self._about(said)
        side = self._fields.side(said.value[0]) if len(said.value) == 1 else None
        if side is None or self._fields.about(said.question)[0]:
            self._choices.append((question, about, said.value))
            return
        better = [] if side in TIES else [side]
        others = [name for name in self._fields.answers if name not in better]
        if better:  # of several answers nothing is said of the others among themselves
            self._orders += [(question, [better, [name]]) for name in others]
        else:
            self._orders.append((question, [others]))

    def _number(self, said: Statement) -> None:
        about, question = self._about(said)
        if about is not None:
            self._scores.append((question, about, said.value))
        elif question.lower() in MARGINS and said.value >= 0:
            self._margin = float(said.value)
        else:
            self._left_out[f"numbers of {question}, which say of no answer what it is worth"] += 1

    def _ranking(self, said: Statement) -> None:
        groups = [[self._fields.answer(name) for name in group] for group in said.value]
        names = [name for group in groups for name in group]
        if None in names or len(set(names)) < len(names) or len(names) < 2:
            self._left_out[f"rankings of {said.question} that do not name two answers or more, each once"] += 1
        else:
            self._orders.append((said.question, [[name for name in group if name] for group in groups if group]))

    def _text(self, said: Statement) -> None:
        about = said.about or self._fields.about(said.question)[0]
        self._texts[about].append(said.value)

    def _mark(self, said: Statement) -> None:
        about, _ = self._about(said)
        start, end = said.value["start"], said.value["end"]
        answer = "" if about is None else self._fields.answers[about]
        text = answer[start:end] if 0 <= start < end <= len(answer) else ""
        if text and said.value.get("text") in (None, text):
            letter = chr(ord("a") + self._fields.names.index(about or ""))
            self._marks.append({"answer": letter, **said.value, "text": text})
        else:
            self._left_out["marks of texts that are no answers"] += 1

    def _about(self, said: Statement) -> tuple[str | None, str]:
        name, question = self._fields.about(said.question)
        return said.about or name or self._only, question or said.question

    def _order(self, groups: list[list[str]]) -> list[dict[str, Any]]:
        ranks = {name: rank for rank, group in enumerate(groups) for name in group}
        names = [name for name in self._fields.answers if name in ranks]
        if len(names) > 2 and len(groups) == len(names):
            best = [name for group in groups for name in group]
            answers, sources = [self._fields.answers[name] for name in best], [self._source(name) for name in best]
            return [{"kind": "rankings", "answers": answers, "sources": sources}]
        pairs = [(first, second) for place, first in enumerate(names) for second in names[place + 1 :]]
        return [self._pair(first, second, ranks[second] - ranks[first]) for first, second in pairs]

    def _pair(self, first: str, second: str, gain: int) -> dict[str, Any]:
        a, b = self._fields.answers[first], self._fields.answers[second]
        if alike(a, b):
            raise DataError(
                f"{self._told.where}: the answers {first} and {second} are the same; expected different ones"
            )
        label, verdict = (0.5, "tie") if gain == 0 else (1.0, "a") if gain > 0 else (0.0, "b")
        told = {"preference": label, "verdict": verdict, "margin": self._margin if gain else 0.0}
        sources = {"source_a": self._source(first), "source_b": self._source(second)}
        return {"kind": "comparisons", "a": a, "b": b, **told, **sources}

    def _comments(self) -> list[dict[str, Any]]:
        """Of texts alone."""
        about = {name or self._only for name in self._texts}
        if None in about:
            self._left_out["comments on several answers, without a judgement"] += 1
        if self._marks and not about - {None}:
            self._left_out["marks without a judgement"] += len(self._marks)
        return [{"kind": "comments", **self._one(name)} for name in self._fields.answers if name in about]

    def _common(self, judgement: int, row: dict[str, Any]) -> dict[str, Any]:
        told = self._told
        texts = self._texts[None] + [
            text
            for name, texts in self._texts.items()
            if name and self._fields.answers[name] == row.get("answer")
            for text in texts
        ]
        if row["kind"] in ("comparisons", "rankings", "choices") and "answer" not in row:
            texts = [text for each in self._texts.values() for text in each]
        shared = {"judgement": judgement, "task": told.task, "annotator": told.annotator, "created": told.created}
        shared |= {"seconds": told.seconds, "comment": "\n".join(texts) or None, "gold": None}
        shared |= {"prompt": self._fields.prompt}
        shared |= {name: self._fields.others[name] for name in CARRIED if self._fields.others.get(name)}
        marks = {"marks": self._marks} if self._marks else {}
        return {"kind": row["kind"], **shared, **row, **marks}

    def _one(self, name: str) -> dict[str, Any]:
        return {"answer": self._fields.answers[name], "source": self._source(name)}

    def _shown(self, name: str | None) -> dict[str, Any]:
        """The answers that a choice is about."""
        if name is not None:
            return {"answer": self._fields.answers[name]}
        texts = [*self._fields.answers.values()]
        return dict(zip("ab", texts, strict=True)) if len(texts) == 2 else {"answers": texts}

    def _source(self, name: str) -> str:
        sources = self._fields.others.get("sources")
        fits = isinstance(sources, list) and len(sources) == len(self._fields.answers)
        return str(sources[self._fields.names.index(name)]) if fits and sources is not None else ""

    def _scale(self, question: str) -> dict[str, Any]:
        scales = self._fields.others.get("scales")
        scale = scales.get(question) if isinstance(scales, dict) else None
        numbers = isinstance(scale, list) and len(scale) == 2 and all(map(is_number, scale))
        return {"scale": scale} if numbers else {}
