"""Settings of what PPO maximises: reward models, functions, servers, and the rules that no reward outweighs."""

from __future__ import annotations

import re
from collections import Counter
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, field_validator, model_validator

from rlhf_dist.config.expressions import expression
from rlhf_dist.config.sections import Section

IMPORT_PATH = r"^[\w.]+:\w+$"
NAME = r"^\w+$"
GOLD = "gold"
"""The reward component that is only watched."""
UNSAFE = "unsafe"
"""The part of a score that says whether any rule was broken, and the label of a classifier."""
DISAGREEMENT = "_disagreement"
"""After an ensemble's name: the standard deviation of its members."""


class OneReward(Section):
    """One of the rewards that are added up."""

    name: str = Field(pattern=NAME, description="under which it is logged")
    weight: float = Field(1.0, description="in the weighted sum; 0: only logged")


class ModelReward(OneReward):
    """A learned reward: one model, or several whose opinions are combined."""

    kind: Literal["model"] = Field("model", description="a reward model")
    name: str = Field("reward", pattern=NAME, description="under which it is logged")
    path: str = Field(description="Hugging Face folder or name (sequence classification; several labels: an ensemble)")
    combine: Literal["mean", "min", "mean-std"] = Field(
        "mean", description="of an ensemble: the mean, the lowest, or the mean less std_coef standard deviations"
    )
    std_coef: float = Field(1.0, ge=0, description="c of mean - c std (Coste et al. 2024, arXiv:2310.02743)")
    normalise: bool = Field(True, description="by the mean and std that the folder's reward.json holds, if it does")

    @model_validator(mode="after")
    def _disagreement_costs(self) -> ModelReward:
        if self.weight < 0 and self.combine != "mean":
            raise ValueError(
                f"combine mean beside a weight below 0, found {self.combine} beside {self.weight:g}, which would reward an "
                "ensemble's disagreement"
            )
        return self


class FunctionReward(OneReward):
    """A rule: a Python function of (prompt, answer), or of (prompts, completions), and of the row's columns by name."""

    kind: Literal["function"] = Field(description="a Python function")
    path: str = Field(
        pattern=IMPORT_PATH,
        description="`package.module:function` of (prompt, answer), or TRL's (prompts, completions), and columns by name: a real "
        "number, or None where it has none; it runs in a process of its own",
    )
    timeout_s: float = Field(60.0, gt=0, description="seconds granted to the function for one answer")


VARIABLE = r"^[A-Za-z_]\w*$"
"""Name of an environment variable."""
HEADER = r"^[A-Za-z0-9-]+$"
OURS = frozenset({"accept-encoding", "connection", "content-encoding", "content-length", "content-type", "host"})
"""Headers that say how a request is sent."""


class RemoteReward(OneReward):
    """A server that takes `{"items": [{"prompt", "answer"}]}` by POST and gives `{"scores": [number]}`.

    Where the prompt's row has other columns, its item has them too, as `"columns": {NAME: VALUE}`.
    """

    kind: Literal["remote"] = Field(description="an HTTP server")
    url: str = Field(
        pattern=r"^https?://", description="where to POST; it is written into files and logs, so it holds no secret"
    )
    token_env: str | None = Field(
        None, pattern=VARIABLE, description="environment variable with a token, sent as `Authorization: Bearer TOKEN`"
    )
    headers_env: dict[Annotated[str, Field(pattern=HEADER)], Annotated[str, Field(pattern=VARIABLE)]] = Field(
        {}, description="header to the environment variable that holds its value"
    )
    batch: int = Field(32, ge=1, description="answers per request")
    timeout_s: float = Field(
        10.0, gt=0, description="seconds granted to each request, from its begin to the reply's end"
    )
    attempts: int = Field(5, ge=1, description="tries per request, with exponential backoff, before the run stops")
    max_kib: int = Field(1024, ge=1, description="largest reply that is read, in KiB")

    @field_validator("url")
    @classmethod
    def _holds_no_secret(cls, url: str) -> str:
        try:
            parts = urlsplit(url)
            known = parts.hostname and (parts.port is None or parts.port)
        except ValueError:
            known = None
        if "@" in url or "?" in url or "#" in url:
            raise ValueError(
                "a URL without user, password, query and fragment, since it is written into files and logs; name the "
                "environment variable of a secret in `token_env` (a bearer token) or `headers_env`"
            )
        if not known or any(character.isspace() for character in url):
            raise ValueError("a URL with a host, and a port up to 65535")
        return url

    @model_validator(mode="after")
    def _headers_are_their_own(self) -> RemoteReward:
        names = [name.lower() for name in self.headers_env] + (["authorization"] if self.token_env else [])
        taken = sorted(OURS.intersection(names)) or sorted(name for name in names if names.count(name) > 1)
        if taken:
            raise ValueError(
                f"headers that are neither a request's own nor there twice (token_env is `authorization`), found {taken[0]}"
            )
        return self

    @property
    def secrets(self) -> dict[str, str]:
        """Environment variable to the setting that names it."""
        named = {variable: f"headers_env.{header}" for header, variable in self.headers_env.items()}
        return named | ({self.token_env: "token_env"} if self.token_env else {})


Reward = Annotated[ModelReward | FunctionReward | RemoteReward, Field(discriminator="kind")]


def _components(value: Any) -> Any:
    """A folder is short for one reward model, an import path for one function, and a part without a kind is a model."""
    if isinstance(value, str) and re.match(IMPORT_PATH, value):
        return ({"kind": "function", "name": value.rpartition(":")[2], "path": value},)
    if isinstance(value, str):
        return ({"kind": "model", "path": value},)
    if isinstance(value, (list, tuple)):
        return tuple({"kind": "model", **each} if isinstance(each, dict) else each for each in value)
    return value


Rewards = Annotated[tuple[Reward, ...], BeforeValidator(_components)]


class Safety(Section):
    """Rules about the answer that no reward outweighs: one that breaks any of them scores at most `cap`."""

    forbidden: tuple[str, ...] = Field((), description="regular expressions that must not match anywhere")
    required: tuple[str, ...] = Field((), description="regular expressions that must match somewhere")
    shortest: int = Field(0, ge=0, description="fewest tokens of an answer, its end among them: 2 refuses an empty one")
    longest: int | None = Field(None, ge=1, description="most tokens of an answer; null: no bound")
    classifier: str | None = Field(
        None, description="Hugging Face folder of a text classifier with a label `unsafe` (one label: its probability)"
    )
    threshold: float = Field(0.5, gt=0, lt=1, description="probability from which the classifier's verdict is unsafe")
    cap: float = Field(-1.0, description="highest score of an answer that breaks a rule")

    @field_validator("forbidden", "required")
    @classmethod
    def _are_expressions(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            expression(pattern)
        return patterns

    @model_validator(mode="after")
    def _band_is_not_empty(self) -> Safety:
        if self.longest is not None and self.longest < self.shortest:
            raise ValueError(f"shortest at most longest, found {self.shortest} above {self.longest}")
        return self


def devices_of_scorer(role: str, rewards: Rewards, tensor_parallel: int) -> int:
    """Devices of a scoring worker: one where it holds no model that could be cut."""
    return tensor_parallel if role != "reward" or any(reward.kind == "model" for reward in rewards) else 1


def check_names(rewards: tuple[Reward, ...], gold_judge: str | None) -> None:
    """Refuse names that would say two things: of two components, or of what the scorer writes beside components.

    It writes the verdicts `unsafe` and `unsafe_RULE`, an ensemble's `NAME_disagreement`, and `gold`, the judge's score.

    Raises:
        ValueError: names it.
    """
    twice = [name for name, count in Counter(reward.name for reward in rewards).items() if count > 1]
    if twice:
        raise ValueError(f"reward has {twice[0]!r} twice; expected a name of its own for each component")
    for reward in rewards:
        name = reward.name
        if name == UNSAFE or name.startswith(f"{UNSAFE}_") or name.endswith(DISAGREEMENT):
            raise ValueError(
                f"reward has a component {name!r}; expected another name, since {UNSAFE}, {UNSAFE}_* are verdicts of `safety` "
                f"and *{DISAGREEMENT} is the spread of an ensemble"
            )
        if name == GOLD and gold_judge:
            raise ValueError(f"reward has a component {GOLD!r} beside gold_judge; expected one of the two")
        if name == GOLD and reward.weight:
            raise ValueError(
                f"reward has a component {GOLD!r} of weight {reward.weight:g}; expected weight 0, since gold is only watched"
            )
