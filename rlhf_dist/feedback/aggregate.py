"""Several annotators' judgements of the same answers become one, and each annotator is weighed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rlhf_dist.data.feedback import Judged
from rlhf_dist.feedback.agreement import Agreement, agreement
from rlhf_dist.feedback.crowd_bradley_terry import crowd_bradley_terry

CHOICES = {1.0: "a", 0.0: "b"}
CARELESS = 0.5
"""An annotator is suspected who is surely less than this far from guessing to the median annotator."""


@dataclass(frozen=True)
class Reliability:
    """How reliable one annotator's comparisons are."""

    name: str
    judgements: int
    reliability: float
    """Estimated probability of choosing the better answer, from 0 to 1; 0.5 is guessing."""
    careless: bool
    """Suspected of guessing, or of choosing the worse answer."""


@dataclass(frozen=True)
class Aggregated:
    """One judgement per question, and what is known of those who judged."""

    judged: list[Judged]
    annotators: list[Reliability]
    agreement: Agreement | None
    """None where nobody judged what another did."""


def aggregate(judged: Sequence[Judged], how: str) -> Aggregated:
    """Make one judgement of all that concern the same prompt and answers.

    Comparisons follow `how`, their margins become the mean; scores become their mean; rankings and comments stay as they are.
    What one annotator said of a question several times counts once, as its mean. Annotators' reliabilities come from Dawid and
    Skene's model whatever `how` is.

    Args:
        judged: raw judgements; those without an annotator, or of a question that one was asked, stay as they are.
        how: as `config.RewardModel.aggregate`.
    """
    comparisons = [_canonical(one) for one in judged if one.kind == "comparisons"]
    rest = [one for one in judged if one.kind != "comparisons"]
    if how == "none":
        return Aggregated([*comparisons, *rest], [], None)
    comparisons = _once_each(comparisons)
    scores = [_mean(group) for group in _groups(_once_each([one for one in rest if one.kind == "scores"]))]
    others = [one for one in rest if one.kind != "scores"]
    groups = _groups(comparisons)
    if all(len(group) == 1 for group in groups):
        return Aggregated([*comparisons, *scores, *others], [], None)
    votes = [one for one in comparisons if one.annotator]
    skilled, reliability = dawid_skene(votes)
    posterior = skilled if how == "dawid-skene" else bradley_terry(votes) if how == "bradley-terry" else {}
    merged = [_merged(group, posterior, majority=how == "majority") for group in groups]
    return Aggregated([*merged, *scores, *others], _told(votes, reliability), agreement(votes))


def share(group: Sequence[Judged], *, majority: bool = False) -> float:
    """Share of annotators who prefer the first answer, a tie counting half for either.

    With `majority` rounded; 0.5 if undecided, or if most say that it is a tie.
    """
    labels = [one.label for one in group]
    mean = float(np.mean(labels))
    if not majority:
        return mean
    return 0.5 if mean == 0.5 or 2 * labels.count(0.5) > len(labels) else float(mean > 0.5)


def dawid_skene(votes: Sequence[Judged]) -> tuple[dict[Any, float], dict[str, float]]:
    """Posterior of the first answer by Dawid and Skene (1979): EM over annotators' confusion matrices.

    Of the votes for a side alone: whether two answers are as good is not a class that people err about alike (see `_merged`).

    Returns:
        question to P(first answer is better), annotator to the probability of choosing the better one.
    """
    import pandas as pd
    from crowdkit.aggregation import DawidSkene

    rows = [(number, one) for number, one in enumerate(votes) if one.label in CHOICES]
    if not rows:
        return {}, {}  # ties only
    names = {_question(one): str(number) for number, one in reversed(rows)}
    table = pd.DataFrame(
        {
            "task": [names[_question(one)] for _, one in rows],
            "worker": [one.annotator for _, one in rows],
            "label": [CHOICES[one.label] for _, one in rows],
        }
    )
    found = DawidSkene(n_iter=100).fit_predict_proba(table).reindex(columns=["a", "b"], fill_value=0.0)["a"]
    posterior = {question: float(found[name]) for question, name in names.items()}
    return posterior, _expected_hits([one for _, one in rows], posterior)


def bradley_terry(votes: Sequence[Judged]) -> dict[Any, float]:
    """Posterior of the first answer by `crowd_bradley_terry`; answers to one prompt of a source share their strengths."""
    rows = [one for one in votes if one.label in CHOICES]
    if not rows:
        return {}  # ties only
    first, second = ([(one.source, one.task[1], one.answers[side]) for one in rows] for side in (0, 1))
    chosen, people = [one.label == 1.0 for one in rows], [one.annotator for one in rows]
    better, _ = crowd_bradley_terry(first, second, chosen, people)
    return {_question(one): float(p) for one, p in zip(rows, better, strict=True)}


def _expected_hits(votes: Sequence[Judged], posterior: dict[Any, float]) -> dict[str, float]:
    """Share of each annotator's choices that the posterior takes for right, shrunk by one judgement to guessing."""
    hits: dict[str, list[float]] = defaultdict(list)
    for one in votes:
        better = posterior[_question(one)]
        hits[one.annotator].append(better if one.label == 1.0 else 1 - better)
    return {name: (sum(found) + 0.5) / (len(found) + 1) for name, found in hits.items()}


def _told(votes: Sequence[Judged], reliability: dict[str, float]) -> list[Reliability]:
    """Annotators, the least reliable first, and who is suspected of carelessness."""
    if not reliability:
        return []
    counts = Counter(one.annotator for one in votes)
    decided = Counter(one.annotator for one in votes if one.label in CHOICES)  # a tie says nothing of who is right
    bound = 0.5 + CARELESS * (float(np.median([*reliability.values()])) - 0.5)
    told = []
    for name, value in sorted(reliability.items(), key=lambda item: item[1]):
        spread = 1.64 * np.sqrt(value * (1 - value) / decided[name])  # one-sided, 95 %
        told.append(Reliability(name, counts[name], value, careless=bool(value + spread < bound)))
    return told


def _canonical(one: Judged) -> Judged:
    """The same comparison with its answers in a fixed order, so that sides shown differently meet."""
    first, second = one.answers
    return one if first <= second else replace(one, answers=(second, first), label=1.0 - one.label)


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
    return [replace(_mean(group), annotator=group[0].annotator) for group in own.values()]


def _merged(group: Sequence[Judged], posterior: dict[Any, float], *, majority: bool) -> Judged:
    """One judgement of a group's; who was not named, or alone was asked, says what they said."""
    one = group[0]
    if len(group) == 1:
        return one
    if _question(one) not in posterior:
        return replace(_mean(group), label=share(group, majority=majority))
    # The posterior stands for each vote for a side; a tie stays half for either.
    believed = [posterior[_question(one)] if vote.label in CHOICES else vote.label for vote in group]
    return replace(_mean(group), label=float(np.mean(believed)))


def _mean(group: Sequence[Judged]) -> Judged:
    if len(group) == 1:
        return group[0]
    label, margin = (float(np.mean([getattr(one, name) for one in group])) for name in ("label", "margin"))
    return replace(group[0], label=label, margin=margin, annotator="")
