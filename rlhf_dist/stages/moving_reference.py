"""A reference that moves: it becomes the policy every so many iterations, or a moving average of it.

Each is a folder `references/step-NNNNNN` of the run, from which who holds it loads it, also workers that join later; a run that
goes on after iteration n takes the newest that was made up to then. TRL's `sync_ref_model` has the same formula.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from rlhf_dist.checkpoint import complete_or_absent, verify
from rlhf_dist.cluster.dealing import everyone
from rlhf_dist.cluster.fleet import Fleet
from rlhf_dist.files import remove_folder
from rlhf_dist.learner.frozen_model import FrozenSpec
from rlhf_dist.learner.group import LearnerGroup
from rlhf_dist.learner.saving import save_model
from rlhf_dist.models import load_policy

FOLDER = "references"
LAST = 2
"""Newest ones that stay, for a run that goes on from its memory; of older ones, those that checkpoints go on with."""


def references(run_dir: Path) -> dict[int, Path]:
    """By the iterations behind each, newest first."""
    named = {each.name.removeprefix("step-"): each for each in (run_dir / FOLDER).glob("step-*") if each.is_dir()}
    return dict(sorted(((int(name), each) for name, each in named.items() if name.isdecimal()), reverse=True))


def reference_at(run_dir: Path, iteration: int, start: str) -> str:
    """The reference after so many iterations: the newest that was made up to then, or the one at the start.

    Raises:
        ModelError: a file of it has changed since it was written.
    """
    found = next((folder for step, folder in references(run_dir).items() if step <= iteration), None)
    if found is None:
        return start
    verify(found)
    return os.path.abspath(found)


def move(learner: LearnerGroup, holder: Holder, run_dir: Path, version: int, *, mix: float) -> None:
    """Make the next reference and have it loaded by who holds it.

    Args:
        learner: whose policy it moves to.
        holder: who holds it.
        run_dir: the run's folder.
        version: iterations behind the policy.
        mix: share of the policy; 1: the reference becomes it.
    """
    folder = run_dir / FOLDER / f"step-{version:06d}"
    with complete_or_absent(folder, learner.written if mix == 1 else None) as aside:
        learner.save("policy", aside.absolute())
        if mix < 1:
            learner.written(aside.absolute())
            mixed(holder.path, aside, mix=mix)
    holder.renew(os.path.abspath(folder))


class Holder(Protocol):
    """Who computes the reference's log-probs."""

    @property
    def path(self) -> str:
        """The reference's folder."""

    def renew(self, path: str) -> None:
        """Load it from another."""


@dataclass
class HeldByWorkers:
    """Scoring workers hold it."""

    fleet: Fleet
    arguments: dict[str, Any]
    """What further workers are made with; its path is changed."""
    timeout_s: float
    """Granted to each worker."""

    @property
    def path(self) -> str:
        """The reference's folder."""
        return str(self.arguments["path"])

    def renew(self, path: str) -> None:
        """Have every worker load it, also those that join later."""
        self.arguments["path"] = path
        changed, doing = {"path": path}, "loading the reference"
        everyone(self.fleet, lambda worker: worker.renew.remote(changed), timeout_s=self.timeout_s, doing=doing)


@dataclass
class HeldByLearner:
    """The learner's ranks hold it."""

    learner: LearnerGroup
    spec: FrozenSpec

    @property
    def path(self) -> str:
        """The reference's folder."""
        return self.spec.path

    def renew(self, path: str) -> None:
        """Have every rank load its part."""
        self.spec = self.spec.at(path)
        self.learner.renew("reference", self.spec)


@torch.no_grad()
def mixed(reference: str, policy: Path, *, mix: float) -> None:
    """Make the model in a folder (1 - mix) times the reference plus mix times itself, in fp32; both fit in host memory."""
    new, old = (load_policy(str(each), dtype=torch.float32) for each in (policy, reference))
    before = dict(old.named_parameters())
    for name, parameter in new.named_parameters():
        parameter.lerp_(before[name], 1 - mix)
    save_model(new, new.state_dict(), policy)


def prune(run_dir: Path, kept: Iterable[int]) -> None:
    """Delete the references that nobody goes on with.

    Args:
        run_dir: the run's folder.
        kept: iterations behind the checkpoints that there are.
    """
    found = references(run_dir)
    needed = {next((step for step in found if step <= iteration), -1) for iteration in kept} | {*[*found][:LAST]}
    for step, folder in found.items():
        if step not in needed:
            remove_folder(folder)
