"""The token that Ray asks of whoever connects: a file that only its owner reads, before Ray would make one that all may read."""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from rlhf_dist.errors import EnvironmentProblem

VARIABLE = "RAY_AUTH_TOKEN_PATH"


def keep_token() -> None:
    """Make sure that there is a token that nobody else can read; where the home folder takes none, one for this process.

    Raises:
        EnvironmentProblem: the file that `RAY_AUTH_TOKEN_PATH` names cannot be made.
    """
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token" or os.environ.get("RAY_AUTH_TOKEN"):
        return
    if named := os.environ.get(VARIABLE):
        try:
            _keep(Path(named))
        except OSError as error:
            raise EnvironmentProblem(
                f"{VARIABLE} is {named}, where no token can be written ({error.strerror}); expected a file, or a place for one"
            ) from error
        return
    if home := os.environ.get("HOME"):
        with suppress(OSError):
            _keep(Path(home) / ".ray" / "auth_token")
            return
    folder = Path(tempfile.mkdtemp(prefix="rlhf-dist-token-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _keep(folder / "auth_token")
    os.environ[VARIABLE] = str(folder / "auth_token")


def _keep(path: Path) -> None:
    """Close a token of ours to others, or write a new one."""
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        with suppress(
            FileExistsError
        ):  # two runs that start at once: the first one's token is everybody's, and never half
            os.link(new, path)
        new.unlink()
    for each, mode in ((path.parent, 0o700), (path, 0o600)):
        found = each.stat()
        if found.st_uid == os.getuid() and found.st_mode & 0o077 and (each == path or path.parent.name == ".ray"):
            each.chmod(mode)
    path.read_bytes()  # that of another user, which we may not read, is none
