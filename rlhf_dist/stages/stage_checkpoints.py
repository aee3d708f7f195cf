"""Checkpoints from which stages that learn from data go on: `checkpoints/step-NNNNNN/`, each complete or absent.

    config.json, model*.safetensors, tokenizer...  the model in Hugging Face layout, loadable as it is
    learner/model/                                 weights and state of the optimiser, and the schedule
    state.json                                     steps done, member of the ensemble, the last evaluation
    run.yaml, inputs.json                          the settings that the stage then had, and what it had read

An ensemble's members that are trained lie in `members/N/`, with what they say of the held-out answers, until the stage is done.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import FiniteFloat

from rlhf_dist.checkpoint import checkpoints, complete_or_absent, forget_after, prune, verify
from rlhf_dist.config import DPOConfig, Job, RewardConfig, SFTConfig, dump, load
from rlhf_dist.data.encoder import Encoder
from rlhf_dist.errors import ConfigError, ModelError
from rlhf_dist.files import as_exact_json, read_as, remove_folder
from rlhf_dist.learner.group import LearnerGroup
from rlhf_dist.learner.optimizer_state import check_readable
from rlhf_dist.models import write_ends
from rlhf_dist.run_folder.folder import RunFolder
from rlhf_dist.stages.behind import Behind
from rlhf_dist.stages.changes import SUPERVISED, check_changes
from rlhf_dist.stages.inputs import INPUTS, changed, kept_inputs

KEPT = 2
"""The newest, and the one before it for when the newest is damaged."""
STATE, SETTINGS, SAID = "state.json", "run.yaml", "said.safetensors"
MEMBERS = "members"
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Halfway:
    """The state of a checkpoint."""

    step: int
    member: int
    found: dict[str, FiniteFloat]


@dataclass(frozen=True)
class Trained:
    """The state of a member that is trained."""

    step: int
    parameters: int


@dataclass(frozen=True)
class Reached:
    """How far a stage has come: nowhere, or what it goes on from."""

    step: int = 0
    """Optimiser steps done, those of an ensemble's earlier members included."""
    state: str = ""
    """Folder of the learner's state; empty: the next model begins as its folder has it."""
    found: Mapping[str, float] = field(default_factory=dict)
    """The last evaluation."""
    members: tuple[Path, ...] = ()
    """Of an ensemble, those that are trained."""
    told: str = ""
    """For people: where a resumed stage goes on, and what it passed over; empty: it is not resumed."""


BEGINNING = Reached()


def newest(config: Job, run_dir: Path) -> Reached:
    """The furthest that a stage has come, by what is as it was written; the beginning where there is nothing at all.

    Args:
        config: the stage's settings, as the user wrote them.
        run_dir: its folder.

    Raises:
        ModelError: in everything that it left a file has changed since it was written; names the newest's.
        ConfigError: it was made with other settings that such a stage keeps, or from files that have changed since.
    """
    damage: list[str] = []
    members = _members(config, run_dir, damage)
    step = read_as(Trained, members[-1] / STATE).step if members else 0
    for folder in checkpoints(run_dir):
        if not _whole(folder, damage):
            continue
        state = read_as(Halfway, folder / STATE)
        if state.member != len(members):
            continue  # of a member that is trained, or of one after a member that is to be trained again
        check_readable(folder / "learner")
        _check_origin(config, folder)
        going_on = f"going on after step {state.step}"
        learner = str(folder.absolute() / "learner" / "model")
        return Reached(state.step, learner, state.found, members, _told(going_on, damage))
    if damage and not members:
        raise ModelError(damage[0])
    begins = f"going on after member {len(members)}" if members else "there is no checkpoint yet: from the beginning"
    return Reached(step, members=members, told=_told(begins, damage))


def rewind(folder: RunFolder, begin: Reached) -> None:
    """Forget what was recorded and kept after the step from which a stage goes on, because it does it again."""
    folder.rewind(begin.step)
    forget_after(folder.path, begin.step)
    for each in (folder.path / MEMBERS).glob("*"):
        if each.absolute() not in begin.members:
            remove_folder(each)


@dataclass(frozen=True)
class Keeper:
    """Writes a stage's checkpoints, and its model."""

    behind: Behind
    """With the learner that holds the stage's model."""
    encoder: Encoder
    run_dir: Path
    config: SFTConfig | RewardConfig | DPOConfig
    """As the user wrote it."""
    ends: Sequence[int] = ()
    """Tokens that end a policy's answers."""
    member: int = 0
    """Of an ensemble, the one that is trained."""

    @property
    def learner(self) -> LearnerGroup:
        """The group that trains."""
        return self.behind.learner

    def keep(self, step: int, found: Mapping[str, float]) -> None:
        """Write a checkpoint after so many steps, if it is time for one; of older ones one stays.

        Args:
            step: optimiser steps done, those of earlier members included.
            found: the last evaluation.
        """
        every = self.config.checkpoint_every
        if not every or step % every:
            return

        def fill(aside: Path) -> None:
            write_model(self.learner, self.encoder.tokenizer, aside, self.ends)
            self.learner.save_state("model", aside.absolute() / "learner" / "model")
            self._sign(aside, Halfway(step, self.member, dict(found)))

        folder = self.run_dir / "checkpoints" / f"step-{step:06d}"
        self.behind.write(folder, fill, lambda: prune(self.run_dir, step, last=KEPT, best=0, values={}))

    def keep_member(self, step: int, said: Mapping[str, Array]) -> Path:
        """Write the member of the ensemble that is trained now.

        Args:
            step: optimiser steps done, its own and those of earlier members.
            said: what it says of some examples, by name; `read_said` reads it.
        """
        from safetensors.numpy import save_file

        folder = (self.run_dir / MEMBERS / str(self.member)).absolute()
        self.behind.finish()
        with complete_or_absent(folder, self.learner.written) as aside:
            write_model(self.learner, self.encoder.tokenizer, aside / "model", self.ends)
            save_file({name: np.ascontiguousarray(each) for name, each in said.items()}, aside / SAID)
            self._sign(aside, Trained(step, self.learner.num_parameters))
        return folder

    def save(self, folder: Path) -> None:
        """Write the trained model; the folder is complete or absent."""
        self.behind.finish()
        with complete_or_absent(folder, self.learner.written) as aside:
            write_model(self.learner, self.encoder.tokenizer, aside, self.ends)

    def _sign(self, folder: Path, state: Halfway | Trained) -> None:
        (folder / STATE).write_text(as_exact_json(dataclasses.asdict(state), STATE))
        (folder / SETTINGS).write_text(dump(self.config))
        shutil.copyfile(self.run_dir / INPUTS, folder / INPUTS)


def write_model(learner: LearnerGroup, tokenizer: Any, folder: Path, ends: Sequence[int] = ()) -> None:
    """Write the stage's model with its tokenizer in Hugging Face layout, once the ranks have written what they copied.

    `ends` are a policy's, for every engine.
    """
    learner.save("model", folder.absolute())
    tokenizer.save_pretrained(folder)
    if ends:
        write_ends(folder, ends)


def read_said(member: Path) -> dict[str, Array]:
    """What a trained member says of examples, by the names that `keep_member` was given."""
    from safetensors.numpy import load_file

    found: dict[str, Array] = load_file(member / SAID)
    return found


def parameters_of(member: Path) -> int:
    """How many parameters a trained member has."""
    return read_as(Trained, member / STATE).parameters


def _members(config: Job, run_dir: Path, damage: list[str]) -> tuple[Path, ...]:
    """Members that are trained, up to the first that is damaged."""
    found: list[Path] = []
    while (folder := (run_dir / MEMBERS / str(len(found))).absolute()).is_dir() and _whole(folder, damage):
        _check_origin(config, folder)
        found.append(folder)
    return tuple(found)


def _whole(folder: Path, damage: list[str]) -> bool:
    try:
        verify(folder)
    except ModelError as error:
        damage.append(str(error))
        return False
    return True


def _check_origin(config: Job, folder: Path) -> None:
    check_changes(load(type(config), folder / SETTINGS), config, where=str(folder), kept=SUPERVISED)
    if told := changed(config, kept_inputs(folder)):
        raise ConfigError(f"{folder}: since it was made {told}; expected what it has learnt from, or a new run")


def _told(begins: str, damage: Sequence[str]) -> str:
    return begins + (f" (not from what is newer: {'; '.join(damage)})" if damage else "")
