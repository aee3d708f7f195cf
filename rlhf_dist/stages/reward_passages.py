"""What a reward model's report says: how it predicts held-out judgements, who judged, and what it thinks of the policy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from rlhf_dist.data.feedback import Judged
from rlhf_dist.evaluation.reward_quality import Quality, quality, quality_by
from rlhf_dist.feedback.aggregate import FEW_VOTES, Aggregated
from rlhf_dist.run_folder.charts import curves, histogram
from rlhf_dist.run_folder.passages import Passage
from rlhf_dist.scoring.reward_file import RewardFile

ALIKE = 1e-6
"""Standard deviation up to which answers all score alike."""


@dataclass(frozen=True)
class Outcome:
    """What came of training a reward model."""

    judged: list[Judged]
    """Held-out judgements."""
    heads: list[list[np.ndarray[Any, Any]]]
    """Of each judgement's answers: rewards by all members and heads, unnormalised."""
    raw: list[Judged]
    """Comparisons of single annotators."""
    policy: np.ndarray[Any, Any] | None
    """Rewards of the policy's answers, [answers, members x heads]."""
    file: RewardFile
    learnt: int
    steps: int
    size: str

    @cached_property
    def rewards(self) -> list[list[float]]:
        """The ensemble's mean for each judgement's answers."""
        return [[float(each.mean()) for each in one] for one in self.heads]

    @cached_property
    def quality(self) -> Quality:
        """On all held-out judgements."""
        return quality(self.judged, self.rewards, compare_scale=self.file.compare_scale)

    @cached_property
    def disagreement(self) -> float:
        """Mean standard deviation over the ensemble, in units of the normalised reward.

        Each member and head less its own constant: its mean over the policy's answers or, without those, the held-out ones.
        """
        answers = np.array([each for one in self.heads for each in one])
        means = answers.mean(0) if self.policy is None else np.array(self.file.means)
        spread = [float((each - means).std()) for each in answers]
        return float(np.mean(spread)) / self.file.std

    def by_annotator(self) -> dict[str, Quality]:
        """On what each annotator said of the held-out questions."""
        known = {one.task: rewards for one, rewards in zip(self.judged, self.rewards, strict=True)}
        own = [(one, known[one.task]) for one in self.raw if one.task in known]
        flipped = [
            (one, known[task][::-1])
            for one in self.raw
            if one.task not in known and (task := (*one.task[:2], one.answers[::-1])) in known
        ]
        pairs = [*own, *flipped]
        return dict(
            quality_by(
                [one.annotator for one, _ in pairs],
                [one for one, _ in pairs],
                [rewards for _, rewards in pairs],
                compare_scale=self.file.compare_scale,
            )
        )

    def facts(self) -> dict[str, Any]:
        """For `summary.json`; what does not apply is null."""
        found = {
            "accuracy": self.quality.accuracy,
            "ece": self.quality.ece,
            "score_error": self.quality.score_error,
            "disagreement": self.disagreement if self.heads and len(self.heads[0][0]) > 1 else math.nan,
        }
        return {
            **{name: None if math.isnan(value) else value for name, value in found.items()},
            "judgements": self.learnt,
            "held_out": len(self.judged),
            # Of the policy's answers: without any, the file's 0 and 1 are no measurement.
            "reward_mean": None if self.policy is None else float(np.mean(self.file.means)),
            "reward_std": None if self.policy is None else self.file.std,
        }


def passages(outcome: Outcome, aggregated: Aggregated) -> list[Passage]:
    """All passages that apply."""
    found = [_quality_passage(outcome)]
    if outcome.quality.bins:
        found.append(_calibration_passage(outcome.quality))
    if aggregated.annotators:
        found.append(_annotator_passage(outcome, aggregated))
    if outcome.policy is not None:
        found.append(_policy_passage(outcome.policy, outcome.file))
    return found


def _quality_passage(outcome: Outcome) -> Passage:
    sources = quality_by(
        [f"{one.source} ({one.kind})" for one in outcome.judged],
        outcome.judged,
        outcome.rewards,
        compare_scale=outcome.file.compare_scale,
    )
    rows = tuple(_row(name, each) for name, each in [*sources.items(), ("all", outcome.quality)])
    text = (
        f"{outcome.learnt} judgements learnt, {len(outcome.judged)} held out by prompt. Accuracy: how often it prefers what "
        "people prefer (a ranking counts as its pairs). ECE: mean distance of predicted and observed preference. Score "
        "error: mean distance to scores, and to ratings read from comments, from 0 to 1."
    )
    return Passage(
        "Reward model on held-out judgements", text, ("source", "pairs", "accuracy", "ECE", "score error"), rows
    )


def _row(name: str, each: Quality) -> tuple[str, ...]:
    values = ("–" if math.isnan(value) else f"{value:.3f}" for value in (each.accuracy, each.ece, each.score_error))
    return (name, str(each.comparisons), *values)


def _calibration_passage(each: Quality) -> Passage:
    text = f"Predicted against observed preferences, in bins; on the line they are as sure as they should be. ECE {each.ece:.3f}."
    line = {"observed": ([one.predicted for one in each.bins], [one.observed for one in each.bins])}
    return Passage("Calibration", text, svg=curves("Calibration", line, diagonal=True))


def _annotator_passage(outcome: Outcome, aggregated: Aggregated) -> Passage:
    agreed, by = aggregated.agreement, outcome.by_annotator()
    kappas: dict[str, list[float]] = {one.name: [] for one in aggregated.annotators}
    for (first, second), value in (agreed.kappa if agreed else {}).items():
        for name in (first, second):
            kappas[name].append(value)
    rows = tuple(
        (
            one.name,
            str(one.judgements),
            f"{one.reliability:.2f}",
            f"{np.nanmean(kappas[one.name]):.2f}" if np.isfinite(kappas[one.name]).any() else "–",
            f"{by[one.name].accuracy:.2f}" if one.name in by else "–",
            "suspected careless" if one.careless else "",
        )
        for one in aggregated.annotators
    )
    alpha = ""
    if agreed:
        known = "not defined" if math.isnan(agreed.alpha) else f"{agreed.alpha:.2f}"
        alpha = f"Krippendorff's alpha is {known} on {agreed.shared} shared questions. "
    text = (
        f"{alpha}Reliability: probability of choosing the better answer, by Dawid and Skene's model; 0.5 is guessing, and so is "
        "a tie. Kappa: mean agreement with each other annotator, beyond chance."
    )
    if few := aggregated.barely_known:
        text += f" {', '.join(few)} judged fewer than {FEW_VOTES} shared questions: that reliability is rather assumed than seen."
    return Passage("Annotators", text, ("annotator", "judgements", "reliability", "kappa", "model agrees", ""), rows)


def _policy_passage(policy: np.ndarray[Any, Any], file: RewardFile) -> Passage:
    mean = float(np.mean(file.means))
    values: Sequence[float] = ((policy.mean(1) - mean) / file.std).tolist()
    text = (
        f"Normalised rewards of {len(values)} answers of the policy that PPO starts from. Before normalisation their mean is "
        f"{mean:.3f}, which is stored with the model, and "
    )
    if float(policy.mean(1).std()) > ALIKE:
        text += f"their standard deviation {file.std:.3f}, which is too."
    else:
        text += "all score alike, so that their scale is left as it is."
    return Passage("Rewards of the policy's answers", text, svg=histogram("Rewards of the policy's answers", values))
