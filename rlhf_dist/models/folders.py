"""Where a model is."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from rlhf_dist.errors import ModelError

FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "tokenizer*", "merges*", "vocab*")
"""What is fetched of a model on the hub: its weights without code or pickles, its configs and its tokenizer."""
SNAPSHOT = re.compile(r"/models--([^/]+?)--([^/]+)/snapshots/(\w+)/?$")
"""Owner, name and revision of a folder in which the hub's client keeps what it fetched."""
COPIES = ("original/*", "onnx/*", "openvino/*")
"""The same weights once more, in other forms."""


def resolve(path: str) -> str:
    """The folder of a model: a folder as it is, a name on the hub fetched, or found among what was fetched before.

    Everything that is read of a model lies in its folder, also what transformers would not look for under a name. A folder that
    another node fetched, and that is not here, is fetched here too, in the same revision.

    Raises:
        ModelError: there is no such folder, or no such name that can be reached.
    """
    if Path(path).is_dir():
        check_folder(path)
        return path
    if elsewhere := SNAPSHOT.search(path):
        owner, name, revision = elsewhere.groups()
        return _fetched(f"{owner}/{name}", revision)
    check_folder(path)
    return _fetched(path)


def is_hub_name(path: str) -> bool:
    """Whether a path that is no folder may be `owner/model` on the hub."""
    return path.count("/") == 1 and not path.startswith((".", "/", "~")) and all(path.split("/"))


def check_folder(path: str) -> None:
    """Refuse a path that looks like a folder but is not a model.

    Raises:
        ModelError: names the path and what is missing.
    """
    folder = Path(path)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"{path}: no config.json; expected a Hugging Face model folder")
    elif not is_hub_name(path):
        raise ModelError(f"{path}: no such folder; expected a Hugging Face model folder (or a hub name owner/model)")


@cache
def _fetched(name: str, revision: str | None = None) -> str:
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(name, revision=revision, allow_patterns=[*FILES], ignore_patterns=[*COPIES])
    except (OSError, ValueError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{name}: no such folder, and it cannot be fetched from the hub: {said}") from error
    check_folder(folder)
    return folder
