"""Every config in configs/gpu fits the machines that its name says, by the plan; models are shapes without weights."""

import re
from pathlib import Path

import pytest
import yaml
from ray._private import ray_constants

from rlhf_dist.config import RLConfig, load
from rlhf_dist.planning.advice import advice
from rlhf_dist.planning.machine import GIB
from rlhf_dist.planning.plan import Machines, Plan, make_plan
from rlhf_dist.planning.roles import sizes_of
from rlhf_dist.planning.weight_seconds import THREADS
from tests.shapes import PARAMETERS, write_shape

ROOT = Path(__file__).parent.parent.parent
CONFIGS = sorted((ROOT / "configs" / "gpu").glob("*.yaml"))
MACHINES = {"1x80": Machines(1, 1, 80), "8x80": Machines(1, 8, 80), "4x8": Machines(4, 8, 80)}
REWARDS = {"1.5b": "1.5b", "8b": "8b", "70b": "8b"}


def loaded(file: Path, folder: Path) -> RLConfig:
    size = file.stem.split("_")[1]
    policy, reward = write_shape(size, folder / "p"), write_shape(REWARDS[size], folder / "r", kind="value")
    return load(RLConfig, file, [f"policy={policy}", f"reward={reward}"])


def test_there_is_a_config_for_every_machine_and_size_that_fit_each_other() -> None:
    assert [file.stem for file in CONFIGS] == [
        "1x80_1.5b",
        "4x8_70b",
        "4x8_8b",
        "8x80_1.5b_colocated",
        "8x80_1.5b_split",
        "8x80_8b_colocated",
        "8x80_8b_split",
    ]


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_the_plan_of_a_config_fits_its_machines(file: Path, tmp_path: Path) -> None:
    config, machines = loaded(file, tmp_path), MACHINES[file.stem.split("_")[0]]
    assert config.run_dir == f"runs/{file.stem}"
    sizes = sizes_of(config)
    assert sizes["policy"].parameters == PARAMETERS[file.stem.split("_")[1]]
    plan = make_plan(config, machines, sizes)
    assert plan.problems() == []
    assert advice(config, machines, sizes) == []
    # A plan that would fit anywhere says nothing: half of the memory is too little.
    smaller = Machines(machines.nodes, machines.gpus_per_node, 20)
    assert make_plan(config, smaller, sizes).problems()


STEP = 16
"""Gibibytes to which what a node must have is rounded up."""
RAYS_SHARE, RAYS_SHM = 0.3, 0.95
"""Of a node's memory, and of its /dev/shm, that Ray's object store gets at most where nobody says."""


def needs(plan: Plan, node: int) -> tuple[int, int]:
    """GiB of memory, /dev/shm in it, that a node must have, and GiB of /dev/shm."""
    store, processes = plan.store_bytes().get(node, 0.0), plan.host_bytes()[node]
    memory, shm = max(processes + store / RAYS_SHM, store / RAYS_SHARE), store / RAYS_SHM
    return int(STEP * -(-memory // (STEP * GIB))), int(STEP * -(-shm // (STEP * GIB)))


def test_rays_own_object_store_is_large_enough_for_every_config(plans: dict[str, Plan]) -> None:
    """No launcher says how large it is to be: Ray takes a share of the memory, and so much at most."""
    assert ray_constants.DEFAULT_OBJECT_STORE_MEMORY_PROPORTION == RAYS_SHARE
    for name, plan in plans.items():
        assert max(plan.store_bytes().values()) <= ray_constants.DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES, name
    scripts = "".join(
        file.read_text() for file in (ROOT / "launch").iterdir() if file.suffix in (".sh", ".sbatch", ".yaml")
    )
    assert "object-store-memory" not in scripts


def planned(file: Path, folder: Path) -> Plan:
    config = loaded(file, folder)
    return make_plan(config, MACHINES[file.stem.split("_")[0]], sizes_of(config))


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Plan]:
    return {file.stem: planned(file, tmp_path_factory.mktemp(file.stem)) for file in CONFIGS}


def test_the_launchers_readme_says_what_each_config_needs_of_a_node(plans: dict[str, Plan]) -> None:
    rows = []
    for name, plan in plans.items():
        memory, shm = (max(sizes) for sizes in zip(*(needs(plan, node) for node in plan.host_bytes()), strict=True))
        machines = plan.machines
        cores = machines.gpus_per_node * THREADS
        rows.append(f"| `{name}` | {machines.nodes} × {machines.gpus_per_node} | {cores} | {memory} GiB | {shm} GiB |")
    told = (ROOT / "launch" / "README.md").read_text()
    assert [row for row in rows if row not in told] == [], "\n".join(rows)


def kuberays_groups() -> dict[str, tuple[int, int, int, int, int]]:
    """Of each group of workers the most pods, and of a pod GPUs, cores, GiB of memory and of /dev/shm."""
    cluster = yaml.safe_load((ROOT / "launch" / "kuberay.yaml").read_text())["spec"]["rayClusterSpec"]
    found = {}
    for group in cluster["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        (worker,) = pod["containers"]
        limits = worker["resources"]["limits"]
        assert limits == worker["resources"]["requests"], "Ray counts what it is granted"
        (shm,) = (volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"] if volume["name"] == "shm")
        memory, shared = (int(size.removesuffix("Gi")) for size in (limits["memory"], shm))
        found[group["groupName"]] = (
            group["maxReplicas"],
            int(limits["nvidia.com/gpu"]),
            int(limits["cpu"]),
            memory,
            shared,
        )
    return found


@pytest.mark.parametrize("name", [file.stem for file in CONFIGS if not file.stem.startswith("4x8")])
def test_kuberays_pods_hold_every_config_of_one_node(name: str, plans: dict[str, Plan]) -> None:
    _, gpus, cores, memory, shm = kuberays_groups()["learners"]
    plan = plans[name]
    assert gpus >= plan.machines.gpus_per_node
    assert cores >= gpus * THREADS
    assert memory >= needs(plan, 0)[0]
    assert shm >= needs(plan, 0)[1]


def test_kuberays_rollout_pods_hold_the_engines_of_an_8b_run(plans: dict[str, Plan]) -> None:
    _, gpus, cores, memory, shm = kuberays_groups()["rollouts"]
    assert cores >= gpus * THREADS
    engines = needs(plans["4x8_8b"], 3)
    assert memory >= engines[0]
    assert shm >= engines[1]


def test_what_kuberays_head_says_of_the_largest_run_is_what_its_plan_needs(plans: dict[str, Plan]) -> None:
    plan = plans["4x8_70b"]
    learners, engines = (
        {seat.node for seat in plan.seats for actor in seat.actors if actor.role == role}
        for role in ("learner", "rollout")
    )
    (memory, shm), (beside, _) = needs(plan, min(learners)), needs(plan, min(engines))
    told = " ".join((ROOT / "launch" / "kuberay.yaml").read_text().replace("#", " ").split())
    assert f"{len(learners)} learner pods of 8 GPUs and {memory}Gi" in told
    assert f"{len(engines)} rollout pod of 8 GPUs and {beside}Gi" in told
    assert f"sizeLimit {shm}Gi" in told


def test_clouds_and_slurm_ask_for_nodes_that_hold_the_configs_of_eight_gpus(plans: dict[str, Plan]) -> None:
    wanted = [needs(plan, 0) for name, plan in plans.items() if name.startswith("8x80")]
    sky = yaml.safe_load((ROOT / "launch" / "sky.yaml").read_text())
    kind, count = sky["resources"]["accelerators"].split(":")
    assert (kind, int(count), sky["num_nodes"]) == ("H100", 8, 1)
    assert int(sky["resources"]["cpus"].removesuffix("+")) >= 8 * THREADS
    assert int(sky["resources"]["memory"].removesuffix("+")) >= max(memory for memory, _ in wanted)
    slurm = (ROOT / "launch" / "slurm.sbatch").read_text()
    told = re.search(r"^##SBATCH --gpus-per-node=8 --cpus-per-task=(\d+) --mem=0 ", slurm, re.MULTILINE)
    assert told is not None, "all of a node's memory"
    assert int(told[1]) >= 8 * THREADS
