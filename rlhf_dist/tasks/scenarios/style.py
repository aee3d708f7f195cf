"""Style transfer: a curt order becomes a polite question that asks for the same."""

from random import Random

from rlhf_dist.tasks.scenarios.scenario import Scenario, jumbled, nearness

VERBS = ("give me", "send me", "show me", "bring me", "find me", "lend me", "read me", "buy me")
THINGS = ("book", "report", "picture", "key", "map", "letter", "ticket", "phone", "bag", "list", "cup", "pen")
KINDS = ("", "new", "old", "red", "blue", "long", "small")
WHENS = ("", "now", "today", "tomorrow", "tonight", "before noon")
POLITE = "Could you please"


def _draw(rng: Random) -> tuple[str, str]:
    verb, thing, kind, when = (rng.choice(words) for words in (VERBS, THINGS, KINDS, WHENS))
    order = " ".join(word for word in (verb, "the", kind, thing, when) if word)
    return f"Rude: {order[0].upper()}{order[1:]}!\nPolite:", f"{POLITE} {order}?"


def _gold(right: str, answer: str) -> float:
    """0.6 for asking for the same, 0.2 for asking politely, 0.2 for a question mark."""
    content = right.removeprefix(POLITE).removesuffix("?").strip()
    said = answer.removeprefix(POLITE).rstrip("?!.").strip()
    return round(0.6 * nearness(content, said) + 0.2 * answer.startswith(POLITE) + 0.2 * answer.endswith("?"), 6)


def _spoil(answer: str, rng: Random) -> str:
    content = answer.removeprefix(POLITE).removesuffix("?").strip()
    plain = f"{content[0].upper()}{content[1:]}"
    return rng.choice(
        (
            f"{plain}!",
            f"{plain}?",
            f"{POLITE} {content}.",
            f"{POLITE} {jumbled(content, rng)}?",
            f"{POLITE} {rng.choice(VERBS)} the {rng.choice(THINGS)}?",
            f"{plain} or else!",
        )
    )


STYLE = Scenario("style", _draw, _gold, _spoil)
