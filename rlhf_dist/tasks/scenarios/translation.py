"""Translation of small English sentences into Esperanto, whose object and its adjective end in -n."""

from random import Random

from rlhf_dist.tasks.scenarios.scenario import Scenario, jumbled, nearness

NOUNS = {
    "cat": "kato",
    "dog": "hundo",
    "bird": "birdo",
    "horse": "ĉevalo",
    "man": "viro",
    "woman": "virino",
    "child": "infano",
    "teacher": "instruisto",
    "friend": "amiko",
    "king": "reĝo",
}
ADJECTIVES = {
    "big": "granda",
    "small": "malgranda",
    "old": "maljuna",
    "young": "juna",
    "red": "ruĝa",
    "white": "blanka",
    "good": "bona",
    "bad": "malbona",
}
VERBS = {
    "sees": "vidas",
    "loves": "amas",
    "hears": "aŭdas",
    "finds": "trovas",
    "helps": "helpas",
    "knows": "konas",
    "seeks": "serĉas",
    "follows": "sekvas",
}


def _draw(rng: Random) -> tuple[str, str]:
    (noun, other), verb = rng.sample(sorted(NOUNS), 2), rng.choice(sorted(VERBS))
    first, second = (rng.choice(["", *sorted(ADJECTIVES)]) for _ in range(2))
    article, object_article = (rng.choice(("the", "a")) for _ in range(2))
    english = " ".join(word for word in (article, first, noun, verb, object_article, second, other) if word)
    subject = [_article(article), ADJECTIVES.get(first, ""), NOUNS[noun]]
    accusative = [_article(object_article), f"{ADJECTIVES[second]}n" if second else "", f"{NOUNS[other]}n"]
    said = " ".join(word for word in (*subject, VERBS[verb], *accusative) if word)
    return f"English: {english}.\nEsperanto:", f"{said}."


def _article(english: str) -> str:
    return "la" if english == "the" else ""


def _spoil(answer: str, rng: Random) -> str:
    """A slip in grammar: no -n; a slip in a word; or a jumble."""
    words = answer.removesuffix(".").split()
    kind = rng.randrange(3)
    if kind == 0:
        words = [word.removesuffix("n") for word in words]
    elif kind == 1:
        words[rng.randrange(len(words))] = rng.choice((*NOUNS.values(), *VERBS.values()))
    else:
        words = jumbled(" ".join(words), rng).split()
    return " ".join(words) + "."


TRANSLATION = Scenario("translation", _draw, nearness, _spoil)
