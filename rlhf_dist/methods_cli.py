"""`rlhf-dist algorithms`, and where a command has gone that was called otherwise."""

from __future__ import annotations

from typing import Annotated

import typer

from rlhf_dist.errors import UserError
from rlhf_dist.files import shipped_config

ANY = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Of a command that takes whatever it is given."""


def algorithms(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="one method, with its settings")] = None,
) -> None:
    """Show the methods of reinforcement learning side by side, or one with its formulas, settings and what it biases."""
    from rlhf_dist.methods_view import console, show_method, show_methods

    if name is None:
        show_methods(console())
    else:
        show_method(console(), name, shipped_config(f"algorithms/{name}.yaml"))


def ppo(words: Annotated[list[str] | None, typer.Argument()] = None) -> None:
    """What RL was called when PPO was all of it."""
    raise UserError(
        "`rlhf-dist ppo` is now `rlhf-dist rl`; what stood in a config under `ppo` is under `rl` or `algorithm`"
    )
