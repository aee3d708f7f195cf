"""Summaries: of a few sentences, one matters; say who did what and when, and nothing else."""

from random import Random

from rlhf_dist.tasks.scenarios.scenario import Scenario

PEOPLE = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Hugo")
DEEDS = (
    "bought a bicycle",
    "sold the old car",
    "won the race",
    "lost a key",
    "baked a cake",
    "painted the house",
    "found a dog",
    "missed the train",
)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
FILLERS = (
    "It rained all day.",
    "The streets were full.",
    "Nobody was surprised.",
    "The market was open.",
    "It was very warm.",
    "Birds sang in the park.",
    "The sun went down early.",
    "A band played outside.",
)


def _draw(rng: Random) -> tuple[str, str]:
    person, deed, day = rng.choice(PEOPLE), rng.choice(DEEDS), rng.choice(DAYS)
    sentences = [*rng.sample(FILLERS, 3), f"On {day} {person} {deed}."]
    rng.shuffle(sentences)
    return f"Text: {' '.join(sentences)}\nSummary:", f"{person} {deed} on {day}."


def _gold(right: str, answer: str) -> float:
    """A third each for who, what and when; less for every word that is not needed."""
    person, rest = right.split(" ", 1)
    deed, day = rest.removesuffix(".").split(" on ")
    found = [person in answer, deed in answer, day in answer]
    wrong = sum(other in answer for other in (*PEOPLE, *DEEDS, *DAYS) if other not in (person, deed, day))
    extra = max(0, len(answer.split()) - len(right.split()))
    return max(0.0, round(sum(found) / 3 - 0.2 * wrong - 0.05 * extra - 0.1 * (not answer.endswith(".")), 6))


def _spoil(answer: str, rng: Random) -> str:
    person, rest = answer.split(" ", 1)
    deed, day = rest.removesuffix(".").split(" on ")
    return rng.choice(
        (
            f"{person} {deed}.",
            f"{rng.choice(PEOPLE)} {deed} on {day}.",
            f"{person} {rng.choice(DEEDS)} on {day}.",
            f"{person} {deed} on {rng.choice(DAYS)}.",
            f"{rng.choice(FILLERS)} {answer}",
            f"{answer} {rng.choice(FILLERS)}",
            f"{rng.choice(FILLERS)}",
        )
    )


SUMMARISATION = Scenario("summarisation", _draw, _gold, _spoil)
