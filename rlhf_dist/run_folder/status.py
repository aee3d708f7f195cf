"""`rlhf-dist status`: a run at a glance, from its folder or, on machines that do not see it, from its actors."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rlhf_dist.errors import EnvironmentProblem
from rlhf_dist.run_folder.console import COLUMNS, shown
from rlhf_dist.run_folder.folder import OVER
from rlhf_dist.run_folder.lock import is_held
from rlhf_dist.run_folder.names import STATUS

REFRESH_S = 1.0
CALL_S = 10.0
GONE = "gone"
"""Of a run whose actors ended: how, only its folder says."""
BAR = 60
"""Characters of the progress bar."""


def follow(run: str, *, address: str, once: bool) -> None:
    """Show a run's status until it is over.

    Raises:
        EnvironmentProblem: there is neither such a folder nor such a run on the cluster; names the runs that there are.
    """
    source = _Folder(Path(run)) if (Path(run) / STATUS).exists() else _Actors(run, address)
    console = Console()
    if once or not console.is_terminal:
        console.print(render(source.read()))
        return
    with Live(render(source.read()), console=console, auto_refresh=False) as live:
        while (status := source.read())["state"] not in (*OVER, GONE):
            live.update(render(status), refresh=True)
            time.sleep(REFRESH_S)
        live.update(render(status), refresh=True)


def read_status(run: Path) -> dict[str, Any]:
    """What the run's process told last; `gone` if that process ended without a word, as far as this machine knows."""
    alive = is_held(run)  # asked first: what ends afterwards has told so before
    status = {"run": run.name, "iteration": 0, "iterations": 0, "updated": 0.0}
    try:
        status["updated"] = (run / STATUS).stat().st_mtime
        status |= json.loads((run / STATUS).read_bytes())
        over, here = status["state"] in OVER, status["host"] == socket.gethostname()
    except (OSError, ValueError, TypeError, KeyError, RecursionError):  # a power cut may leave an empty file
        return status | {"state": GONE, "error": f"{run / STATUS} is damaged; expected JSON with a state"}
    if over or alive or not here:
        return status
    told = f"process {status.get('pid')} ended without a word while the run was {status['state']}"
    return status | {"state": GONE, "error": told}


class _Folder:
    """What the controller wrote last."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[str, Any]:
        return read_status(self._path)


class _Actors:
    """What the run's store knows: the controller's last status, and its own counts, as of now."""

    def __init__(self, run: str, address: str) -> None:
        import ray

        from rlhf_dist.cluster.session import NAMESPACE, attach, runs_on_cluster

        self._last = {"run": run, "state": "starting", "iteration": 0, "iterations": 0, "updated": time.time()}
        attach(address, f"{NAMESPACE}status")
        self._store = ray.get_actor("store", f"{NAMESPACE}{one_of(run, runs_on_cluster('store'))}")

    def read(self) -> dict[str, Any]:
        import ray
        from ray.exceptions import RayActorError

        try:
            found: Any = ray.get(self._store.overview.remote(), timeout=CALL_S)
        except RayActorError:
            found = {"state": GONE}
        self._last |= found
        return dict(self._last)


def one_of(run: str, runs: list[str]) -> str:
    """The run of this name, with the digest of its folder's place or without.

    Raises:
        EnvironmentProblem: there is none, or several; names those that there are.
    """
    found = [each for each in runs if run in (each, each.rpartition("-")[0])]
    if not found:
        raise EnvironmentProblem(
            f"{run}: no such run folder here, and no such run on the Ray cluster, which has {runs or 'none'}"
        )
    if len(found) > 1:
        raise EnvironmentProblem(f"{run}: the Ray cluster has {found}; say which")
    return found[0]


def render(status: dict[str, Any]) -> Group:
    """A status as text."""
    ago = time.time() - status["updated"]
    style = {"failed": "bold red", "stopped": "bold yellow", GONE: "bold yellow", "finished": "bold green"}.get(
        status["state"], "bold"
    )
    head = Text.assemble(
        (status["run"], "bold"),
        "  ",
        (status["state"], style),
        f"  iteration {status['iteration']} of {status['iterations']}",
    )
    if status["state"] not in OVER:
        head.append(
            f"  told {ago:.0f} s ago" + (f" by {status['host']}, process {status['pid']}" if "host" in status else "")
        )
    done = round(BAR * status["iteration"] / max(1, status["iterations"]))
    parts: list[Any] = [head, Text.assemble(("━" * done, "green"), ("━" * (BAR - done), "dim"))]
    if "error" in status:
        parts.append(Text(status["error"], style="red"))
    parts += [Text(f"note: {note}", style="yellow") for note in status.get("notes", ())]
    if "metrics" in status:
        cells = {name: shown(form, status["metrics"].get(key)) for name, (key, form) in COLUMNS.items()}
        parts.append(_table(cells))
    if "fleet" in status:
        parts.append(_table(status["fleet"]))
    if "rows" in status:
        parts.append(_table({name: str(count) for name, count in status["rows"].items()}))
    return Group(*parts)


def _table(values: dict[str, str]) -> Table:
    table = Table(*values, box=None, header_style="dim")
    table.add_row(*values.values())
    return table
