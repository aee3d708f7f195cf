"""Simulated people: agents whose recorded answers are of mixed quality, and annotators who compare two answers."""

from collections.abc import Callable
from dataclasses import dataclass
from math import exp
from random import Random

from rlhf_dist.tasks.helpdesk.gold import gold_score
from rlhf_dist.tasks.helpdesk.grammar import (
    ITEMS,
    PROBLEMS,
    STEPS,
    Case,
    Sentence,
    case_of,
    closings,
    empathy,
    fixes,
    greetings,
    rambles,
    train_prompts,
    unsafe,
)


@dataclass(frozen=True)
class Habits:
    """With which probability an agent gives each good part, and makes each mistake."""

    part: float
    unsafe: float
    ramble: float
    wrong: float


AVERAGE = Habits(part=0.6, unsafe=0.16, ramble=0.2, wrong=0.15)
CAREFUL = Habits(part=0.9, unsafe=0.04, ramble=0.06, wrong=0.06)
PERFECT = Habits(part=1.0, unsafe=0.0, ramble=0.0, wrong=0.0)

Draft = list[tuple[float, str | None]]  # one (place in the answer, sentence) per part; None where the part is missing

SHARPNESS = 12.0  # Bradley-Terry: a gold difference of 0.1 is labelled rightly in 77 % of the pairs


def demonstrations(n: int, seed: int) -> list[dict[str, str]]:
    """`n` answers of average agents to train prompts, as {"prompt", "completion"}; mean gold score about 0.5."""
    rng, prompts = Random(f"demonstrations {seed}"), train_prompts()
    drawn = (rng.choice(prompts) for _ in range(n))
    return [{"prompt": prompt, "completion": joined(sentences(case_of(prompt), AVERAGE, rng))} for prompt in drawn]


def preferences(n: int, seed: int) -> list[dict[str, str]]:
    """`n` comparisons of two answers to the same train prompt, as {"prompt", "chosen", "rejected"}.

    The answers range from perfect to broken, wider than the demonstrations, so that a reward model also knows what a
    policy may stumble into. Half of the pairs differ in one part only, which says what the preference was about.
    Labels follow Bradley and Terry (1952): P(A over B) = sigmoid(k (gold(A) - gold(B))).
    """
    rng, prompts = Random(f"preferences {seed}"), train_prompts()
    pairs: list[dict[str, str]] = []
    while len(pairs) < n:
        prompt = rng.choice(prompts)
        a, b = two_answers(case_of(prompt), rng)
        margin = gold_score(prompt, a) - gold_score(prompt, b)
        if margin == 0:
            continue
        chosen, rejected = (a, b) if rng.random() < 1 / (1 + exp(-SHARPNESS * margin)) else (b, a)
        pairs.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return pairs


def sentences(case: Case, habits: Habits, rng: Random) -> list[str]:
    """The sentences of one answer by an agent with these habits; at least one."""
    return _in_order(_draft(case, habits, rng)) or [rng.choice(greetings()).text]


def joined(sentences: list[str]) -> str:
    """The text of an answer as it follows the prompt: every sentence after a space."""
    return "".join(f" {sentence}" for sentence in sentences)


def _draft(case: Case, habits: Habits, rng: Random) -> Draft:
    item = _or_another(case.item, ITEMS, habits, rng)
    wanted = [_or_another(step, STEPS, habits, rng) for step in PROBLEMS[case.problem].steps]
    steps = tuple(dict.fromkeys(step for step in wanted if rng.random() < habits.part))
    places = [0.5, 1.5, 2.5, 3.5]
    parts: list[tuple[float, float, list[Sentence]]] = [
        (habits.part, 0, greetings()),
        (habits.part, 1, empathy(item)),
        (1.0, 2, fixes(*steps) if steps else []),
        (habits.part, 3, closings()),
        (habits.unsafe, rng.choice(places), unsafe(case.item)),
        (habits.ramble, rng.choice(places), rambles()),
    ]
    return [
        (place, rng.choice(variants).text if variants and rng.random() < probability else None)
        for probability, place, variants in parts
    ]


def _in_order(draft: Draft) -> list[str]:
    return [text for _, text in sorted(draft, key=lambda part: part[0]) if text]


def _or_another(right: str, choices: tuple[str, ...], habits: Habits, rng: Random) -> str:
    return rng.choice([choice for choice in choices if choice != right]) if rng.random() < habits.wrong else right


def two_answers(case: Case, rng: Random) -> tuple[str, str]:
    """Two answers to one prompt, from perfect to broken; half of the pairs differ in one part only."""
    first, second = (
        _draft(case, rng.choices((AVERAGE, CAREFUL, PERFECT), weights=(5, 4, 1))[0], rng) for _ in range(2)
    )
    if rng.random() < 0.5:
        part = rng.randrange(len(first))
        second = [*first[:part], second[part], *first[part + 1 :]]
    a, b = (_perhaps_corrupted(_in_order(draft) or [rng.choice(greetings()).text], rng) for draft in (first, second))
    return a, b


def _perhaps_corrupted(sentences: list[str], rng: Random) -> str:
    return rng.choice(_CORRUPTIONS)(sentences, rng) if rng.random() < 0.25 else joined(sentences)


def _repeated(sentences: list[str], rng: Random) -> str:
    again = rng.choice(sentences)
    return joined([*sentences, *[again] * rng.randint(1, 3)])


def _words_dropped(sentences: list[str], rng: Random) -> str:
    words = joined(sentences).split()
    kept = [word for word in words if rng.random() > 0.15]
    return joined(kept or words[:1])


def _words_swapped(sentences: list[str], rng: Random) -> str:
    words = joined(sentences).split()
    for _ in range(rng.randint(1, 4)):
        i, j = rng.randrange(len(words)), rng.randrange(len(words))
        words[i], words[j] = words[j], words[i]
    return joined(words)


def _truncated(sentences: list[str], rng: Random) -> str:
    words = joined(sentences).split()
    return joined(words[: rng.randint(1, len(words))]).rstrip(".!?")


def _shuffled(sentences: list[str], rng: Random) -> str:
    return joined(rng.sample(sentences, len(sentences)))


def _short(sentences: list[str], rng: Random) -> str:
    return joined([rng.choice(sentences)])


def _padded(sentences: list[str], rng: Random) -> str:
    """Too long: more of one kind of sentence than anyone wants."""
    more = [sentence.text for sentence in rng.choice((greetings(), closings(), rambles(), greetings() + closings()))]
    for sentence in rng.sample(more, rng.randint(1, len(more))):
        sentences.insert(rng.randint(0, len(sentences)), sentence)
    return joined(sentences)


def _many_steps(sentences: list[str], rng: Random) -> str:
    """All steps at once, in the hope that one of them is right."""
    guesses = [rng.choice(fixes(*rng.sample(STEPS, 2))).text for _ in range(rng.randint(1, 3))]
    return joined([*sentences, *guesses])


_CORRUPTIONS: tuple[Callable[[list[str], Random], str], ...] = (
    _repeated,
    _words_dropped,
    _words_swapped,
    _truncated,
    _shuffled,
    _short,
    _padded,
    _many_steps,
)
