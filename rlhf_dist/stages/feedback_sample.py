"""Tasks for people: prompts that a run's policy answered, against its start, an earlier or another policy, or itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import repeat
from pathlib import Path
from typing import Any

from rlhf_dist.cluster.placement import engines_of
from rlhf_dist.cluster.session import namespace_of, session
from rlhf_dist.config import Prompts, RLConfig, load
from rlhf_dist.data.characters import alike
from rlhf_dist.data.encoder import Encoder
from rlhf_dist.data.prompts import read_prompts
from rlhf_dist.errors import DataError
from rlhf_dist.feedback.criteria import UNSTORABLE
from rlhf_dist.feedback.task_files import TaskRow
from rlhf_dist.models import check_same_tokenizer, resolve
from rlhf_dist.records import Prompt
from rlhf_dist.run_folder.names import CONFIG, POLICY
from rlhf_dist.stages.generation import answers_to, generating
from rlhf_dist.stages.hub import resolved
from rlhf_dist.stages.rounds import policy_name, policy_number, run_before
from rlhf_dist.stages.supervised import encoder_of
from rlhf_dist.store.row import rows_of

EMPTY, EQUAL, NO_TEXT = (
    "an answer says nothing",
    "both answers look the same, but for white space at most",
    "a text has NUL or half of a character, which is no text",
)
"""Why a prompt becomes no task."""


@dataclass(frozen=True)
class Sampled:
    """What was made of the prompts."""

    rows: list[TaskRow]
    left_out: dict[str, int]
    """How many prompts became no task, by why."""

    def told(self) -> str:
        """A sentence about what was left out; empty if nothing was."""
        reasons = "; ".join(f"{count:,}, since {why}" for why, count in self.left_out.items())
        return f"left out {sum(self.left_out.values()):,} prompts: {reasons}" if reasons else ""


@dataclass(frozen=True)
class Wanted:
    """What to sample."""

    run: Path
    """Folder of an RL run; its config says how to generate."""
    against: str
    """`sft`, the policy that the run started with; `self`, a second sample; `before`, the policy of the round before (`again`);
    or a model folder."""
    kind: str
    """`comparison`, `score` or `comment`."""
    prompts: int
    seed: int


def sample(wanted: Wanted) -> Sampled:
    """Generate answers with real engines and pair them.

    Raises:
        UserError: the run has no policy or no prompts, or the policies' tokenizers differ.
    """
    config = resolved(load(RLConfig, wanted.run / CONFIG))
    policy = str(wanted.run / POLICY)
    encoder = encoder_of(policy)
    own = policy_name(policy_number(wanted.run))
    rival, other = _rival(config, wanted, own)
    check_same_tokenizer(policy, {"against": rival})
    prompts = _prompts(config.prompts, encoder, wanted)
    with session(config.cluster, **engines_of(config.rollout), namespace=namespace_of(wanted.run)):
        ours = _answers(config, wanted, policy, prompts, encoder.tokenizer, first_sample=0)
        theirs = None
        if wanted.kind == "comparison":
            theirs = _answers(config, wanted, rival, prompts, encoder.tokenizer, first_sample=int(rival == policy))
    return tasks(wanted, prompts, (own, ours), (other, theirs))


def tasks(
    wanted: Wanted,
    prompts: Sequence[Prompt],
    ours: tuple[str, Sequence[str]],
    theirs: tuple[str, Sequence[str] | None],
) -> Sampled:
    """Answers as tasks for people, those left out that ask nothing, or that could not be kept.

    Args:
        wanted: what they are for.
        prompts: what was answered.
        ours: what the policy is called, and its answer to each.
        theirs: the same of what it is compared with; None: nothing.
    """
    (own, answers), (other, others) = ours, theirs
    rows: list[TaskRow] = []
    left_out: Counter[str] = Counter()
    for prompt, a, b in zip(prompts, answers, others or repeat(None, len(answers)), strict=True):
        why = _why_not(prompt, a, b)
        if why:
            left_out[why] += 1
        elif b is None:
            rows.append(TaskRow(wanted.kind, prompt.shown, a, source_a=own, prompt_source=prompt.source))
        else:
            rows.append(_blind(prompt, (a, own), (b, other), wanted.seed))
    return Sampled(rows, dict(left_out))


def _why_not(prompt: Prompt, a: str, b: str | None) -> str | None:
    """Why a prompt becomes no task."""
    answers = [a] if b is None else [a, b]
    if not all(answer.strip() for answer in answers):
        return EMPTY
    if b is not None and alike(a, b):
        return EQUAL
    return NO_TEXT if any(map(UNSTORABLE.search, [prompt.shown, prompt.source, *answers])) else None


def _rival(config: RLConfig, wanted: Wanted, own: str) -> tuple[str, str]:
    """The model folder that the policy is compared with, and what it is called."""
    if wanted.against == "sft":
        return resolve(config.policy), "sft"
    if wanted.against == "self":
        return str(wanted.run / POLICY), own
    if wanted.against == "before":
        return str(run_before(wanted.run) / POLICY), policy_name(policy_number(wanted.run) - 1)
    return resolve(wanted.against), _name(Path(wanted.against))


def _name(folder: Path) -> str:
    """What a rival is called: its folder, and where that says no more than what it is, its run."""
    return folder.parent.name if folder.name == "policy" else folder.name


def _blind(prompt: Prompt, ours: tuple[str, str], theirs: tuple[str, str], seed: int) -> TaskRow:
    """A comparison whose sides a coin decides."""
    heads = blake2b(f"{seed}/{prompt.id}".encode(), digest_size=1).digest()[0] & 1
    (a, source_a), (b, source_b) = (ours, theirs) if heads else (theirs, ours)
    return TaskRow("comparison", prompt.shown, a, b, source_a, source_b, prompt_source=prompt.source)


def _prompts(settings: Prompts, encoder: Encoder, wanted: Wanted) -> Sequence[Prompt]:
    """Some that the run trains on: judgements become training data, and what is held out stays so."""
    read = read_prompts(settings, encoder)
    if not read:
        raise DataError(f"{settings.path}: no prompts; expected some to answer")
    order = sorted(read, key=lambda prompt: blake2b(f"{wanted.seed}/{prompt.id}".encode(), digest_size=8).digest())
    return sorted(order[: wanted.prompts], key=lambda prompt: prompt.id)


def _answers(
    config: RLConfig, wanted: Wanted, model: str, prompts: Sequence[Prompt], tokenizer: Any, *, first_sample: int
) -> list[str]:
    with generating(
        model,
        config.rollout,
        config.timeouts,
        wanted.run,
        max_sequence=config.max_sequence,
        learner=config.learner,
        seed=wanted.seed,
    ) as generators:
        found = answers_to(prompts, generators, config.timeouts, first_sample=first_sample)
    return [tokenizer.decode(row.answer, skip_special_tokens=True) for row in rows_of(found)]
