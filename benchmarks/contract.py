"""What every benchmark prints and writes: one table, and one JSON file of the same shape."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def arguments(description: str) -> argparse.Namespace:
    """`--quick` and `--json FILE`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--quick", action="store_true", help="the same keys at reduced size, within two minutes on two cores"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    return parser.parse_args()


def machine() -> str:
    """Processor, cores and memory."""
    models = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores, {gib:.0f} GiB"


def publish(name: str, figures: dict[str, float], rows: Sequence[dict[str, Any]], target: Path | None) -> None:
    """Print the rows and the figures, and write them where asked to."""
    console = Console(width=150)
    if rows:
        table = Table(*rows[0].keys(), title=f"{name} on {machine()}")
        for row in rows:
            table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
        console.print(table)
    for key, value in figures.items():
        console.print(f"{key} = {value:.4g}")
    if target is not None:
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        record = {"name": name, "when": when, "machine": machine(), "figures": figures, "rows": list(rows)}
        target.write_text(json.dumps(record, indent=2) + "\n")
