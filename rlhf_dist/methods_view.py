"""`rlhf-dist algorithms`: all methods side by side, and each with its formulas, settings and biases. Imports nothing heavy."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rlhf_dist.config import METHODS, Algorithm
from rlhf_dist.config.words import KL_GRADIENTS, kl_gradient, yaml_of
from rlhf_dist.errors import ConfigError

WIDTH = 100
"""Columns that both views need at least."""
COLUMNS: Mapping[str, int | None] = {
    "method": 21,
    "baseline": 13,
    "scale": 5,
    "whit-\nened": 5,
    "surrogate": 13,
    "aggregate": 13,
    "KL": 8,
    "further": None,
    "n": 2,
}
"""Of the table, with the longest word of each; `further` takes what is left, 12 of `WIDTH`."""
FROM_JUDGEMENTS = ("dpo", "ipo", "kto", "orpo", "simpo")
"""Names that are no method of RL, and that people may look for here."""


def console() -> Console:
    """Where it is printed, wide enough also where it is piped."""
    found = Console(highlight=False)
    return Console(highlight=False, width=max(found.width, WIDTH))


def resolved(name: str) -> Algorithm:
    """The settings of a method, none of them changed."""
    return Algorithm.model_validate({"method": name})


def show_methods(to: Console) -> None:
    """All methods: two differ where their rows do, and nowhere else."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold", expand=True)
    for head, width in COLUMNS.items():
        table.add_column(head, width=width, ratio=None if width else 1, justify="right" if head == "n" else "left")
    for name in METHODS:
        table.add_row(*map(escape, cells(name)))
    to.print(table)
    to.print(
        "n: answers to each prompt. KL: where it is taken off, its estimate and weight; own: with the estimate's own gradient.\n"
        "One method: rlhf-dist algorithms NAME. What a config does: rlhf-dist rl CONFIG --dry-run.",
        style="dim",
    )


def cells(name: str) -> list[str]:
    """A method's row."""
    a = resolved(name)
    answers = METHODS[name].rollout.get("samples_per_prompt", 1)
    whitened = "yes" if a.whiten_advantages else "no"
    found = a.baseline.replace("_weighted", "_ weighted")
    return [name, found, a.scale, whitened, _surrogate(a), a.aggregate, _kl(a), ", ".join(_further(name)), str(answers)]


def _surrogate(a: Algorithm) -> str:
    bounds = f"{1 - a.clip_ratio:g}.. {1 + (a.clip_ratio_high or a.clip_ratio):g}"
    return {
        "clip": f"clip {bounds.replace(' ', '')}",
        "sequence_clip": f"sequence_clip {bounds}",
        "weight_cap": f"weight_cap {a.weight_cap:g}",
        "soft_gate": f"soft_gate {a.gate_temperature:g}, {a.gate_temperature_negative:g}",
        "squared": f"squared {a.anchor} tau {a.tau:g}",
    }.get(a.surrogate, a.surrogate)


def _kl(a: Algorithm) -> str:
    if not a.pulls:
        return "none"
    estimator = a.kl_estimator if a.kl_in == "loss" else "k1"
    own = " own" if a.kl_in == "loss" and a.kl_gradient == "estimator" else ""
    return f"{a.kl_in} {estimator} {a.kl_coef:g}{own}"


def _further(name: str) -> list[str]:
    """What its settings have beside those of other columns, each where it is in effect and not PPO's."""
    a = resolved(name)
    told = {
        f"lambda {a.gae_lambda:g}": a.has_critic,
        "credit to_go": a.credit == "to_go",
        f"gamma {a.gamma:g}": "gamma" not in a.idle(),
        f"decay {a.running_decay:g}": a.baseline == "running_mean",
        f"V* of {a.reference_samples}": a.baseline == "optimal_value",
        "best of n": a.select == "best",
        f"teacher {a.teacher_coef:g}": a.teacher_coef > 0,
        f"entropy {a.entropy_coef:g} in {a.entropy_in}": a.entropy_counts,
        f"to {a.entropy_target or 0:g} nats": a.entropy_target is not None,
        f"filter {a.filter_rounds} rounds": a.filter_groups,
        f"overlong {a.overlong_share:g}": a.overlong_share > 0,
        f"{METHODS[name].rl.get('mini_batches')} steps": "mini_batches" in METHODS[name].rl,
    }
    return [text for text, holds in told.items() if holds]


def show_method(to: Console, name: str, config_file: Path) -> None:
    """One method.

    Args:
        to: where it is printed.
        name: the method's.
        config_file: an example of it.

    Raises:
        ConfigError: there is none of that name.
    """
    if name in FROM_JUDGEMENTS:
        raise ConfigError(f"{name} learns from judgements, without rewards; expected `rlhf-dist dpo`")
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.0)[0]
        raise ConfigError(f"no method is called {name!r}; did you mean {near}? `rlhf-dist algorithms` shows all")
    method, a = METHODS[name], resolved(name)
    head = Table.grid(padding=(0, 2))
    head.add_column(style="bold", no_wrap=True)
    head.add_column()
    facts = {
        name: method.title,
        "source": method.source,
        "advantage": f"A = {method.advantage}",
        "loss": method.loss,
        "biases": method.bias,
        "KL": f"{a.kl_coef:g} in the loss, {a.kl_estimator} {kl_gradient(a)}" if a.pulls and a.kl_in == "loss" else "",
        "config": _near(config_file),
    }
    if a.pulls and a.kl_in == "loss" and a.kl_gradient == "estimator":
        facts["KL"] += f"; `kl_gradient: exact` is {KL_GRADIENTS['exact']}"
    for part, what in facts.items():
        if what:
            head.add_row(part, escape(what))
    to.print(head)
    to.print()
    to.print(_settings(name))
    to.print(
        "Settings that it reads; the others are refused beside it. PPO's where they differ, - where PPO reads none.",
        style="dim",
    )


def _near(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _settings(name: str) -> Table:
    """What it reads, with PPO's values where these differ."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for head in ("setting", "value", "PPO"):
        table.add_column(head, no_wrap=True)
    table.add_column("meaning")
    own, of_ppo = in_effect(name), in_effect("ppo")
    for key, value in own.items():
        other = of_ppo.get(key, "-")
        changed = other != value
        meaning = Algorithm.model_fields[key].description if key in Algorithm.model_fields else ""
        row = (
            f"[bold]{key}[/]" if changed else key,
            escape(value),
            escape(other) if changed else "",
            escape(meaning or ""),
        )
        table.add_row(*row)
    return table


def in_effect(name: str) -> dict[str, str]:
    """Settings that a method reads, and those of other sections that it fills, as YAML has them."""
    a, method = resolved(name), METHODS[name]
    idle = {"method", "value_coef", *a.idle(), *(("scale", "credit", "select") if a.has_critic else ())}
    idle |= set() if a.teacher_coef else {"teacher_coef"}
    found: dict[str, Any] = {key: value for key, value in a.model_dump().items() if key not in idle}
    sections: Mapping[str, Mapping[str, Any]] = {"rl": method.rl, "rollout": method.rollout}
    ours = {
        "rl.mini_batches": 1,
        "rollout.samples_per_prompt": 1,
        "learner.critic": "model" if a.has_critic else "none",
    }
    ours |= {f"{section}.{key}": value for section, settings in sections.items() for key, value in settings.items()}
    return {key: yaml_of(value) for key, value in (found | ours).items()}
