"""Settings of chaos: an RL run, and the faults that it is put through."""

from __future__ import annotations

from typing import ClassVar, Literal, Self, get_args

from pydantic import Field, model_validator

from rlhf_dist.config.rewards import RemoteReward, Rewards
from rlhf_dist.config.rl import RLJob
from rlhf_dist.config.sections import Prompts, Section

FaultKind = Literal[
    "kill rollout",
    "kill engine",
    "kill reward",
    "kill reference",
    "kill learner",
    "kill store",
    "kill raylet",
    "kill gcs",
    "kill driver",
    "stop rollout",
    "stop engine",
    "stop reward",
    "stop reference",
    "stop learner",
    "stop store",
    "pause driver",
    "end driver",
    "flip checkpoint",
    "cut checkpoint",
    "tear metrics",
    "server broken",
    "server busy",
    "server slow",
    "server closing",
    "server nan",
    "server short",
    "server huge",
]
"""What is done, and to what: kill is SIGKILL, stop SIGSTOP, pause SIGSTOP and SIGCONT, end SIGTERM; files are damaged after a
SIGKILL of the driver, and the server's lies last a few requests."""
OWN_SERVER = "http://127.0.0.1:1/"
"""A reward of this URL is the server that chaos brings; it gets the port that is free."""


class Chaos(Section):
    """Which faults, how close to each other."""

    kinds: tuple[FaultKind, ...] = Field(
        (), description="faults, each as often as the others; empty: all that the run has"
    )
    gap: int = Field(4, ge=3, description="iterations between two faults")
    lies: int = Field(2, ge=1, description="requests that the reward server answers wrongly in one fault")
    patience_s: float = Field(120, gt=0, description="a run that gets no further for so many seconds hangs")


class ChaosConfig(RLJob):
    """An RL run under faults. What it needs and the config does not name is made in its folder."""

    folder: ClassVar[str] = "chaos"

    policy: str = Field("", description="policy to train; empty: a tiny one, made from nothing")
    prompts: Prompts = Field(Prompts(path=""), description="prompts; with an empty path: the help desk's")
    reward: Rewards = Field(
        (RemoteReward(kind="remote", name="server", url=OWN_SERVER),),
        description=f"rewards, that of {OWN_SERVER} being chaos's own server",
    )
    chaos: Chaos = Chaos()

    def idle(self) -> dict[str, str]:
        """What the schedule of faults decides."""
        return {
            **super().idle(),
            "rl.iterations": "give the number of faults, from which it follows",
            "experience.keep": "leave it out: every row is kept, so that it can be counted",
        }

    @property
    def own_server(self) -> bool:
        """Whether a reward is asked of the server that chaos brings."""
        return any(each.kind == "remote" and each.url == OWN_SERVER for each in self.reward)

    @property
    def faults(self) -> tuple[FaultKind, ...]:
        """Kinds of faults that this run is put through."""
        return self.chaos.kinds or tuple(kind for kind in get_args(FaultKind) if not self._lacks(kind))

    def _lacks(self, kind: FaultKind) -> str:
        """What a kind of fault would need that the run does not have; empty: nothing."""
        if kind.endswith(" engine") and self.rollout.tensor_parallel == 1:
            return "rollout.tensor_parallel above 1, which gives an engine processes of its own"
        if kind.startswith("server ") and not self.own_server:
            return f"a reward of kind remote whose url is {OWN_SERVER}"
        return ""

    @model_validator(mode="after")
    def _has_what_faults_need(self) -> Self:
        for kind in self.chaos.kinds:
            if lack := self._lacks(kind):
                raise ValueError(f"chaos.kinds has {kind!r}; expected {lack}")
        if not self.checkpoint_every:
            raise ValueError("checkpoint_every is 0; expected checkpoints to go on from")
        if bool(self.policy) != bool(self.prompts.path):
            raise ValueError("policy and prompts.path: expected both of your own, or neither")
        return self
