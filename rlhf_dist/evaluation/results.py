"""What is said of several policies' answers to the same prompts: means with intervals, wins, diversity, fluency, measures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rlhf_dist.config import GOLD, UNSAFE, EvaluateConfig
from rlhf_dist.evaluation import texts
from rlhf_dist.evaluation.intervals import Interval, WinRate, interval, rate_interval, win_rate
from rlhf_dist.evaluation.length_bias import LengthBias, length_bias


@dataclass(frozen=True)
class ScoredAnswers:
    """One policy's answers with all that was measured of each."""

    name: str
    answers: list[str]
    lengths: list[int]
    kl: list[float] | None
    """Log-prob of each answer under the policy less that under the reference, both as it was sampled, nats; None where they do
    not compare."""
    plain_log_probs: list[float]
    """Of each answer under the reference at temperature 1, whatever it was sampled at; sum over its tokens, nats."""
    rewards: list[float]
    parts: dict[str, list[float]]


@dataclass(frozen=True)
class Result:
    """What is said of one policy."""

    name: str
    means: dict[str, Interval]
    """With an interval over prompts: reward, gold, KL, length, unsafe."""
    figures: dict[str, float]
    """Of all answers together: distinct-n, self-BLEU, perplexity, BLEU and so on."""
    wins: dict[str, WinRate]
    """Over the first policy, by gold and by reward."""
    lengths: dict[str, LengthBias]
    """What each of these wins owes to length, in tokens."""


def _is_whole(one: ScoredAnswers, part: str) -> bool:
    """Whether there is such a score of every answer: a mean over those that a function scores compares with no other's."""
    return part in one.parts and bool(np.isfinite(one.parts[part]).all())


def result_of(one: ScoredAnswers, first: ScoredAnswers, targets: Sequence[str], config: EvaluateConfig) -> Result:
    """Everything that is said of one policy; values of several answers to a prompt are averaged before intervals are taken."""

    def per_prompt(values: Sequence[float]) -> list[float]:
        return [float(each) for each in np.reshape(values, (-1, config.samples)).mean(1)]

    means = {"length": [float(n) for n in one.lengths]}
    if one.kl is not None:
        means["kl"] = one.kl
    if any(reward.weight for reward in config.reward):  # else there is no sum, and all zeros would be ties
        means["reward"] = one.rewards
    means |= {name: one.parts[name] for name in (GOLD, UNSAFE) if _is_whole(one, name)}
    wins, lengths = {}, {}
    for name in (GOLD, "reward"):
        if name in means and one is not first and (name != GOLD or _is_whole(first, GOLD)):
            against = first.parts[name] if name == GOLD else first.rewards
            labels = [float(np.sign(a - b) + 1) / 2 for a, b in zip(means[name], against, strict=True)]
            wins[name] = win_rate(per_prompt(labels))
            lengths[name] = length_bias(per_prompt(one.lengths), per_prompt(first.lengths), per_prompt(labels))
    figures = {
        "distinct_1": texts.distinct(one.answers, 1),
        "distinct_2": texts.distinct(one.answers, 2),
        "self_bleu": texts.self_bleu(one.answers),
        "perplexity": _perplexity(one),
        **_against_targets(one.answers, targets, config),
    }
    bounded = {
        name: rate_interval(per_prompt(values)) if name == UNSAFE else interval(per_prompt(values), seed=config.seed)
        for name, values in means.items()
    }
    return Result(one.name, bounded, figures, wins, lengths)


def _perplexity(one: ScoredAnswers) -> float:
    """Exponential of the reference's mean negative log-prob per token; NaN where no answer has a token."""
    tokens = sum(one.lengths)
    with np.errstate(over="ignore"):
        return float(np.exp(-sum(one.plain_log_probs) / tokens)) if tokens else math.nan


def _against_targets(answers: Sequence[str], targets: Sequence[str], config: EvaluateConfig) -> dict[str, float]:
    wanted = [target for target in targets for _ in range(config.samples)]
    said = [answer.strip() for answer in answers]
    found: dict[str, float] = {}
    for measure in config.measures:
        value = getattr(texts, measure)(said, [target.strip() for target in wanted])
        found |= value if isinstance(value, dict) else {measure: value}
    return found


HEADS = {
    "gold": "gold",
    "reward": "reward",
    "kl": "KL, nats",
    "length": "tokens",
    "unsafe": "unsafe",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "self_bleu": "self-BLEU",
    "perplexity": "perplexity",
    "bleu": "BLEU",
    "chrf": "chrF",
    "rouge-1": "ROUGE-1",
    "rouge-2": "ROUGE-2",
    "rouge-l": "ROUGE-L",
    "accuracy": "accuracy",
}


def table(results: Sequence[Result]) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Column names, and a row for each policy."""
    names = [name for name in HEADS if name == "kl" or name in results[0].means or name in results[0].figures]
    rivals = [name for name in (GOLD, "reward") if any(name in result.wins for result in results)]
    judged = [f"{what} by {name}" for what in ("wins", "wins at equal length", "the longer wins") for name in rivals]
    head = ("policy", *judged, *(HEADS[name] for name in names))
    rows = []
    for result in results:
        wins = [_win(result.wins[name]) if name in result.wins else "–" for name in rivals]
        bias = [result.lengths.get(name) for name in rivals]
        controlled = [_rate(each.controlled) if each else "–" for each in bias]
        longer = [_rate(each.longer_wins) if each else "–" for each in bias]
        rows.append((result.name, *wins, *controlled, *longer, *(_cell(result, name) for name in names)))
    return head, tuple(rows)


def _win(won: WinRate) -> str:
    return _rate(won.rate) + ("" if won.decided else ", open")


def _rate(rate: Interval) -> str:
    return "–" if math.isnan(rate.mean) else f"{rate.mean:.1%} [{rate.low:.1%}, {rate.high:.1%}]"


def _cell(result: Result, name: str) -> str:
    if name in result.figures:
        return f"{result.figures[name]:.3g}" if math.isfinite(result.figures[name]) else "–"
    mean = result.means.get(name)
    if mean is None:
        return "–"
    return f"{mean.mean:.3g}" + ("" if math.isnan(mean.low) else f" [{mean.low:.3g}, {mean.high:.3g}]")


def plain(result: Result) -> dict[str, Any]:
    """For JSON."""
    means: dict[str, Any] = {"kl": None, **{name: asdict(each) for name, each in result.means.items()}}
    wins = {name: _plain_win(won, result.lengths[name]) for name, won in result.wins.items()}
    return {**means, **result.figures, "win_rate": wins}


def _plain_win(won: WinRate, bias: LengthBias) -> dict[str, Any]:
    rate = {"rate": won.rate.mean, "low": won.rate.low, "high": won.rate.high, "decided": won.decided}
    counts = {"wins": won.wins, "ties": won.ties, "losses": won.losses}
    return {**rate, **counts, "length_bias": asdict(bias)}
