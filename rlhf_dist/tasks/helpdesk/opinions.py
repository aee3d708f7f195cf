"""Simulated people who score an answer or say in words what they think of it, and who rate such words."""

from collections.abc import Iterator
from random import Random

from rlhf_dist.tasks.helpdesk.annotators import two_answers
from rlhf_dist.tasks.helpdesk.gold import explain, gold_score
from rlhf_dist.tasks.helpdesk.grammar import case_of, train_prompts

SCORE_NOISE = 0.12
"""Standard deviation of a score about the gold score."""
OVERALL = ((0.85, "Very good."), (0.65, "Good."), (0.45, "It is okay."), (0.25, "Not good."), (-1.0, "Bad."))
SAYS_OVERALL = 0.6
PRAISE = {
    "greeting": "It says hello.",
    "empathy": "It is kind.",
    "first_step": "The first step is right.",
    "second_step": "The second step is right.",
    "closing": "It ends well.",
}
BLAME = {
    "greeting": "It does not say hello.",
    "empathy": "It is cold.",
    "first_step": "The first step is missing.",
    "second_step": "The second step is missing.",
    "closing": "It just stops.",
    "unsafe": "This is not safe!",
    "wrong_item": "It is about another thing.",
    "wrong_step": "A step is wrong.",
    "repeated": "It says the same again.",
    "rambling": "Nobody asked for that.",
    "garbled": "It makes no sense.",
    "unfinished": "It is cut off.",
}
RATINGS = (" 1", " 2", " 3", " 4", " 5")
RATING_PROMPT = "Comment: {comment}\nRating:"


def scores(n: int, seed: int) -> list[dict[str, object]]:
    """`n` scores from 0 to 1 of answers to train prompts, as {"prompt", "answer", "score"}: the gold score and noise."""
    rng = Random(f"scores {seed}")
    return [
        {"prompt": prompt, "answer": answer, "score": round(min(1.0, max(0.0, gold + rng.gauss(0, SCORE_NOISE))), 3)}
        for prompt, answer, gold in _answers(n, rng)
    ]


def comments(n: int, seed: int) -> list[dict[str, str]]:
    """`n` comments on answers to train prompts, as {"prompt", "answer", "comment"}."""
    rng = Random(f"comments {seed}")
    return [
        {"prompt": prompt, "answer": answer, "comment": comment(prompt, answer, rng)}
        for prompt, answer, _ in _answers(n, rng)
    ]


def ratings(n: int, seed: int) -> list[dict[str, str]]:
    """`n` comments with the rating that a person would read from them, as demonstrations for a comment judge."""
    rng = Random(f"ratings {seed}")
    found = []
    for prompt, answer, gold in _answers(n, rng):
        stars = RATINGS[min(4, max(0, round(4 * gold + rng.gauss(0, 0.3))))]
        found.append({"prompt": RATING_PROMPT.format(comment=comment(prompt, answer, rng)), "completion": stars})
    return found


def comment(prompt: str, answer: str, rng: Random) -> str:
    """What somebody says of an answer: often whether it is good, and one to three of the reasons, the grave ones first."""
    parts = explain(prompt, answer)
    blame = [BLAME[name] for name in BLAME if (parts[name] == 0 if name in PRAISE else parts[name] < 0)]
    praise = [text for name, text in PRAISE.items() if parts[name] > 0]
    gold = gold_score(prompt, answer)
    reasons = rng.sample(blame, min(len(blame), 2 if gold < 0.6 else 1)) + rng.sample(praise, min(len(praise), 1))
    overall = [next(text for bound, text in OVERALL if gold >= bound)] if rng.random() < SAYS_OVERALL else []
    return " ".join([*overall, *reasons]) or "It is okay."


def sayings() -> list[str]:
    """Every sentence of a comment, for the tokenizer."""
    return [*(text for _, text in OVERALL), *PRAISE.values(), *BLAME.values()]


def _answers(n: int, rng: Random) -> Iterator[tuple[str, str, float]]:
    prompts = train_prompts()
    for _ in range(n):
        prompt = rng.choice(prompts)
        answer, _ = two_answers(case_of(prompt), rng)
        yield prompt, answer, gold_score(prompt, answer)
