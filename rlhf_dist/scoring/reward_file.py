"""`reward.json` beside a reward model: how its outputs become a reward."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from rlhf_dist.errors import ModelError
from rlhf_dist.files import as_exact_json

NAME = "reward.json"


class RewardFile(BaseModel):
    """Read where a model folder has one; a folder without it is scored at the last token, unnormalised."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scores: Literal["trajectory", "token-mean"] = "trajectory"
    """Where an answer's score is read: at its last token, or the mean over its tokens."""
    members: tuple[str, ...] = (".",)
    """Folders of an ensemble's models, relative to this one."""
    means: tuple[float, ...] = (0.0,)
    """Of each member's and head's rewards of the SFT policy's answers. Comparisons leave each its own constant, which would
    else pass for disagreement."""
    std: float = 1.0
    """Of the ensemble's mean on the same answers."""
    compare_scale: float = 1.0
    """P(a over b) = sigmoid(compare_scale (r_a - r_b)), unnormalised."""

    @property
    def first_mean(self) -> float:
        """Mean reward of those answers by the first member alone."""
        own = self.means[: max(1, len(self.means) // len(self.members))]
        return sum(own) / len(own)

    def write(self, folder: Path) -> None:
        """Write it into a model folder."""
        (folder / NAME).write_text(as_exact_json(self.model_dump(), NAME, indent=2) + "\n")


def read_reward_file(folder: str) -> RewardFile:
    """A folder's `reward.json`, or the defaults.

    Raises:
        ModelError: the file is not what we write.
    """
    file = Path(folder) / NAME
    if not file.is_file():
        return RewardFile()
    try:
        read = RewardFile.model_validate_json(file.read_text())
    except ValidationError as error:
        first = error.errors()[0]
        raise ModelError(f"{file}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    outside = [member for member in read.members if Path(member).is_absolute() or ".." in Path(member).parts]
    if outside:
        raise ModelError(f"{file}: members has {outside[0]!r}; expected folders within this one")
    return read
