"""Where a pipeline's stage stands: finished, to be run again, to go on from where it was interrupted, or to begin."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rlhf_dist.checkpoint import checkpoints
from rlhf_dist.config import Job
from rlhf_dist.run_folder.names import SUMMARY
from rlhf_dist.stages.inputs import INPUTS, changed, kept_inputs
from rlhf_dist.stages.stage_checkpoints import MEMBERS

EARLIER = "earlier-"
"""Folders within a stage's own with what it had left before it began anew, by number."""
SHARED = ("stages", "data", "feedback", "pipeline.yaml")
"""What lies in the folder of a pipeline's PPO, but is not PPO's."""


@dataclass(frozen=True)
class Standing:
    """What is to become of a stage, and why."""

    told: str
    done: bool = False
    goes_on: bool = False
    """From what it had left."""
    anew: bool = False
    """Though it had left something, which is set aside."""


def standing(config: Job, *, resume: bool) -> Standing:
    """Look at what a stage has left, and whether what it had read is still the same.

    Args:
        config: the stage's settings.
        resume: whether a stage that was interrupted goes on.
    """
    run_dir = Path(config.run_dir)
    why = changed(config, kept_inputs(run_dir))
    if finished(config):
        return Standing(f"{why}: runs again", anew=True) if why else Standing("finished before", done=True)
    if not checkpoints(run_dir) and not (run_dir / MEMBERS).exists():
        return Standing("begins")
    if why or not resume:
        return Standing(f"{why or 'not resumed (--resume)'}: begins anew", anew=True)
    return Standing("goes on", goes_on=True)


def finished(config: Job) -> bool:
    """Whether a stage has come to its end."""
    return (Path(config.run_dir) / SUMMARY).exists()


def set_aside(run_dir: Path) -> Path:
    """Move what a stage has left into a folder of its own within the stage's, before it begins anew; returns that folder.

    The summary goes first: a folder without it is not taken for a finished one. What the stage had read goes last: as long as any
    of its checkpoints is left, it is seen that they have learnt from something else.
    """
    left = [each for each in run_dir.glob("[!.]*") if each.name not in SHARED and not each.name.startswith(EARLIER)]
    left += (run_dir / "stages").glob("evaluation")  # of the policy that is trained anew
    number = 1
    while (run_dir / f"{EARLIER}{number}").exists():
        number += 1
    aside = run_dir / f"{EARLIER}{number}"
    aside.mkdir()
    for each in sorted(left, key=lambda each: (each.name != SUMMARY, each.name == INPUTS)):
        each.rename(aside / each.name)
    return aside
