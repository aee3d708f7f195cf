"""What a process that runs strangers' code may still do: compute, and use files below its own folder. Linux on x86_64 only.

It stands on nothing but the standard library, since `sandbox.py` runs without anything else. Whatever cannot be had is an error:
code that is not locked down does not run.

What holds: limits on memory, CPU seconds, sizes of files and open files; no new privileges, and none of root's (capabilities);
Landlock (docs.kernel.org/userspace-api/landlock.html): files are read below Python's and the system's libraries, read and
written below the own folder, and nowhere else; seccomp: no sockets, so no network, also where no network namespace of its own
is granted, no other processes, no threads, no signals to others, no looking into others' memory.
What does not: holes of the kernel; names, sizes and times of files elsewhere can be asked for; CPU caches leak.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import struct

MIB = 2**20
FILE_BYTES, OPEN_FILES = MIB, 32
NO_NEW_PRIVS, DUMPABLE, DEATH_SIGNAL, SECCOMP = 38, 4, 1, 22
NEW_NET, NEW_IPC, NEW_USER = 0x40000000, 0x08000000, 0x10000000
READ, EVERYTHING = 0b1100, (1 << 13) - 1
"""Landlock's rights to files: read files and folders; all that its first version knows."""
SINCE = ((2, 1 << 13), (3, 1 << 14), (5, 1 << 15))
"""Rights to files by the version that brought them: move, truncate, ask devices."""
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache")
DENIED = (
    *(41, 42, 43, 49, 50, 53, 288),  # sockets: socket, connect, accept, bind, listen, socketpair, accept4
    *(56, 57, 58, 435, 59, 322),  # processes and threads: clone, fork, vfork, clone3, execve, execveat
    *(62, 200, 234, 129, 297, 424, 434, 438),  # signals to others: kill to pidfd_getfd
    *(
        101,
        310,
        311,
        312,
        302,
        160,
        298,
    ),  # others' memory and limits: ptrace, process_vm, kcmp, limits, perf_event_open
    *(155, 161, 165, 166, 272, 308, 428, 429, 430, 431, 432, 433, 442),  # namespaces and mounts
    *(
        76,
        90,
        91,
        268,
        452,
        92,
        93,
        94,
        260,
        132,
        235,
        261,
        280,
    ),  # what Landlock leaves: truncate, modes, owners, times
    *(188, 189, 190, 197, 198, 199, 303, 304, 133, 259),  # extended attributes, handles of files, mknod
    *(29, 30, 64, 68, 240, 319, 447),  # memory that outlives or escapes limits: shm, sem, msg, mq, memfd
    *(246, 248, 249, 250, 320, 321, 323, 425, 426, 427),  # kexec, keys, bpf, userfaultfd, io_uring
    *(163, 164, 167, 168, 169, 175, 176, 179, 227, 313, 135),  # the machine's: clocks, modules, swap, quotas
)
"""System calls of x86_64 that fail with EPERM (arch/x86/entry/syscalls/syscall_64.tbl)."""
X86_64, X32 = 0xC000003E, 0x40000000
KILL, PERMIT, REFUSE = 0x80000000, 0x7FFF0000, 0x00050000 | 1
"""What seccomp returns: kill the process, allow, fail with EPERM."""
LOAD, EQUAL, AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06
"""Instructions of classic BPF."""
_libc = ctypes.CDLL(None, use_errno=True)


def lock_down(folder: str, parent: int, *, memory_bytes: int, cpu_s: int) -> None:
    """Give up, for good, whatever this process does not need to compute.

    Args:
        folder: where it may read and write.
        parent: the process with which it ends.
        memory_bytes: of address space.
        cpu_s: seconds of computing; then it is killed.

    Raises:
        OSError: something of it cannot be had; says what.
    """
    if platform.machine() != "x86_64":
        raise OSError(f"strangers' code cannot be locked down on {platform.machine()}; expected x86_64")
    _limit(memory_bytes, cpu_s)
    _call("no_new_privs", _libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0))
    if _libc.unshare(NEW_NET | NEW_IPC):  # seccomp refuses sockets anyway, so a refusal is no harm
        _libc.unshare(NEW_USER | NEW_NET | NEW_IPC)
    _confine(folder)
    header, nothing = struct.pack("=Ii", 0x20080522, 0), struct.pack("=6I", *[0] * 6)
    _call("capset", _libc.capset(header, nothing))
    _call("dumpable", _libc.prctl(DUMPABLE, 0, 0, 0, 0))
    _call("death signal", _libc.prctl(DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0))
    if os.getppid() != parent:
        os._exit(1)
    _filter()


def _call(what: str, result: int) -> int:
    if result < 0:
        raise OSError(f"strangers' code cannot be locked down: {what}: {os.strerror(ctypes.get_errno())}")
    return result


def _limit(memory_bytes: int, cpu_s: int) -> None:
    limits = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_FSIZE: FILE_BYTES,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
    }
    for what, limit in limits.items():
        resource.setrlimit(what, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))


def _confine(folder: str) -> None:
    """Landlock, of the newest version that the kernel has."""
    version = _call("Landlock (Linux 5.13 or newer, not switched off)", _libc.syscall(444, None, 0, 1))
    rights = EVERYTHING | sum(right for since, right in SINCE if version >= since)
    words = [
        rights,
        *([3] if version >= 4 else []),
        *([3] if version >= 6 else []),
    ]  # no TCP; no signals, abstract sockets
    asked = struct.pack(f"={len(words)}Q", *words)
    rules = _call("Landlock's rules", _libc.syscall(444, asked, len(asked), 0))
    for path in (*LIBRARIES, os.path.dirname(os.__file__)):
        if os.path.exists(path):
            _allow(rules, path, READ if os.path.isdir(path) else 0b100)
    _allow(rules, folder, rights)
    _call("Landlock", _libc.syscall(446, rules, 0))
    os.close(rules)


def _allow(rules: int, path: str, rights: int) -> None:
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    _call(f"Landlock's rule of {path}", _libc.syscall(445, rules, 1, struct.pack("=Qi", rights, place), 0))
    os.close(place)


def _filter() -> None:
    """Seccomp: calls by number, after a look at whose numbers they are."""
    count = len(DENIED)
    code = [
        (LOAD, 0, 0, 4),
        (EQUAL, 1, 0, X86_64),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, 0),
        (AT_LEAST, count + 1, 0, X32),
        *((EQUAL, count - place, 0, number) for place, number in enumerate(DENIED)),
        (RETURN, 0, 0, PERMIT),
        (RETURN, 0, 0, REFUSE),
    ]
    text = b"".join(struct.pack("=HBBI", *each) for each in code)
    kept = ctypes.create_string_buffer(text, len(text))
    program = struct.pack("@HP", len(code), ctypes.addressof(kept))
    _call("seccomp", _libc.prctl(SECCOMP, 2, program, 0, 0))
