"""Arithmetic: a sum with a product in it, worked out step by step; only the number at the end is checked.

Those who demonstrate it often forget that the product comes first. No reward model is needed to learn better.
"""

from random import Random

from rlhf_dist.tasks.scenarios.scenario import Scenario
from rlhf_dist.verifiers.numbers import number_in


def _draw(rng: Random) -> tuple[str, str]:
    a, b, c, sign = rng.randint(1, 9), rng.randint(1, 9), rng.randint(2, 9), rng.choice("+-")
    return f"{a} {sign} {b} * {c} =", f"{b} * {c} = {b * c} so {a} {sign} {b * c} = {_sum(a, sign, b * c)}"


def _sum(a: int, sign: str, b: int) -> int:
    return a + b if sign == "+" else a - b


def _gold(right: str, answer: str) -> float:
    return float(number_in(answer) == number_in(right))


def _spoil(answer: str, rng: Random) -> str:
    """From left to right, as if all operations were alike; the result is never the right one."""
    b, _, c, *_, a, sign, _, _, _ = answer.split()
    first = _sum(int(a), sign, int(b))
    return f"{a} {sign} {b} = {first} so {first} * {c} = {first * int(c)}"


ARITHMETIC = Scenario("arithmetic", _draw, _gold, _spoil)
