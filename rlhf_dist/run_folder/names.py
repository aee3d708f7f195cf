"""What the files of a run are called: a contract, since tools and people read them."""

from __future__ import annotations

from pathlib import Path

from rlhf_dist.telemetry.trackers import METRICS

__all__ = [
    "CONFIG",
    "METRICS",
    "POLICY",
    "QUARANTINE",
    "REPORT",
    "SAMPLES",
    "STATUS",
    "SUMMARY",
    "experience_file",
    "experience_files",
]

CONFIG = "config.yaml"
STATUS = "status.json"
SUMMARY = "summary.json"
REPORT = "report.html"
SAMPLES = "samples.jsonl"
QUARANTINE = "quarantine.jsonl"
POLICY = "policy"
"""The trained policy's folder, in Hugging Face layout."""


def experience_file(run: Path, iteration: int) -> Path:
    """Where an iteration's samples are kept."""
    return run / "experience" / f"iteration={iteration:06d}" / "batch.arrow"


def experience_files(run: Path) -> dict[int, Path]:
    """Kept samples by iteration, in order."""
    files = sorted(run.glob("experience/iteration=*/batch.arrow"))
    return {int(file.parent.name.partition("=")[2]): file for file in files}
