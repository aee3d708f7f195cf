"""pyproject.toml, the lock and the launchers agree with each other."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / "launch" / "requirements-cpu.txt").read_text()
PINS = {
    requirement.name: requirement
    for requirement in map(Requirement, (line for line in LOCK.splitlines() if not line.startswith("#")))
}
EXTRAS = PROJECT["project"]["optional-dependencies"]


def test_lock_pins_every_package_exactly():
    assert len(PINS) > 100
    loose = [name for name, pin in PINS.items() if not re.fullmatch(r"==[^*,]+", str(pin.specifier))]
    assert loose == []


@pytest.mark.parametrize(
    "text",
    [*PROJECT["project"]["dependencies"], *EXTRAS["cpu"], *EXTRAS["dev"], *PROJECT["build-system"]["requires"]],
)
def test_lock_satisfies_every_declared_requirement(text):
    wanted = Requirement(text)
    pin = PINS.get(canonicalize_name(wanted.name))
    assert pin is not None, f"{text} is not in the lock: run launch/lock.sh"
    version = str(pin.specifier).removeprefix("==")
    assert wanted.specifier.contains(version, prereleases=True), f"{pin} does not satisfy {text}: run launch/lock.sh"


def test_lock_has_a_cpu_torch_and_none_of_its_cuda_companions():
    assert str(PINS["torch"].specifier).endswith("+cpu")
    cuda = [name for name in PINS if name.startswith(("torchvision", "torchaudio", "torchcodec", "nvidia"))]
    assert cuda == []


def test_environment_is_the_one_that_the_lock_describes():
    run = subprocess.run(
        [sys.executable, "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check"],
        capture_output=True,
        text=True,
        check=True,
    )
    found = dict(line.split("==") for line in run.stdout.splitlines() if "==" in line)
    found = {canonicalize_name(name): version for name, version in found.items()}
    different = {
        name: (found.get(name), str(pin.specifier))
        for name, pin in PINS.items()
        if f"=={found.get(name)}" != str(pin.specifier)
    }
    assert different == {}, "installed and locked versions differ: run launch/install.sh"


def test_package_version_is_the_declared_one():
    namespace: dict[str, str] = {}
    exec((ROOT / "rlhf_dist" / "__init__.py").read_text(), namespace)
    assert namespace["__version__"] == PROJECT["project"]["version"]


def test_light_modules_import_nothing_heavy():
    code = (
        "import sys, rlhf_dist.config, rlhf_dist.errors, rlhf_dist.doctor\n"
        "print([name for name in ('torch', 'ray', 'vllm', 'deepspeed', 'transformers') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_wheel_holds_the_package_and_its_configs(tmp_path):
    code = f"from hatchling.build import build_wheel; print(build_wheel({str(tmp_path)!r}))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    (wheel,) = tmp_path.glob("*.whl")
    listing = subprocess.run(
        [sys.executable, "-m", "zipfile", "-l", str(wheel)], capture_output=True, text=True, check=True
    ).stdout
    assert "rlhf_dist/doctor.py" in listing
    missing = [
        path.name for path in (ROOT / "configs").glob("*.yaml") if f"rlhf_dist/configs/{path.name}" not in listing
    ]
    assert missing == []
    assert not re.search(r"^tests/", listing, re.MULTILINE)


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "launch").glob("*.sh")))
def test_launch_script_is_valid_bash(script):
    run = subprocess.run(["bash", "-n", str(ROOT / "launch" / script)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_second_install_is_skipped_from_any_folder(tmp_path):
    stamp = (ROOT / ".venv" / "stamp").stat().st_mtime_ns
    run = subprocess.run(
        ["bash", str(ROOT / "launch" / "install.sh")], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert ".venv is up to date" in run.stdout
    assert "installing" not in run.stdout
    assert (ROOT / ".venv" / "stamp").stat().st_mtime_ns == stamp


def test_missing_python_is_said_in_a_sentence(tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "dirname", "uname", "cat", "sha256sum", "grep"):
        (tools / tool).symlink_to(Path("/usr/bin") / tool)
    launch = tmp_path / "project" / "launch"
    launch.mkdir(parents=True)
    (launch / "install.sh").write_text((ROOT / "launch" / "install.sh").read_text())
    (launch / "requirements-cpu.txt").write_text(LOCK)
    (tmp_path / "project" / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    run = subprocess.run(
        [str(tools / "bash"), str(launch / "install.sh")],
        env={**os.environ, "PATH": str(tools)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert "error: no Python from 3.11 to 3.14 on the PATH" in run.stderr
