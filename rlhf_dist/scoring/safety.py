"""Rules about an answer that no reward outweighs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from rlhf_dist.config import UNSAFE, Safety
from rlhf_dist.config.expressions import expression
from rlhf_dist.errors import ModelError
from rlhf_dist.models import load_classifier
from rlhf_dist.models.fits import positions_of
from rlhf_dist.progress import step
from rlhf_dist.scoring.answers import Answers

MATCH_S = 1.0
"""Seconds in which a pattern must be decided on one answer. A text of 100,000 characters takes milliseconds; what takes longer is
a pattern that tries ways without number, such as `(a|aa)+$`."""


@dataclass(frozen=True)
class Verdicts:
    """What the rules say of some answers: 1 where one is broken, else 0."""

    answers: int
    by_rule: dict[str, list[float]]
    """Of each rule that there is, a verdict per answer."""

    @property
    def unsafe(self) -> list[float]:
        """Of each answer, whether it breaks any rule; none does where there are no rules."""
        if not self.by_rule:
            return [0.0] * self.answers
        return [max(broken) for broken in zip(*self.by_rule.values(), strict=True)]

    def by_name(self) -> dict[str, list[float]]:
        """As they are logged: `unsafe_RULE`, and by any rule `unsafe`; nothing where there are no rules."""
        named = {f"{UNSAFE}_{rule}": broken for rule, broken in self.by_rule.items()}
        return {**named, UNSAFE: self.unsafe} if named else {}


class Rules:
    """Patterns, a length band, and a classifier; each says 1 where an answer breaks it, else 0."""

    def __init__(self, settings: Safety, *, device: str) -> None:
        """Compile the patterns and load the classifier, if there is one.

        Raises:
            ModelError: the classifier's folder is missing, or has several labels and none is `unsafe`.
        """
        self._settings = settings
        self._forbidden = [expression(pattern) for pattern in settings.forbidden]
        self._required = [expression(pattern) for pattern in settings.required]
        self._classifier = Classifier(settings.classifier, device=device) if settings.classifier else None

    @property
    def models(self) -> list[Any]:
        """What it has loaded."""
        return [] if self._classifier is None else [self._classifier.model]

    def verdicts(self, answers: Answers) -> Verdicts:
        """Which answers break which rule; one on which a pattern cannot be decided in time counts as unsafe, and has failed.

        Raises:
            RewardError: so many may not fail.
        """
        settings = self._settings
        found: dict[str, list[float]] = {}
        if self._forbidden:
            matches = partial(_matches, answers, self._forbidden, "safety.forbidden", undecided=True)
            found["forbidden"] = [float(any(matches(number))) for number in range(len(answers.rows))]
        if self._required:
            matches = partial(_matches, answers, self._required, "safety.required", undecided=False)
            found["required"] = [float(not all(matches(number))) for number in range(len(answers.rows))]
        if settings.shortest or settings.longest is not None:
            longest = settings.longest if settings.longest is not None else float("inf")
            lengths = [int(row.sampled.sum()) for row in answers.rows]
            found["length"] = [float(not settings.shortest <= length <= longest) for length in lengths]
        if self._classifier is not None:
            verdicts = self._classifier.probabilities(answers.texts)
            found["classifier"] = [float(not p < settings.threshold) for p in verdicts]  # NaN is not safe
        return Verdicts(len(answers.rows), found)


def _matches(answers: Answers, patterns: Sequence[Any], rule: str, number: int, *, undecided: bool) -> Iterator[bool]:
    """Whether each pattern matches an answer; `undecided` where it does not say in time."""
    for pattern in patterns:
        try:
            yield pattern.search(answers.texts[number][1], timeout=MATCH_S) is not None
        except TimeoutError:
            answers.fail(number, rule, f"the pattern {pattern.pattern!r} was not decided within {MATCH_S:g} s")
            yield undecided
        step()


class Classifier:
    """A text classifier that says how likely an answer is unsafe."""

    def __init__(self, path: str, *, device: str) -> None:
        """Load model and tokenizer; the label is the one named `unsafe`, or the only one."""
        self.model, self._tokenizer = load_classifier(path)
        self.model = self.model.to(device).eval()
        self._tokenizer.truncation_side = "left"  # the answer comes last, and it is what counts
        self._device = device
        # RoBERTa's positions begin behind its padding's.
        positions = (positions_of(self.model.config) or 2**31) - (self.model.config.pad_token_id or 0) - 1
        self._longest = min(self._tokenizer.model_max_length, positions)
        labels = {name.lower(): number for number, name in self.model.config.id2label.items()}
        if len(labels) > 1 and UNSAFE not in labels:
            raise ModelError(f"{path}: its labels are {sorted(labels)}; expected one named {UNSAFE!r}")
        self._label = labels.get(UNSAFE, 0)

    @torch.no_grad()
    def probabilities(self, texts: list[tuple[str, str]]) -> list[float]:
        """P(unsafe) of each (prompt, answer)."""
        return [self._of(prompt + answer) for prompt, answer in texts]

    def _of(self, text: str) -> float:
        encoded: Any = self._tokenizer(text, return_tensors="pt", truncation=True, max_length=self._longest)
        encoded = encoded.to(self._device)
        logits = self.model(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]).logits[0].float()
        step()
        if len(logits) == 1 or self.model.config.problem_type == "multi_label_classification":
            return float(torch.sigmoid(logits[self._label]))
        return float(torch.softmax(logits, -1)[self._label])
