"""Text classification: whether a review is content, in one word. One thing at most is more than middling."""

from random import Random

from rlhf_dist.tasks.scenarios.scenario import Scenario

LABELS = ("negative", "neutral", "positive")
THINGS = ("soup", "room", "film", "staff", "music", "view", "bed", "coffee", "service", "price")
SAYINGS = {
    -1: ("awful", "too cold", "a shame", "really bad", "not good", "boring"),
    0: ("as usual", "okay", "nothing special", "average"),
    1: ("lovely", "very good", "not bad at all", "a delight", "wonderful", "just right"),
}


def _draw(rng: Random) -> tuple[str, str]:
    things = rng.sample(THINGS, rng.randint(1, 2))
    mood = rng.choice((-1, 0, 1))
    moods = [mood, *[0 for _ in things[1:]]]
    rng.shuffle(moods)
    clauses = [f"the {thing} was {rng.choice(SAYINGS[each])}" for thing, each in zip(things, moods, strict=True)]
    text = " and ".join(clauses)
    label = LABELS[1 + mood]
    return f"Review: {text[0].upper()}{text[1:]}.\nLabel:", label


def _gold(right: str, answer: str) -> float:
    return float(answer == right)


def _spoil(answer: str, rng: Random) -> str:
    other = rng.choice([label for label in LABELS if label != answer])
    return rng.choice((other, other, f"{other} {answer}"))


CLASSIFICATION = Scenario("classification", _draw, _gold, _spoil)
