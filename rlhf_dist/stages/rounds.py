"""The rounds of a run's loop with people: the pipeline makes policy-1, and each round after it one more.

`RUN/feedback/rounds.json` has what every round from the second on learnt from, and how its policy compares with the one before.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_dist.errors import DataError
from rlhf_dist.evaluation.intervals import win_rate
from rlhf_dist.files import as_json, read_as, read_json_lines, write_text
from rlhf_dist.run_folder.names import POLICY, SAMPLES, SUMMARY
from rlhf_dist.stages.standing import EARLIER

ROUNDS = Path("feedback") / "rounds.json"


@dataclass(frozen=True)
class Round:
    """A policy that learnt from people, and how it compares with the one before."""

    number: int
    judgements: int
    """That it learnt from: of all rounds together."""
    digest: str
    """Of the file that holds them."""
    prompts: int
    """Held-out ones that both policies answered, and of which the gold judge scored both answers."""
    gold_win_rate: float | None
    """Over the policy before, ties counting half; null without a gold judge."""
    gold_interval: list[float] | None
    """95 % interval of that."""
    gold_score: list[float] | None
    """Mean of the policy before, and of this one."""
    kl: list[float | None]
    """To the reference at the end of PPO, in nats per answer: of the policy before, and of this one."""
    tasks: int | None = None
    """Asked about it afterwards; null: not yet."""

    @property
    def policy(self) -> str:
        """What its policy is called."""
        return policy_name(self.number)

    def told(self) -> str:
        """In words."""
        judged = ""
        if self.gold_win_rate is not None and self.gold_interval and self.gold_score:
            low, high = self.gold_interval
            judged = (
                f"the gold judge prefers {self.policy} over {policy_name(self.number - 1)} on {self.gold_win_rate:.1%} "
                f"[{low:.1%}, {high:.1%}] of {self.prompts} held-out prompts, ties counting half; mean gold score "
                f"{_both(self.gold_score, 3)}; "
            )
        distance = f"KL to the reference {_both(self.kl, 2)} nats"
        return f"{self.policy} learnt from {self.judgements} judgements of people: {judged}{distance}"


def _both(values: Sequence[float | None], digits: int) -> str:
    return " -> ".join("unknown" if value is None else f"{value:.{digits}f}" for value in values)


def policy_name(number: int) -> str:
    """What the policy of a round is called among the sources of tasks."""
    return f"policy-{number}"


def policy_number(run: Path) -> int:
    """The round that a run's policy is of, from 1."""
    rounds = read_rounds(run)
    return rounds[-1].number if rounds else 1


def read_rounds(run: Path) -> list[Round]:
    """All rounds that are over, from the second on.

    Raises:
        DataError: the file is damaged.
    """
    file = run / ROUNDS
    return read_as(list[Round], file) if file.exists() else []


def keep_round(run: Path, made: Round) -> None:
    """Write a round down, or what has become of it since."""
    kept = [each for each in read_rounds(run) if each.number != made.number]
    write_text(run / ROUNDS, as_json([dataclasses.asdict(each) for each in (*kept, made)], indent=1))


def run_before(run: Path) -> Path:
    """Where the pipeline has set aside the newest policy before a run's own, with what belongs to it.

    Raises:
        DataError: there is none.
    """
    found = [each for each in run.glob(f"{EARLIER}*") if (each / SUMMARY).exists() and (each / POLICY).exists()]
    if not found:
        raise DataError(
            f"{run}: no policy of the round before; expected {EARLIER}N/{POLICY}, as `rlhf-dist again` leaves it"
        )
    return max(found, key=lambda each: int(each.name.removeprefix(EARLIER)))


def compared(before: Path, after: Path) -> dict[str, Any]:
    """How two runs' policies compare on the held-out prompts that both answered: fields of `Round`.

    Args:
        before: folder of the RL run that is compared with.
        after: folder of the RL run that is compared; it had the same held-out prompts.
    """
    earlier, now = (read_json_lines(folder / SAMPLES) for folder in (before, after))
    pairs = [(old["gold_after"], new["gold_after"]) for old, new in zip(earlier, now, strict=True)]
    judged = [(old, new) for old, new in pairs if old is not None and new is not None]
    wins = win_rate([0.5 + 0.5 * ((new > old) - (new < old)) for old, new in judged]).rate if judged else None
    return {
        "prompts": len(judged),
        "gold_win_rate": wins and wins.mean,
        "gold_interval": wins and [wins.low, wins.high],
        "gold_score": [sum(each) / len(judged) for each in zip(*judged, strict=True)] or None,
        "kl": [json.loads((folder / SUMMARY).read_text())["kl_end"] for folder in (before, after)],
    }


def digest_of(file: Path) -> str:
    """By which a round knows what it learnt from."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "blake2b").hexdigest()
