"""Every failure that this package raises on purpose.

RlhfDistError
├── UserError              stops before anything expensive; one message that says what to change
│   ├── ConfigError        a setting: names file, key, value and what was expected
│   ├── DataError          a prompt, demonstration or judgement: names file and line
│   ├── ModelError         a model or tokenizer folder
│   └── EnvironmentProblem the machine: a busy port, no room for a KV cache, a missing package
└── RunError               a run that had started
    ├── WorkerDied         a process is gone or raised; carries its own traceback
    │   └── WorkerLost     the process or its node is gone, so another may take its place
    ├── WaitTimeout        a wait ran out; names the actor and what it was doing
    ├── RewardError        a reward that is not a finite number
    ├── WeightError        weights that failed their check: names, checksum or probe
    └── StoreError         a broken rule of the experience store
"""

from __future__ import annotations


class RlhfDistError(Exception):
    """Root of the tree."""


class UserError(RlhfDistError):
    """The user can mend it; the command line prints the message without a traceback."""


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
    """An actor's process or node is gone; the work that it held can be done by another."""


class WaitTimeout(RunError):
    """An actor did not answer in the time that the config grants it."""


class RewardError(RunError):
    """A reward is NaN or infinite."""


class WeightError(RunError):
    """A weight version failed verification; it was not and will not be sampled from."""


class StoreError(RunError):
    """A row was written, leased or consumed against the rules of the store."""
