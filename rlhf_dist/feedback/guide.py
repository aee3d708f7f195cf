"""What annotators are told and asked: `feedback serve --guide FILE`.

question: Which answer would you rather send to a customer?
guidelines: |
  ## What counts
  Correct first, then short.  (Markdown; shown beside every task)
criteria:
  - {name: helpful, scale: [1, 7]}
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.orm import Session

from rlhf_dist.config import read_yaml
from rlhf_dist.errors import DataError
from rlhf_dist.feedback.criteria import UNSTORABLE, Criterion, as_text, checked_criteria, from_text
from rlhf_dist.feedback.database import Setting
from rlhf_dist.files import shown

QUESTIONS = {
    "comparison": "Which answer is better?",
    "ranking": "Which answer is best, and which comes next?",
    "score": "How good is this answer?",
    "comment": "What do you think of this answer?",
}
LONGEST_GUIDELINES = 20_000


@dataclass(frozen=True)
class Guide:
    """What holds for every task of a store that has nothing of its own."""

    question: str = ""
    guidelines: str = ""
    """In Markdown."""
    criteria: tuple[Criterion, ...] = ()

    def asks(self, kind: str) -> str:
        """The main question of a task."""
        return self.question or QUESTIONS[kind]


def read_guide(path: Path) -> Guide:
    """A guide from a YAML or JSON file.

    Raises:
        UserError: the file is missing, or says something else; names the key.
    """
    tree = read_yaml(path)
    unknown = tree.keys() - {"question", "guidelines", "criteria"}
    if unknown:
        raise DataError(f"{path}: {min(unknown)} is not known; expected question, guidelines, criteria")
    for name in ("question", "guidelines"):
        text = tree.get(name) or ""
        if not isinstance(text, str) or len(text) > LONGEST_GUIDELINES or UNSTORABLE.search(text):
            raise DataError(
                f"{path}: {name} is {shown(text)}; expected text of at most {LONGEST_GUIDELINES} whole characters"
            )
    criteria = checked_criteria(f"{path}: criteria", tree.get("criteria") or [])
    return Guide((tree.get("question") or "").strip(), (tree.get("guidelines") or "").strip(), tuple(criteria))


def keep_guide(session: Session, guide: Guide) -> bool:
    """Let a guide hold from now on; whether that changes anything. What was said before keeps the scales that it was said on."""
    if kept_guide(session) == guide:
        return False
    values = {"question": guide.question, "guidelines": guide.guidelines, "criteria": as_text(guide.criteria)}
    for name, value in values.items():
        session.merge(Setting(name=name, value=value))
    return True


def kept_guide(session: Session) -> Guide:
    """The store's guide."""
    found = {each.name: each.value for each in session.query(Setting)}
    return Guide(found.get("question", ""), found.get("guidelines", ""), tuple(from_text(found.get("criteria", ""))))
