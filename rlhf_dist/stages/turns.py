"""Whose turn it is where devices are shared: engines and scorers make samples, or the learner learns from them.

engines asleep -> scorers at rest -> learner's states back -> update, publish, checkpoint
learner's states away -> scorers awake -> engines wake when they pull the weights
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rlhf_dist.cluster.dealing import everyone
from rlhf_dist.cluster.fleet import Fleet
from rlhf_dist.learner.group import LearnerGroup
from rlhf_dist.scoring.resting import rest, wake


@dataclass
class SharedDevices:
    """`Turns` of a learner whose devices others use, too."""

    learner: LearnerGroup
    scorers: Mapping[str, Fleet]
    engines: Fleet | None
    """None: they have devices of their own."""
    timeout_s: float
    """Granted to each step."""
    start_s: float
    """Granted to an engine that is starting when the learner's turn comes."""
    _away: bool = field(default=False, init=False)

    def to_learner(self) -> None:
        """The devices are the learner's."""
        if self.engines is not None:
            put_to_sleep(self.engines, timeout_s=self.timeout_s, start_s=self.start_s)
        rest(self.scorers.values(), timeout_s=self.timeout_s)
        if self._away:
            self.learner.reload()
        self._away = False

    def to_others(self) -> None:
        """The devices are those of engines and scorers; the learner keeps its weights there, to publish them."""
        if self._away:
            return
        if self.engines is not None:
            self.learner.offload()
            self._away = True
        wake(self.scorers.values(), timeout_s=self.timeout_s)
        if self.engines is not None:
            self.engines.go_on()


def put_to_sleep(engines: Fleet, *, timeout_s: float, start_s: float) -> None:
    """Have all engines give their memory back, those that are starting too, and start no other until the fleet goes on."""
    engines.wait_for_fewest(timeout_s=start_s)
    engines.pause()
    everyone(engines, lambda worker: worker.sleep.remote(), timeout_s=timeout_s, doing="going to sleep")
