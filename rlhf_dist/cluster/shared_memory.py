"""What an engine's processes keep in /dev/shm, written down while they run, so that nothing of a killed one stays there for ever.

vLLM's segments have names that tell nobody's (`psm_36895e6a`), and whoever is killed unlinks nothing. So each engine keeps a
ledger of the segments that its processes map, as a file in the same folder, and holds a lock on it: the kernel drops the lock
with the process, however it ends, and then anybody of the same user may sweep what the ledger names. Unlike process ids, a lock
is right in containers that share the folder, too.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import uuid
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

log = logging.getLogger(__name__)

FOLDER = Path("/dev/shm")
LEDGERS = "rlhf_dist-*.names"
LOOKS = 5
"""Times that a new segment is looked for in our processes; what they do not map by then is somebody else's."""


class Ledger:
    """Segments of this process and its children, one per line: inode and name."""

    def __init__(self, folder: Path = FOLDER) -> None:
        """Begin an empty one; what lies in the folder now is not ours.

        Args:
            folder: where shared memory has its names.
        """
        self._folder = folder
        self._looks = Counter(dict.fromkeys(os.listdir(folder), LOOKS))
        self._named: dict[str, int] = {}
        self.path = folder / f"rlhf_dist-{os.getpid()}-{uuid.uuid4().hex[:8]}.names"
        # Locked before it has its name: in between, somebody who sweeps would take it for that of a dead one.
        unlocked = folder / f".{self.path.name}"
        self._file = os.open(unlocked, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        unlocked.rename(self.path)

    def note(self, processes: Iterable[int]) -> None:
        """Write down what appeared in the folder and is mapped by one of these processes (ids)."""
        new = [name for name in os.listdir(self._folder) if self._looks[name] < LOOKS and name != self.path.name]
        if not new:
            return
        self._looks.update(new)
        mapped = set().union(*(_mapped_by(process, self._folder) for process in processes))
        for name in sorted(set(new) - self._named.keys()):
            with contextlib.suppress(FileNotFoundError):
                inode = (self._folder / name).stat().st_ino
                if inode in mapped:
                    self._named[name] = inode
                    os.write(self._file, f"{inode} {name}\n".encode())

    def close(self) -> None:
        """Unlink what is left of it all, and the ledger."""
        _unlink(self._folder, self._named)
        self.path.unlink(missing_ok=True)
        os.close(self._file)


def sweep(folder: Path = FOLDER) -> list[str]:
    """Unlink the segments of engines of this user whose process is gone; returns their names."""
    swept: list[str] = []
    for path in sorted(folder.glob(LEDGERS)):
        # Another user's, or another who sweeps was faster: not ours to do.
        with contextlib.suppress(OSError), path.open() as ledger:
            if os.fstat(ledger.fileno()).st_uid == os.getuid():
                fcntl.flock(ledger, fcntl.LOCK_EX | fcntl.LOCK_NB)
                swept += _unlink(folder, _read(ledger))
                path.unlink()
    if swept:
        log.info("swept shared memory of killed engines", extra={"segments": swept})
    return swept


def _read(lines: Iterable[str]) -> dict[str, int]:
    """Name to inode; the last line may be torn."""
    whole = [line.rstrip("\n").split(" ", 1) for line in lines if line.endswith("\n")]
    return {name: int(inode) for inode, name in whole}


def _unlink(folder: Path, named: dict[str, int]) -> list[str]:
    """Remove segments; a name that was taken again, with another inode, stays."""
    gone = []
    for name, inode in named.items():
        with contextlib.suppress(FileNotFoundError):
            if (folder / name).stat().st_ino == inode:
                (folder / name).unlink()
                gone.append(name)
    return gone


def _mapped_by(process: int, folder: Path) -> set[int]:
    """Inodes in the folder that a process maps; none when it is gone. Semaphores are mapped before they get their names."""
    try:
        lines = Path(f"/proc/{process}/maps").read_text().splitlines()
    except OSError:
        return set()
    return {int(line.split(maxsplit=5)[4]) for line in lines if f" {folder}/" in line}
