"""Every failure that this package raises on purpose, each with the exit code of a command that it ends.

RlhfDistError
├── UserError              2: stops before anything expensive; one message that says what to change
│   ├── ConfigError        a setting: names file, key, value and what was expected
│   ├── DataError          a prompt, demonstration or judgement: names file and line
│   ├── ModelError         a model or tokenizer folder
│   └── EnvironmentProblem the machine: a busy port, no room for a KV cache, a missing package
└── RunError               a run that had started; 1: code, ours or the user's, raised
    ├── WorkerDied         a process is gone or raised; carries its own traceback
    │   ├── WorkerLost     4, infrastructure: the process or its node is gone or hangs, so another may take its place
    │   └── WorkersExhausted 4: more workers were lost in an iteration than may be replaced
    ├── WaitTimeout        4: a wait ran out; names the actor and what it was doing
    ├── ClusterLost        4: Ray itself is gone, and all actors with it
    ├── StorageError       4: the run folder cannot be written: its disk is full, read-only or gone
    ├── NumbersError       3, data: a loss, gradient, log-prob, value or weight is not finite, or a bound is passed; names samples
    │   └── RewardError    a reward that failed, or is not a finite number
    ├── WeightError        weights that failed their check: names, checksum or probe
    └── StoreError         a broken rule of the experience store
"""

from __future__ import annotations

from typing import ClassVar

from rlhf_dist.secrets import masked


class RlhfDistError(Exception):
    """Root of the tree."""

    exit_code: ClassVar[int] = 1
    """Of a command that this error ends."""

    def __str__(self) -> str:
        """The message, wherever it goes, without secrets."""
        return masked(super().__str__())


class UserError(RlhfDistError):
    """The user can mend it; the command line prints the message without a traceback."""

    exit_code = 2


class ConfigError(UserError):
    """A setting is unknown, of the wrong type, out of bounds, or contradicts another."""


class DataError(UserError):
    """A data file is missing, empty or malformed."""


class ModelError(UserError):
    """A model or tokenizer folder is missing, unreadable or does not fit the others."""


class EnvironmentProblem(UserError):
    """The machine lacks something the run needs."""


class RunError(RlhfDistError):
    """Something failed while the run was going on."""


class WorkerDied(RunError):
    """An actor died or raised."""


class WorkerLost(WorkerDied):
    """An actor's process or node is gone, or hangs; the work that it held can be done by another."""

    exit_code = 4


class WorkersExhausted(WorkerDied):
    """More workers were lost in one iteration than the config lets be replaced."""

    exit_code = 4


class WaitTimeout(RunError):
    """An actor did not answer in the time that the config grants it."""

    exit_code = 4


class ClusterLost(RunError):
    """Ray itself is gone, and with it all actors."""

    exit_code = 4


class StorageError(RunError):
    """The run folder cannot be written: its disk is full, read-only or gone."""

    exit_code = 4


class NumbersError(RunError):
    """A number that training depends on is not finite, or passes a bound that the user set."""

    exit_code = 3


class RewardError(NumbersError):
    """A reward failed, or is NaN or infinite."""


class WeightError(RunError):
    """A weight version failed verification; it was not and will not be sampled from."""


class StoreError(RunError):
    """A row was written, leased or consumed against the rules of the store."""
