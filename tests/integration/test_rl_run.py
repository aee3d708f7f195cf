"""Whole runs on Ray, vLLM, DeepSpeed and Arrow."""

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_dist.checkpoint import verify
from rlhf_dist.errors import StorageError
from rlhf_dist.run_folder.status import read_status
from rlhf_dist.store.schema import EXPERIENCE
from tests.integration.pretended import pretended_gpus
from tests.runs import Folders, log_lines, metrics, small_disk, train

pytestmark = pytest.mark.usefixtures("ray_session")


def experience(path: Path) -> list[pa.Table]:
    files = sorted((path / "experience").glob("iteration=*/batch.arrow"))
    return [pa.ipc.open_file(pa.memory_map(str(file))).read_all() for file in files]


def test_run_folder_keeps_the_contract(plain: Path) -> None:
    summary = json.loads((plain / "summary.json").read_text())
    for key in [
        "stage",
        "iterations",
        "engine",
        "schedule",
        "gold_win_rate",
        "reward_start",
        "reward_end",
        "kl_end",
        "samples_per_second",
        "seconds",
        "weight_versions",
        "restarts",
        "versions",
    ]:
        assert key in summary, key
    assert (summary["engine"], summary["schedule"], summary["weight_versions"]) == ("vllm", "sync", 3)
    assert summary["gold_win_rate"] is None
    assert len((plain / "samples.jsonl").read_text().splitlines()) == 4
    assert "<svg" in (plain / "report.html").read_text()
    assert (plain / "config.yaml").exists()
    verify(plain / "checkpoints" / "step-000001")


def test_metrics_have_the_names_that_users_know(plain: Path) -> None:
    row = json.loads((plain / "metrics.jsonl").read_text().splitlines()[0])
    wanted = [
        "actor/ppo_kl",
        "actor/pg_clipfrac",
        "actor/entropy",
        "actor/pg_loss",
        "critic/vf_loss",
        "critic/score/mean",
        "critic/rewards/mean",
        "response_length/mean",
        "response_length/clip_ratio",
        "training/rollout_probs_diff_mean",
        "perf/throughput",
        "objective/kl",
        "objective/scores",
        "objective/rlhf_reward",
        "objective/entropy",
        "weights/version",
        "weights/bytes",
        "timing_s/gen",
        "timing_s/update",
        "timing_s/step",
    ]
    assert not [name for name in wanted if name not in row]
    assert row["training/rollout_probs_diff_mean"] < 1e-5
    assert metrics(plain)[1]["weights/probe_diff"] < 1e-4, "the first version was compared before the first iteration"
    assert abs(row["objective/kl"]) < 1e-4


def test_experience_is_whole_in_canonical_order_and_typed(plain: Path) -> None:
    tables = experience(plain)
    assert [table.num_rows for table in tables] == [16, 16]
    for iteration, table in enumerate(tables):
        assert table.schema.equals(EXPERIENCE, check_metadata=True)
        keys = list(zip(table["prompt_id"].to_pylist(), table["sample_index"].to_pylist(), strict=True))
        assert keys == sorted(set(keys))
        assert {span["version"] for spans in table["weight_versions"].to_pylist() for span in spans} == {iteration}
        for column in ("rollout_log_probs", "ref_log_probs"):
            assert [len(values) for values in table[column].to_pylist()] == [
                sum(s) for s in table["sampled"].to_pylist()
            ]


def test_final_policy_differs_from_the_start_and_loads_in_transformers(plain: Path, folders: Folders) -> None:
    verify(plain / "policy")
    trained = AutoModelForCausalLM.from_pretrained(plain / "policy")
    start = AutoModelForCausalLM.from_pretrained(folders.policy)
    moved = [(a - b).abs().max() for a, b in zip(trained.parameters(), start.parameters(), strict=True)]
    assert min(moved) > 0
    assert AutoTokenizer.from_pretrained(plain / "policy").eos_token == "<eos>"


def test_reference_log_probs_equal_the_policys_at_the_start(plain: Path) -> None:
    first = experience(plain)[0]
    rollout, reference = (
        torch.tensor(first[name].combine_chunks().flatten().to_pylist())
        for name in ("rollout_log_probs", "ref_log_probs")
    )
    torch.testing.assert_close(rollout, reference, atol=1e-4, rtol=0)


def gpus_of(run: Path) -> dict[str, set[str]]:
    """GPUs that each actor saw, by its log."""
    actors = [file.stem for file in (run / "logs").glob("*.jsonl")]
    return {actor: {line.get("gpus", "") for line in log_lines(run, actor)} for actor in actors}


def test_same_seed_gives_the_same_metrics_on_a_shared_gpu_and_a_trace_covers_every_actor(
    plain: Path, folders: Folders, tmp_path: Path
) -> None:
    """Ray says that there is a GPU, and torch that there is none: all is as on one, but where tensors are."""
    held_out = {"held_out": str(folders.prompts), "held_out_limit": 4}
    changes = {
        "cluster": {"placement": "colocated"},
        "weights": {"transport": "cuda_ipc"},  # on a CPU: from the rank's memory
        "telemetry": {"trace_iterations": [1]},
    }
    with pretended_gpus(1, cpus=2):
        again = train(folders.config(prompts=held_out, checkpoint_every=1, **changes), tmp_path / "colocated")
    assert metrics(again) == metrics(plain)
    seen = gpus_of(again)
    assert [seen[actor] for actor in ("learner-0", "rollout-0", "reward-0", "reference-0")] == [{"0"}] * 4

    events = json.loads((again / "trace.json").read_text())["traceEvents"]
    tracks = {e["tid"]: e["args"]["name"] for e in events if e["ph"] == "M" and e["pid"] == "rlhf_dist"}
    ours = [(tracks[e["tid"]], e["name"]) for e in events if e["ph"] == "X" and e["pid"] == "rlhf_dist"]
    for wanted in (
        ("controller", "experience"),
        ("controller", "update"),
        ("rollout-0", "generate"),
        ("rollout-0", "pull weights"),
        ("reward-0", "score"),
        ("reference-0", "score"),
        ("learner-0", "update"),
        ("learner-0", "states away"),
        ("reward-0", "rest"),
        ("store", "publish weights"),
    ):
        assert wanted in ours
    assert ours.count(("learner-0", "update")) == 1, "one iteration was asked for"
    assert any(e["pid"] != "rlhf_dist" for e in events), "Ray's own timeline is joined"


def test_two_zero_3_ranks_that_host_the_scorers_learn_what_one_does(
    plain: Path, folders: Folders, tmp_path: Path
) -> None:
    """They hold the reference too, of which each has a part."""
    changes = {
        "learner": {"ranks": 2, "zero_stage": 3},
        "scoring": {"reference_on": "learner"},
        "cluster": {"placement": "hybrid"},
        "weights": {"delta_every": 3, "probe_every": 1, "bucket_mib": 1},
    }
    with pretended_gpus(3, cpus=3):
        run = train(folders.config(**changes), tmp_path / "hybrid")
    seen = gpus_of(run)
    assert (seen["learner-0"], seen["learner-1"], seen["reward-0"]) == ({"0"}, {"1"}, {"0"})
    assert seen["rollout-0"] == {"2"}
    assert "ref_log_probs" not in experience(run)[0].schema.names
    assert [row["weights/version"] for row in metrics(run)] == [1, 2]
    for one, two in zip(metrics(plain), metrics(run), strict=True):
        for name in ("actor/pg_loss", "critic/vf_loss", "objective/kl", "actor/entropy", "critic/score/mean"):
            assert two[name] == pytest.approx(one[name], abs=2e-4), name
        assert two["weights/bytes"] < one["weights/bytes"], "what changed, compressed"
        assert two["actor/ref_kl"] == pytest.approx(one["actor/ref_kl"], abs=1e-5)


def kib_of(folder: Path) -> int:
    """What its files take on a disk, in whole blocks."""
    return sum(4 * -(-file.stat().st_size // 4096) for file in folder.rglob("*"))


def test_a_resumed_run_records_what_an_uninterrupted_one_does(folders: Folders, tmp_path: Path) -> None:
    """And functions see the columns of the very rows that were answered, in training and before and after it."""
    place = "tests.scoring.rules:of_place"
    changes = {
        "reward": [
            {"kind": "model", "path": str(folders.reward)},
            {"kind": "function", "name": "place", "path": place, "weight": 0.01},
        ],
        "gold_judge": place,
        "rl": {"iterations": 4},
        "algorithm": {"kl_target": 1.0, "reference_every": 1, "reference_mix": 0.5},
        "learner": {"zero_stage": 2, "policy": {"lr": 1e-3, "warmup": 0.3, "schedule": "linear"}},
        "rollout": {"engine": "transformers"},
        "prompts": {"held_out": str(folders.prompts), "held_out_limit": 4},
        "checkpoint_every": 2,
    }
    whole = train(folders.config(**changes), tmp_path / "whole")
    for batch in experience(whole):
        parts = [dict(row) for row in batch["score_parts"].to_pylist()]
        asked = [float(number) for number in batch["prompt_id"].to_pylist()]
        assert [row["place"] for row in parts] == [row["gold"] for row in parts] == asked
    samples = [json.loads(line) for line in (whole / "samples.jsonl").read_text().splitlines()]
    assert [row["gold_after"] for row in samples] == [row["gold_before"] for row in samples] == [0.0, 1.0, 2.0, 3.0]
    broken = tmp_path / "broken"
    shutil.copytree(whole, broken)
    # As if the process had died in iteration 3: two checkpoints' worth of files, and the newest of them is gone.
    shutil.rmtree(broken / "checkpoints" / "step-000004")
    (broken / "checkpoints" / ".step-000004.partial").mkdir()
    shutil.rmtree(broken / "policy")
    config = folders.config(**changes)
    with small_disk(tmp_path / "disk", kib=kib_of(broken) + kib_of(broken / "checkpoints") // 2):
        small = shutil.copytree(broken, tmp_path / "disk" / "small")
        with pytest.raises(
            StorageError, match="step-000004: cannot be written: No space left on device; [0-9] MiB are free"
        ):
            train(config, small, resume=True)
        found = read_status(small)
        assert (found["state"], found["iteration"]) == ("failed", 4)
        assert [each.name for each in (small / "checkpoints").iterdir()] == ["step-000002"], "whole or absent"
        shutil.rmtree(broken)
        shutil.copytree(small, broken)
    train(config, broken, resume=True)
    assert metrics(broken) == metrics(whole)
    assert (broken / "samples.jsonl").read_text() == (whole / "samples.jsonl").read_text()
    one, other = (AutoModelForCausalLM.from_pretrained(path / "policy") for path in (whole, broken))
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def uncompared(run: Path) -> list[dict[str, float]]:
    """Metrics without the comparisons of engine and learner, which a resumed run makes anew."""
    return [
        {key: value for key, value in row.items() if not key.startswith(("weights/probe_", "weights/decode_"))}
        for row in metrics(run)
    ]


def test_a_run_with_adapters_sends_what_they_change_and_goes_on_from_its_base_as_if_uninterrupted(
    folders: Folders, tmp_path: Path
) -> None:
    from peft import PeftModel

    changes = {
        "learner": {"lora": {"rank": 4}, "zero_stage": 2, "policy": {"lr": 1e-2}, "value": {"lr": 1e-2}},
        "rollout": {"engine": "transformers"},
        "weights": {"probe_every": 9},
        "checkpoint_every": 1,
    }
    config = folders.config(**changes)
    whole = train(config, tmp_path / "adapters")
    broken = shutil.copytree(whole, tmp_path / "adapters-broken", ignore=shutil.ignore_patterns("step-000002"))
    shutil.rmtree(broken / "policy")
    train(config, broken, resume=True)
    assert uncompared(broken) == uncompared(whole)
    for file in ("model.safetensors", "adapter/adapter_model.safetensors"):
        assert (broken / "policy" / file).read_bytes() == (whole / "policy" / file).read_bytes()

    first, last = metrics(whole)
    assert abs(first["objective/kl"]) < 1e-4 < last["objective/kl"]
    assert "ref_log_probs" not in experience(whole)[0].schema.names
    assert not (whole / "logs" / "reference-0.jsonl").exists()
    assert first["weights/probe_diff"] < 1e-4, "of the first version, whose adapters are zero"
    assert last["weights/probe_diff"] < 1e-4, "of the second, whatever probe_every says"
    assert first["weights/lora_kept"] == pytest.approx(1.0, abs=1e-3)
    merged, base = (AutoModelForCausalLM.from_pretrained(path) for path in (whole / "policy", folders.policy))
    head = base.lm_head.weight.numel() + base.get_input_embeddings().weight.numel()
    assert first["weights/bytes"] < 4 * (sum(each.numel() for each in base.parameters()) - head)
    ids = torch.arange(3, 30)[None]
    adapted = PeftModel.from_pretrained(base, whole / "policy" / "adapter")
    torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, atol=1e-4, rtol=1e-4)


def test_two_workers_give_the_samples_of_one_though_one_is_killed_and_replaced(
    plain: Path, folders: Folders, tmp_path: Path
) -> None:
    run = tmp_path / "killed"
    killed: list[int] = []

    def kill_one_when_it_generates() -> None:
        while not (lines := [x for x in log_lines(run, "rollout-1") if x["message"] == "pulled weights"]):
            time.sleep(0.01)
        killed.append(lines[-1]["pid"])
        os.kill(killed[0], signal.SIGKILL)

    threading.Thread(target=kill_one_when_it_generates, daemon=True).start()
    train(folders.config(rollout={"workers": 2}, weights={"delta_every": 3}), run)
    assert killed
    # Scores to the last bit; what the engine says of its own samples is not, since it hangs on what is decoded beside them.
    columns = ["prompt_id", "sample_index", "tokens", "sampled", "score", "score_parts", "ref_log_probs"]
    for calm, disturbed in zip(experience(plain), experience(run), strict=True):
        assert disturbed.select(columns).equals(calm.select(columns))
    assert json.loads((run / "summary.json").read_text())["restarts"] == 1
    states = metrics(run)[-1]
    assert states["fleet/workers/ready"] + states["fleet/workers/starting"] == 2, "another takes its place"


@pytest.mark.soak
def test_an_engine_over_the_gpus_of_two_ranks_samples_what_one_on_one_gpu_does(
    plain: Path, folders: Folders, tmp_path: Path
) -> None:
    shared = {"cluster": {"placement": "colocated"}, "rollout": {"tensor_parallel": 2}, "learner": {"ranks": 2}}
    with pretended_gpus(2, cpus=2):
        run = train(folders.config(**shared), tmp_path / "soak-colocated")
    assert gpus_of(run)["rollout-0"] == {"0,1"}
    for one, two in zip(metrics(plain), metrics(run), strict=True):
        assert two["critic/score/mean"] == pytest.approx(one["critic/score/mean"], abs=2e-4)
        assert two["actor/pg_loss"] == pytest.approx(one["actor/pg_loss"], abs=2e-4)


@pytest.mark.soak
@pytest.mark.parametrize("stage", [1, 2])
def test_two_ranks_of_any_zero_stage_learn_what_one_does(
    stage: int, plain: Path, folders: Folders, tmp_path: Path
) -> None:
    run = train(folders.config(learner={"ranks": 2, "zero_stage": stage}), tmp_path / f"soak-zero-{stage}")
    for one, two in zip(metrics(plain), metrics(run), strict=True):
        for name in ("actor/pg_loss", "critic/vf_loss", "objective/kl", "actor/entropy", "critic/score/mean"):
            assert two[name] == pytest.approx(one[name], abs=2e-4), name
