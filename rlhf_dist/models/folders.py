"""Where a model is."""

from __future__ import annotations

from pathlib import Path

from rlhf_dist.errors import ModelError


def check_folder(path: str) -> None:
    """Refuse a path that looks like a folder but is not a model.

    Raises:
        ModelError: names the path and what is missing.
    """
    folder = Path(path)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"{path}: no config.json; expected a Hugging Face model folder")
    elif folder.is_absolute() or path.startswith(".") or path.count("/") != 1:
        raise ModelError(f"{path}: no such folder; expected a Hugging Face model folder (or a hub name owner/model)")
