"""What a small embedded task is: prompts with one right answer each, and a judge that knows how near an answer comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from math import exp
from pathlib import Path
from random import Random

from rlhf_dist.errors import DataError
from rlhf_dist.files import write_json_lines

PROMPTS = 6000
HELD_OUT = 0.1
SHARPNESS = 12.0
"""Bradley and Terry's scale of the simulated people, as the help desk's."""
SLIP = 0.45
"""Probability that a demonstration is not quite right."""


@dataclass(frozen=True)
class Scenario:
    """A task by its rule; everything else follows from it, deterministically."""

    name: str
    draw: Callable[[Random], tuple[str, str]]
    """A random prompt, and its right answer without the space before it."""
    gold: Callable[[str, str], float]
    """How good an answer is, from 0 to 1, by (right answer, answer)."""
    spoil: Callable[[str, Random], str]
    """A worse version of a right answer."""

    @cached_property
    def answers(self) -> dict[str, str]:
        """Every prompt of the task, with its right answer."""
        rng = Random(f"{self.name} prompts")
        found: dict[str, str] = {}
        for _ in range(20 * PROMPTS):
            prompt, answer = self.draw(rng)
            found.setdefault(prompt, answer)
            if len(found) == PROMPTS:
                break
        return found

    @cached_property
    def split(self) -> tuple[list[str], list[str]]:
        """Prompts as (train, held out), in a fixed shuffled order."""
        ordered = sorted(self.answers, key=lambda prompt: blake2b(prompt.encode(), digest_size=8).digest())
        kept = round(HELD_OUT * len(ordered))
        return ordered[kept:], ordered[:kept]

    def judge(self, prompt: str, answer: str) -> float:
        """The gold score of an answer.

        Raises:
            DataError: the prompt is not one of the task's.
        """
        right = self.answers.get(prompt)
        if right is None:
            raise DataError(f"not a prompt of the task {self.name}: {prompt!r}")
        return self.gold(right, answer.strip())

    def demonstrations(self, n: int, seed: int) -> Iterator[dict[str, str]]:
        """Answers of people who slip now and then."""
        rng = Random(f"{self.name} demonstrations {seed}")
        for _ in range(n):
            prompt = rng.choice(self.split[0])
            yield {"prompt": prompt, "completion": f" {self._said(prompt, rng, slip=SLIP)}"}

    def comparisons(self, n: int, seed: int) -> Iterator[dict[str, str]]:
        """Two answers to a prompt, of which people prefer one as Bradley and Terry say."""
        rng = Random(f"{self.name} comparisons {seed}")
        while n > 0:
            prompt = rng.choice(self.split[0])
            a, b = (self._said(prompt, rng, slip=0.7) for _ in range(2))
            if a == b:
                continue
            gap = self.judge(prompt, a) - self.judge(prompt, b)
            chosen, rejected = (a, b) if rng.random() < 1 / (1 + exp(-SHARPNESS * gap)) else (b, a)
            yield {"prompt": prompt, "chosen": f" {chosen}", "rejected": f" {rejected}"}
            n -= 1

    def write(
        self, folder: Path, *, prompts: int, held_out: int, demonstrations: int, comparisons: int, seed: int
    ) -> None:
        """Write `prompts` and `held_out` (with targets), `demonstrations` and `preferences`, as JSON lines.

        Raises:
            DataError: more prompts are asked for than there are.
        """
        train, kept = self.split
        for name, wanted, there in (("prompts", prompts, train), ("held_out", held_out, kept)):
            if wanted > len(there):
                raise DataError(f"task {self.name}: {name} is {wanted}, expected at most {len(there)}")
        folder.mkdir(parents=True, exist_ok=True)
        files = {
            "prompts": ({"prompt": prompt, "target": self.answers[prompt]} for prompt in train[:prompts]),
            "held_out": ({"prompt": prompt, "target": self.answers[prompt]} for prompt in kept[:held_out]),
            "demonstrations": self.demonstrations(demonstrations, seed),
            "preferences": self.comparisons(comparisons, seed),
        }
        for name, rows in files.items():
            write_json_lines(folder / f"{name}.jsonl", rows)

    def texts(self) -> list[str]:
        """Everything that may be said, for the tokenizer."""
        rng = Random(f"{self.name} texts")
        said = [*self.answers.items()]
        return [
            *(prompt for prompt, _ in said),
            *(f" {answer}" for _, answer in said),
            *(f" {self.spoil(answer, rng)}" for _, answer in said[:1000]),
        ]

    def _said(self, prompt: str, rng: Random, *, slip: float) -> str:
        right = self.answers[prompt]
        return self.spoil(right, rng) if rng.random() < slip else right


def word_distance(first: str, second: str) -> int:
    """Words to insert, delete or replace to get from one text to the other (Levenshtein 1966)."""
    a, b = first.split(), second.split()
    row = list(range(len(b) + 1))
    for i, word in enumerate(a, start=1):
        above, row[0] = row[0], i
        for j, other in enumerate(b, start=1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (word != other))
    return row[-1]


def nearness(right: str, answer: str) -> float:
    """1 for the right words in their order, less for each that is missing, wrong or too many, at least 0."""
    return max(0.0, 1.0 - word_distance(right, answer) / max(1, len(right.split())))


def jumbled(answer: str, rng: Random) -> str:
    """One or two slips: a word left out, said twice, or in a neighbour's place."""
    words = answer.split()
    for _ in range(rng.randint(1, 2)):
        place = rng.randrange(len(words))
        kind = rng.randrange(3)
        if kind == 0 and len(words) > 1:
            del words[place]
        elif kind == 1:
            words.insert(place, words[place])
        else:
            other = min(place + 1, len(words) - 1)
            words[place], words[other] = words[other], words[place]
    return " ".join(words)
