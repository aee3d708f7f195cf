"""The launchers' files without a cluster: linted, parsed, checked; and what they say when something is missing."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
BIN = Path(sys.executable).parent
SCRIPTS = [*sorted(LAUNCH.glob("*.sh")), LAUNCH / "slurm.sbatch"]

# The fields of KubeRay's API (ray.io/v1, reference of 1.6) that a RayJob and its groups may have.
RAY_JOB = {
    "entrypoint", "submissionMode", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "backoffLimit", "rayClusterSpec",
    "activeDeadlineSeconds", "jobId", "metadata", "runtimeEnvYAML", "clusterSelector", "submitterPodTemplate", "suspend",
    "entrypointNumCpus", "entrypointNumGpus", "entrypointResources", "submitterConfig", "managedBy", "deletionStrategy",
    "preRunningDeadlineSeconds",
}  # fmt: skip
RAY_CLUSTER = {
    "rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec", "workerGroupSpecs",
    "headServiceAnnotations", "suspend", "managedBy", "gcsFaultToleranceOptions", "upgradeStrategy", "networkPolicy",
}  # fmt: skip
HEAD_GROUP = {"rayStartParams", "template", "headService", "enableIngress", "serviceType", "resources", "labels"}
WORKER_GROUP = {
    "groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template", "numOfHosts", "suspend",
    "idleTimeoutSeconds", "scaleStrategy", "resources", "labels",
}  # fmt: skip


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], "HOME": environment.pop("HOME", "/nonexistent"), **environment}
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=60)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_have_no_findings(script: Path) -> None:
    done = subprocess.run([BIN / "shellcheck", "-x", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_dockerfile_has_no_findings_and_installs_what_pyproject_supports() -> None:
    done = subprocess.run([BIN / "hadolint", LAUNCH / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    lock = (LAUNCH / "requirements-cpu.txt").read_text()
    ray = next(line for line in lock.splitlines() if line.startswith("ray=="))
    for name in ("Dockerfile", "sky.yaml"):
        assert ray.replace("ray==", "ray[default]==") in (LAUNCH / name).read_text(), name
    assert f'rayVersion: "{ray[5:]}"' in (LAUNCH / "kuberay.yaml").read_text()


def test_kuberay_job_fits_the_api() -> None:
    job: dict[str, Any] = yaml.safe_load((LAUNCH / "kuberay.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert set(job["spec"]) <= RAY_JOB
    cluster = job["spec"]["rayClusterSpec"]
    assert set(cluster) <= RAY_CLUSTER
    assert cluster["authOptions"] == {"mode": "token"}
    assert set(cluster["headGroupSpec"]) <= HEAD_GROUP
    templates = [cluster["headGroupSpec"]]
    for group in cluster["workerGroupSpecs"]:
        assert set(group) <= WORKER_GROUP
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        templates.append(group)
    for group in templates:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values()), "KubeRay wants strings"
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": group["template"]["spec"]}
        kubernetes_validate.validate(json.loads(json.dumps(pod)), "1.32", strict=True)
    rollouts = next(group for group in cluster["workerGroupSpecs"] if group["groupName"] == "rollouts")
    assert rollouts["minReplicas"] < rollouts["maxReplicas"]


def test_a_misspelt_pod_field_would_be_found() -> None:
    job: dict[str, Any] = yaml.safe_load((LAUNCH / "kuberay.yaml").read_text())
    spec = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    spec["containers"][0]["volumeMount"] = spec["containers"][0].pop("volumeMounts")
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}
    with pytest.raises(Exception, match="volumeMount"):
        kubernetes_validate.validate(json.loads(json.dumps(pod)), "1.32", strict=True)


def test_sky_task_is_what_skypilot_reads() -> None:
    task: dict[str, Any] = yaml.safe_load((LAUNCH / "sky.yaml").read_text())
    assert set(task) <= {"name", "num_nodes", "workdir", "resources", "file_mounts", "envs", "secrets", "setup", "run"}
    for part in ("setup", "run"):
        done = subprocess.run(["bash", "-n"], input=task[part], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert str(task["envs"]["RAY_HEAD_PORT"]) != "6380", "that is SkyPilot's own Ray"
    assert "sky_templates/ray/start_cluster" in task["run"]
    assert "RAY_AUTH_MODE=token" in task["run"]


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["ray_job.sh"], {}, "nothing to run; expected a command of rlhf-dist"),
        (["ssh.sh"], {}, "no list of hosts"),
        (["ssh.sh", "/nowhere/hosts.txt"], {}, "/nowhere/hosts.txt: no such list of hosts"),
        (["slurm.sbatch"], {}, "submit it with `sbatch launch/slurm.sbatch COMMAND...`"),
        (["slurm.sbatch"], {"SLURM_JOB_ID": "1"}, "nothing to run"),
        (["slurm.sbatch", "demo"], {"SLURM_JOB_ID": "1"}, "give the run a folder with --run-dir"),
        (
            ["slurm.sbatch", "demo", "--run-dir", "x"],
            {"SLURM_JOB_ID": "1", "RLHF_VENV": "/nowhere"},
            "no rlhf-dist in /nowhere; run `bash launch/install.sh` once",
        ),
        (["slurm.sbatch"], {"SLURM_SUBMIT_DIR": "/tmp"}, "/tmp is not the project's folder"),
    ],
)
def test_what_is_missing_is_said_in_a_sentence(
    arguments: list[str], environment: dict[str, str], message: str, tmp_path: Path
) -> None:
    environment = {"SLURM_SUBMIT_DIR": str(ROOT), "HOME": str(tmp_path), **environment}
    done = run(["bash", str(LAUNCH / arguments[0]), *arguments[1:]], **environment)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_empty_list_of_hosts_and_a_readable_token_are_refused(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts.txt"
    hosts.write_text("# nobody\n\n")
    done = run(["bash", str(LAUNCH / "ssh.sh"), str(hosts)], HOME=str(tmp_path))
    assert "no host in it; expected one a line" in done.stderr
    token = tmp_path / "token"
    token.write_text("secret")
    token.chmod(0o644)
    hosts.write_text("localhost\n")
    (tmp_path / "ssh").write_text("#!/bin/sh\n")
    (tmp_path / "ssh").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = run(["bash", str(LAUNCH / "ssh.sh"), str(hosts)], HOME=str(tmp_path), RLHF_TOKEN_FILE=str(token), PATH=path)
    assert f"{token} can be read by others; run: chmod 600 {token}" in done.stderr


def test_a_token_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    script = f"set -eu; source {LAUNCH}/cluster_env.sh; share_token; echo $RAY_AUTH_MODE; cat $RAY_AUTH_TOKEN_PATH"
    first, again = (run(["bash", "-c", script], HOME=str(tmp_path)).stdout.splitlines() for _ in range(2))
    assert first[-2:] == again[-2:] == ["token", first[-1]]
    assert len(first[-1]) == 64
    assert (tmp_path / ".ray" / "rlhf_dist_token").stat().st_mode & 0o777 == 0o600
