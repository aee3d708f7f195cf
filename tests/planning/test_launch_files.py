"""Every config in configs/gpu fits the machines that its name says, by the plan; models are shapes without weights."""

from pathlib import Path

import pytest
import yaml

from rlhf_dist.config import RLConfig, load
from rlhf_dist.planning.advice import advice
from rlhf_dist.planning.machine import GIB
from rlhf_dist.planning.plan import Machines, make_plan
from rlhf_dist.planning.roles import sizes_of
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


def test_kuberays_shared_memory_holds_the_object_store_of_an_8b_run(tmp_path: Path) -> None:
    cluster = yaml.safe_load((ROOT / "launch" / "kuberay.yaml").read_text())["spec"]["rayClusterSpec"]
    shared = [
        volume["emptyDir"]["sizeLimit"]
        for group in cluster["workerGroupSpecs"]
        for volume in group["template"]["spec"]["volumes"]
        if volume["name"] == "shm"
    ]
    assert len(shared) == len(cluster["workerGroupSpecs"])
    for name in ("8x80_8b_split", "8x80_8b_colocated"):
        config = loaded(ROOT / "configs" / "gpu" / f"{name}.yaml", tmp_path / name)
        plan = make_plan(config, MACHINES["8x80"], sizes_of(config))
        most = max(plan.store_bytes().values())
        assert all(float(limit.removesuffix("Gi")) * GIB >= most for limit in shared)
        limit = cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"]
        assert float(limit.removesuffix("Gi")) * GIB >= most + max(plan.host_bytes().values())
