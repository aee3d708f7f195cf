"""Two and three machines, each a network namespace with a Ray node: placement, joining, dying."""

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from rlhf_dist.config import dump
from tests.integration.hosts import BIN, Hosts, hosts, not_permitted
from tests.runs import Folders, log_lines

REASON = not_permitted()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))

ITERATIONS, ROWS = 4, 640
"""So many samples that an iteration lasts about as long as a worker takes to start."""


@pytest.fixture
def machines() -> Iterator[Hosts]:
    with hosts(3) as made:
        yield made


def done(run: Path) -> int:
    file = run / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


def wait_for(condition: Callable[[], bool], driver: subprocess.Popen[bytes], output: Path, *, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert driver.poll() is None, f"the run ended with {driver.returncode}:\n{output.read_text()[-3000:]}"
        assert time.monotonic() < deadline, f"nothing within {timeout} s:\n{output.read_text()[-3000:]}"
        time.sleep(0.2)


def test_a_run_on_three_nodes_of_which_one_joins_late_and_one_dies(
    machines: Hosts, folders: Folders, tmp_path: Path
) -> None:
    machines.start_node(0, cpus=3)
    machines.start_node(1, cpus=1)
    run, output, file = tmp_path / "run", tmp_path / "output", tmp_path / "rl.yaml"
    rollout = {
        "workers": {"min": 1, "max": 2},
        "engine": "transformers",
        "max_new_tokens": 48,
        "samples_per_prompt": 10,
    }
    config = folders.config(rl={"iterations": ITERATIONS, "prompts_per_iteration": ROWS // 10}, rollout=rollout)
    file.write_text(dump(config))
    command = [str(BIN / "rlhf-dist"), "rl", str(file), "--address", machines.cluster, "--run-dir", str(run)]
    driver = machines.spawn(0, command, output)

    wait_for(lambda: done(run) >= 1, driver, output, timeout=300)
    machines.start_node(2, cpus=1)
    joined_in = done(run)
    wait_for(
        lambda: any(line["message"] == "generated" for line in log_lines(run, "rollout-1")), driver, output, timeout=120
    )
    works_in = next(line["iteration"] for line in log_lines(run, "rollout-1") if line["message"] == "generated")
    assert works_in <= joined_in + 1, "the node that joined got no work within one iteration"

    machines.kill(1)
    assert driver.wait(timeout=400) == 0, output.read_text()[-3000:]

    nodes = {
        actor: {line["node"] for line in log_lines(run, actor)} for actor in ("learner-0", "rollout-0", "rollout-1")
    }
    assert nodes == {name: {machines.address(host)} for name, host in zip(nodes, (0, 1, 2), strict=True)}
    for iteration in range(ITERATIONS):
        file = run / "experience" / f"iteration={iteration:06d}" / "batch.arrow"
        table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
        keys = Counter(zip(table["prompt_id"].to_pylist(), table["sample_index"].to_pylist(), strict=True))
        assert len(keys) == table.num_rows == ROWS, "a sample is missing or doubled"
        assert {span["version"] for spans in table["weight_versions"].to_pylist() for span in spans} == {iteration}
    summary = json.loads((run / "summary.json").read_text())
    assert summary["restarts"] == 1
    assert summary["weight_versions"] == ITERATIONS + 1


LEARN_ON_TWO_NODES = """
import sys
from pathlib import Path

from rlhf_dist.cluster.session import session
from rlhf_dist.cluster.watch import Watch
from rlhf_dist.config import Cluster, Learner, Optimizer, Timeouts
from rlhf_dist.errors import EnvironmentProblem
from rlhf_dist.learner.starting import GroupPlace, start_group
from rlhf_dist.learner.model_spec import ModelSpec

address, model, run_dir = sys.argv[1:]
with session(Cluster(address=address), cpus=0, gpus=0, namespace="test"):
    options = [{"num_cpus": 0, "num_gpus": 0, "resources": {f"host{number}": 1}} for number in (1, 2)]
    place = GroupPlace(Learner(ranks=2, zero_stage=3, threads=1), options, Path(run_dir), Watch(), Timeouts())
    spec = ModelSpec(model, "policy", Optimizer(), 1)
    try:
        group = start_group(place)
        group.load({"policy": spec}, run_dir=Path(run_dir), seed=0)
    except EnvironmentProblem as error:
        print("PROBLEM", error)
    else:
        group.save("policy", Path(run_dir) / "saved")
        group.written(Path(run_dir))
        print("SAVED")
"""


def test_ranks_on_two_nodes_learn_together_or_say_who_cannot_reach_whom(
    machines: Hosts, folders: Folders, tmp_path: Path
) -> None:
    for host in range(3):
        machines.start_node(host, cpus=1)
    script = [sys.executable, "-c", LEARN_ON_TWO_NODES, machines.cluster, str(folders.policy), str(tmp_path)]
    assert "SAVED" in machines.run(0, script, timeout=240)
    assert (tmp_path / "saved" / "model.safetensors").is_file()
    nodes = [line["node"] for rank in (0, 1) for line in log_lines(tmp_path, f"learner-{rank}")]
    assert set(nodes) <= {machines.address(1), machines.address(2)}

    machines.block(1, 2)
    told = machines.run(0, script, timeout=240)
    one, other = machines.address(1), machines.address(2)
    assert f"learner-0 on {one}: cannot reach {other}:" in told
    assert f"learner-1 on {other}: cannot reach {one}:" in told
    assert "Nodes must reach each other on all ports" in told
