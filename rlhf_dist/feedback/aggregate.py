"""Several annotators' judgements of the same answers become one, and each annotator is weighed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np

from rlhf_dist.data.feedback import Judged
from rlhf_dist.feedback.agreement import Agreement, agreement
from rlhf_dist.feedback.crowd_bradley_terry import crowd_bradley_terry
from rlhf_dist.feedback.dawid_skene import RIGHT, WRONG, dawid_skene_arrays

SIDES = (1.0, 0.0)
"""Labels that are a choice."""
CARELESS = 0.5
"""An annotator is suspected who is surely less than this far from guessing to the median annotator."""
FEW_VOTES = 20
"""Shared comparisons below which a reliability says little: its standard error is above 0.09 at 0.8."""


@dataclass(frozen=True)
class Reliability:
    """How reliable one annotator's comparisons are."""

    name: str
    judgements: int
    """Comparisons, each question once."""
    shared: int
    """Of questions that others were asked too, by which alone a reliability can be seen."""
    reliability: float
    """Estimated probability of choosing the better answer, from 0 to 1; 0.5 is guessing, and so is a tie."""
    careless: bool
    """Suspected of guessing, of choosing the worse answer, or of choosing none."""


@dataclass(frozen=True)
class Aggregated:
    """One judgement per question, and what is known of those who judged."""

    judged: list[Judged]
    annotators: list[Reliability]
    """The least reliable first; empty where nobody judged what another did."""
    agreement: Agreement | None
    """None where nobody judged what another did."""

    @property
    def barely_known(self) -> list[str]:
        """Annotators whose reliability is rather assumed than seen."""
        return [one.name for one in self.annotators if one.shared < FEW_VOTES]


def aggregate(judged: Sequence[Judged], how: str) -> Aggregated:
    """Make one judgement of all that concern the same prompt and answers.

    Comparisons follow `how`, scores become their mean, rankings and comments stay as they are. A comparison's margin becomes the
    mean margin of those who chose the side that its label is on; of a tie it is 0. What one annotator said of a question several
    times counts once, as its mean. Agreement, and reliabilities by Dawid and Skene's model, are the same whatever `how` is, and
    nothing depends on the order of the judgements, or on which answer stands first.

    Args:
        judged: raw judgements; those without an annotator stay as they are, and so do those of a question that one was asked,
            unless `bradley-terry` knows its answers from other questions.
        how: as `config.RewardModel.aggregate`.
    """
    comparisons = [_canonical(one) for one in judged if one.kind == "comparisons"]
    scores = [one for one in judged if one.kind == "scores"]
    others = [one for one in judged if one.kind not in ("comparisons", "scores")]
    once = _once_each(comparisons)
    votes = _Votes.of([one for one in once if one.annotator])
    agreed = agreement(votes.task, votes.worker, votes.code, votes.names) if votes.names else None
    skilled, skill = dawid_skene_arrays(votes.task, votes.worker, votes.label)
    annotators = told(votes.names, votes.task, votes.worker, votes.label, skill) if agreed else []
    if how == "none":
        return Aggregated([*comparisons, *scores, *others], annotators, agreed)
    posterior: dict[Any, float] = {}
    if how == "dawid-skene":
        posterior = dict(zip(votes.questions, skilled.tolist(), strict=True))
    elif how == "bradley-terry":
        posterior = bradley_terry([one for one in once if one.annotator])
    merged = [_merged(group, posterior, how) for group in _groups(once)]
    means = [_one(group, share(group)) for group in _groups(_once_each(scores))]
    return Aggregated([*merged, *means, *others], annotators, agreed)


def share(group: Sequence[Judged], *, majority: bool = False) -> float:
    """Share of annotators who prefer the first answer, a tie counting half for either.

    With `majority` rounded; 0.5 if undecided, or if most say that it is a tie.
    """
    mean = fmean(one.label for one in group)
    if not majority:
        return mean
    ties = sum(_side(one.label) == 0 for one in group)
    return 0.5 if 2 * ties > len(group) else 0.5 + _side(mean) / 2


def bradley_terry(votes: Sequence[Judged]) -> dict[Any, float]:
    """Posterior of the first answer by `crowd_bradley_terry`; answers to one prompt of a source share their strengths."""
    rows = sorted((one for one in votes if one.label in SIDES), key=lambda one: (_question(one), one.annotator))
    if not rows:
        return {}  # ties only
    first, second = ([(one.source, one.task[1], one.answers[side]) for one in rows] for side in (0, 1))
    chosen, people = [one.label == 1.0 for one in rows], [one.annotator for one in rows]
    better, _ = crowd_bradley_terry(first, second, chosen, people)
    return {_question(one): float(p) for one, p in zip(rows, better, strict=True)}


def told(
    names: Sequence[str],
    task: np.ndarray[Any, Any],
    worker: np.ndarray[Any, Any],
    label: np.ndarray[Any, Any],
    skill: np.ndarray[Any, Any],
) -> list[Reliability]:
    """Annotators, the least reliable first, and who is suspected of carelessness.

    Args:
        names: of the annotators.
        task: number of each vote's question, from 0. [votes]
        worker: number of each vote's annotator, from 0. [votes]
        label: P(first answer is better) by each vote. [votes]
        skill: reliabilities by `dawid_skene_arrays`. [annotators]
    """
    count, shared = np.bincount(worker), np.bincount(worker, np.bincount(task)[task] > 1)
    choices = np.bincount(worker, np.abs(2 * label - 1))
    hits = (
        skill * (choices + RIGHT + WRONG) - RIGHT + (count - choices) / 2
    )  # who never chooses knows no more than a coin
    reliability = (hits + RIGHT) / (count + RIGHT + WRONG)
    seen = (hits + 0.5) / (count + 1)  # without what was granted beforehand
    spread = 1.64 * np.sqrt(seen * (1 - seen) / count)  # one-sided, 95 %
    careless = seen + spread < 0.5 + CARELESS * (np.median(seen) - 0.5)
    order = np.argsort(reliability, kind="stable")
    return [
        Reliability(names[n], int(count[n]), int(shared[n]), float(reliability[n]), bool(careless[n])) for n in order
    ]


@dataclass(frozen=True)
class _Votes:
    """Votes as numbers, in an order of their own."""

    questions: list[Any]
    names: list[str]
    task: np.ndarray[Any, Any]
    worker: np.ndarray[Any, Any]
    label: np.ndarray[Any, Any]

    @classmethod
    def of(cls, votes: Sequence[Judged]) -> _Votes:
        questions = sorted({_question(one) for one in votes})
        names = sorted({one.annotator for one in votes})
        task = {question: number for number, question in enumerate(questions)}
        worker = {name: number for number, name in enumerate(names)}
        return cls(
            questions,
            names,
            np.array([task[_question(one)] for one in votes], dtype=np.int64),
            np.array([worker[one.annotator] for one in votes], dtype=np.int64),
            np.array([one.label for one in votes], dtype=np.float64),
        )

    @property
    def code(self) -> np.ndarray[Any, Any]:
        """0 for the second answer, 1 for a tie, 2 for the first."""
        return np.array([_side(label) + 1 for label in self.label], dtype=np.int64)


def _canonical(one: Judged) -> Judged:
    """The same comparison with its answers in a fixed order, so that sides shown differently meet."""
    first, second = one.answers
    return one if first <= second else replace(one, answers=(second, first), label=1.0 - one.label)


def _side(label: float) -> int:
    """1 for the first answer, -1 for the second, 0 for a tie, whatever sums of floats have added to it."""
    return 0 if math.isclose(label, 0.5, abs_tol=1e-9) else 1 if label > 0.5 else -1


def _question(one: Judged) -> Any:
    """What several may be asked: the same answers in one source."""
    return one.task, one.source


def _groups(judged: Sequence[Judged]) -> list[list[Judged]]:
    groups: dict[Any, list[Judged]] = defaultdict(list)
    for number, one in enumerate(judged):
        groups[_question(one) if one.annotator else number].append(one)
    return [*groups.values()]


def _once_each(judged: Sequence[Judged]) -> list[Judged]:
    """Judgements in which no annotator has two voices on a question: repeats become their mean."""
    own: dict[Any, list[Judged]] = defaultdict(list)
    for number, one in enumerate(judged):
        own[(_question(one), one.annotator) if one.annotator else number].append(one)
    return [replace(_one(group, share(group)), annotator=group[0].annotator) for group in own.values()]


def _merged(group: Sequence[Judged], posterior: Mapping[Any, float], how: str) -> Judged:
    """One judgement of a group's; who was not named says what they said."""
    one = group[0]
    if not one.annotator or (len(group) == 1 and how != "bradley-terry"):
        return one
    # A posterior stands for each vote for a side; a tie stays half for either.
    known = posterior.get(_question(one))
    believed = [vote if known is None or vote.label not in SIDES else replace(vote, label=known) for vote in group]
    return _one(group, share(believed, majority=how == "majority"))


def _one(group: Sequence[Judged], label: float) -> Judged:
    """One judgement with a label of its own, and the mean margin of those on its side: the others' is for the other."""
    if len(group) == 1 and label == group[0].label:
        return group[0]
    margins = [one.margin for one in group if _side(label) and _side(one.label) == _side(label)]
    return replace(group[0], label=label, margin=fmean(margins) if margins else 0.0, annotator="")
