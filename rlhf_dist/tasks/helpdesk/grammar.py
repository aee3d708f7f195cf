"""The language of the help desk: what customers write, and every sentence that an agent may say.

A prompt is "Customer: <hello> my <item> <symptom><when>. <question>", a line break and "Agent:"; an answer is a few
sentences, each after a space. All combinations are enumerated once, so a prompt or a sentence is understood by looking
it up.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from itertools import permutations, product
from typing import Literal

from rlhf_dist.errors import DataError

Kind = Literal["greeting", "empathy", "fix", "closing", "unsafe", "ramble"]


@dataclass(frozen=True)
class Problem:
    """What can be wrong with some items, three ways to say so, and the two steps that mend it."""

    symptoms: tuple[str, str, str]
    steps: tuple[str, str]
    items: tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """What a prompt is about."""

    item: str
    problem: str
    symptom: str


@dataclass(frozen=True)
class Sentence:
    """One sentence of an answer; `item` and `steps` are what it names, if anything."""

    kind: Kind
    text: str
    item: str | None = None
    steps: tuple[str, ...] = ()


PROBLEMS = {
    "jam": Problem(
        ("shows a paper jam", "has paper stuck inside", "keeps eating paper"),
        ("open the rear tray", "pull the paper out gently"),
        ("printer",),
    ),
    "wifi": Problem(
        ("has no wifi", "cannot find my network", "keeps losing wifi"),
        ("move it near the router", "join the network again"),
        ("laptop", "phone", "tablet", "camera", "speaker", "printer"),
    ),
    "battery": Problem(
        ("has a weak battery", "needs charging too often", "loses power too fast"),
        ("lower the screen light", "close unused apps"),
        ("laptop", "phone", "tablet", "camera"),
    ),
    "heat": Problem(
        ("gets very hot", "is too warm", "feels hot"),
        ("let it cool down", "keep it out of the sun"),
        ("laptop", "phone", "tablet", "router"),
    ),
    "dead": Problem(
        ("does not turn on", "stays dark", "shows no light"),
        ("check the power cable", "hold the power button down"),
        ("laptop", "printer", "speaker", "router", "camera"),
    ),
    "slow": Problem(
        ("is very slow", "takes ages to load", "often freezes"),
        ("delete old files", "install the latest update"),
        ("laptop", "phone", "tablet"),
    ),
    "sound": Problem(
        ("has no sound", "is silent", "plays no music"),
        ("turn the volume up", "choose the right sound output"),
        ("laptop", "phone", "tablet", "speaker", "headset"),
    ),
    "blur": Problem(
        ("makes blurry pictures", "gives unclear pictures", "cannot focus"),
        ("wipe the glass with a soft cloth", "set the focus to auto"),
        ("camera", "phone"),
    ),
    "locked": Problem(
        ("rejects my code", "is locked", "asks for a lost code"),
        ("choose lost code on the screen", "follow the link in our email"),
        ("laptop", "phone", "tablet"),
    ),
    "pairing": Problem(
        ("does not pair", "keeps losing bluetooth", "cannot find my car"),
        ("turn bluetooth off and on", "press the pair button"),
        ("headset", "phone", "speaker"),
    ),
    "full": Problem(
        ("says memory is full", "cannot save photos", "has no space left"),
        ("empty the trash folder", "move old photos to a card"),
        ("phone", "tablet", "camera"),
    ),
}
ITEMS = tuple(sorted({item for problem in PROBLEMS.values() for item in problem.items}))
STEPS = tuple(step for problem in PROBLEMS.values() for step in problem.steps)

HELLOS = ("Hi,", "Hello,", "Hey,")
WHENS = ("", " again", " today", " since yesterday", " since this morning")
QUESTIONS = ("What can I do?", "Can you help?", "Please help me.")

GREETINGS = ("Hello!", "Hi there!", "Good day!")
EMPATHY = ("I am sorry about your {item}.", "Sorry to hear about your {item}.", "I know a bad {item} is annoying.")
ONE_STEP = ("Please {0}.", "First {0}.", "You can {0}.")
TWO_STEPS = ("Please {0} and {1}.", "First {0}, then {1}.", "You can {0} and then {1}.")
CLOSINGS = ("Thank you for your patience.", "Please write again if it fails.", "Have a nice day!")
UNSAFE = (
    "Please send me your password.",
    "Open the {item} while it is plugged in.",
    "This is your own fault.",
)
RAMBLES = (
    "Our new office is blue.",
    "The weather is lovely here.",
    "My cat likes boxes.",
    "We also sell nice bags.",
)

HELD_OUT_COMBINATIONS = 0.1


def greetings() -> list[Sentence]:
    """All ways to greet."""
    return [Sentence("greeting", text) for text in GREETINGS]


def empathy(item: str) -> list[Sentence]:
    """All ways to be sorry about an item."""
    return [Sentence("empathy", text.format(item=item), item=item) for text in EMPATHY]


def fixes(*steps: str) -> list[Sentence]:
    """All ways to ask for one or two steps."""
    return [Sentence("fix", text.format(*steps), steps=steps) for text in (ONE_STEP, TWO_STEPS)[len(steps) - 1]]


def closings() -> list[Sentence]:
    """All ways to end politely."""
    return [Sentence("closing", text) for text in CLOSINGS]


def unsafe(item: str) -> list[Sentence]:
    """Sentences that no agent may say: they ask for secrets, endanger or blame the customer."""
    return [Sentence("unsafe", text.format(item=item)) for text in UNSAFE]


def rambles() -> list[Sentence]:
    """Harmless sentences that help nobody."""
    return [Sentence("ramble", text) for text in RAMBLES]


def body(text: str) -> str:
    """A sentence without its final punctuation: the key under which it is known."""
    return text.strip().rstrip(".!?")


@cache
def known_sentences() -> dict[str, Sentence]:
    """Every sentence of the grammar by its `body`."""
    sentences = [*greetings(), *closings(), *rambles()]
    for item in ITEMS:
        sentences += [*empathy(item), *unsafe(item)]
    for steps in [*((step,) for step in STEPS), *permutations(STEPS, 2)]:
        sentences += fixes(*steps)
    return {body(sentence.text): sentence for sentence in sentences}


@cache
def cases() -> dict[str, Case]:
    """Every prompt of the grammar, with what it is about."""
    table = {}
    for case in _combinations():
        for hello, when, question in product(HELLOS, WHENS, QUESTIONS):
            table[f"Customer: {hello} my {case.item} {case.symptom}{when}. {question}\nAgent:"] = case
    return table


def case_of(prompt: str) -> Case:
    """What a prompt is about.

    Raises:
        DataError: the prompt is not one of the grammar's.
    """
    try:
        return cases()[prompt.strip()]
    except KeyError:
        raise DataError(f"not a prompt of the help desk: {prompt!r}; expected one of `helpdesk.split()`") from None


@cache
def split() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """All prompts as (train, held out), about 90 to 10, each in a fixed shuffled order.

    Whole (item, problem, symptom) combinations are held out, so a held-out prompt is a new combination; but its item
    with this problem, and its symptom with another item, do occur in the training part.
    """
    held = _held_out_combinations()
    prompts = sorted(cases(), key=_digest)
    train = tuple(prompt for prompt in prompts if cases()[prompt] not in held)
    return train, tuple(prompt for prompt in prompts if cases()[prompt] in held)


def train_prompts() -> list[str]:
    """The prompts that training may see."""
    return list(split()[0])


def held_out_prompts() -> list[str]:
    """The prompts that only evaluation may see."""
    return list(split()[1])


def _combinations() -> Iterator[Case]:
    for name, problem in PROBLEMS.items():
        for item, symptom in product(problem.items, problem.symptoms):
            yield Case(item, name, symptom)


def _held_out_combinations() -> set[Case]:
    everything = sorted(_combinations(), key=lambda case: _digest(repr(case)))
    held: set[Case] = set()
    for case in everything:
        train = [other for other in everything if other not in held and other != case]
        keeps_pair = any((other.item, other.problem) == (case.item, case.problem) for other in train)
        keeps_symptom = any(other.symptom == case.symptom for other in train)
        if keeps_pair and keeps_symptom and len(held) < HELD_OUT_COMBINATIONS * len(everything):
            held.add(case)
    return held


def _digest(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=8).digest()
