"""Arithmetic: small sums and products, whose answers are checked as numbers. No reward model is needed."""

from random import Random

from rlhf_dist.tasks.scenarios.scenario import Scenario
from rlhf_dist.verifiers.numbers import number_in


def _draw(rng: Random) -> tuple[str, str]:
    a, b, c = (rng.randint(0, 6) for _ in range(3))
    first, second = rng.choice(("+ +", "+ -", "- +", "+ *", "- *")).split()
    tail = b * c if second == "*" else b
    value = a + tail if first == "+" else a - tail
    value += {"+": c, "-": -c}.get(second, 0)
    return f"{a} {first} {b} {second} {c} =", str(value)


def _gold(right: str, answer: str) -> float:
    return float(number_in(answer) == number_in(right))


def _spoil(answer: str, rng: Random) -> str:
    """A result nearby."""
    return str(int(answer) + rng.choice((-3, -2, -1, 1, 2, 3)))


ARITHMETIC = Scenario("arithmetic", _draw, _gold, _spoil)
