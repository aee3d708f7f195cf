"""A scorer whose model is cut over processes, as an actor of a fleet."""

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_dist.cluster import pulse
from rlhf_dist.cluster.fleet import Fleet, FleetSize, Service, WorkerKind
from rlhf_dist.cluster.watch import Watch
from rlhf_dist.records import PromptTask, RowKey, Sample
from rlhf_dist.scoring.reference import ReferenceScorer
from rlhf_dist.scoring.resting import at_rest
from rlhf_dist.scoring.worker import ScoringWorker
from rlhf_dist.store.actor import Store
from rlhf_dist.store.experience import ExperienceIndex
from rlhf_dist.store.row import rollout_batch, rows_of
from tests.runs import SHAPE

pytestmark = pytest.mark.usefixtures("ray_session")
START_S = 240


def sampled(store: Any, iteration: int) -> Any:
    """A finished sample of an iteration, handed to the store; its batch."""
    import ray

    task, tokens = PromptTask(iteration, 7, (3, 4, 5), 1), (6, 7, 8)
    batch = rollout_batch(
        [Sample(RowKey(iteration, 7, 0), task.tokens, tokens, (-1.0,) * 3, "stop", ((iteration, 3),))]
    )
    ray.get([store.submit.remote([task]), store.publish.remote(iteration, [], 0, None)])
    assert ray.get(store.next_prompts.remote("rollout-0", 4, 60)) == [task]
    ray.get(store.append.remote("rollout-0", batch))
    return batch


def parts() -> list[int]:
    """Processes that scoring workers' models are cut over."""
    actors = [each for each in psutil.process_iter() if "ray::ScoringWorker" in said_of(each)]
    return [child.pid for actor in actors for child in actor.children() if "--multiprocessing-fork" in said_of(child)]


def said_of(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def test_a_killed_part_of_a_scorer_is_its_loss_and_another_takes_its_place(tmp_path: Path) -> None:
    import ray

    torch.manual_seed(0)
    policy = str(tmp_path / "policy")
    LlamaForCausalLM(LlamaConfig(**{**SHAPE, "num_key_value_heads": 2, "vocab_size": 64})).save_pretrained(policy)
    shared: dict[str, Any] = {"dtype": "float32", "batch_tokens": 64, "temperature": 1.0}
    store = ray.remote(Store).remote(ExperienceIndex(batch_rows=1, scorers=("reference",)))

    def spawn(name: str, _: int) -> Any:
        arguments = {"path": policy, "processes": 2, **shared}
        kind = pulse.watched(ScoringWorker).options(num_cpus=0, max_concurrency=2)
        return kind.remote(name, ReferenceScorer, arguments, threads=1, log_dir=str(tmp_path / "logs"))

    watch = Watch()
    fleet = Fleet(WorkerKind("reference", spawn), FleetSize(1, 1, 1), watch)
    fleet.serve(Service(lambda worker: worker.run.remote(store, False, 60, 0.5), store.release.remote))
    try:
        fleet.open(timeout_s=START_S)
        fleet.wait_for_fewest(timeout_s=START_S)
        whole = ReferenceScorer(policy, device="cpu", **shared)
        for iteration in range(2):
            batch = sampled(store, iteration)
            (view,) = watch.one("store", store.take.remote(iteration, START_S), timeout_s=START_S, doing="scoring")
            part = view.slices["reference"]
            said = ray.get(part.block).column("ref_log_probs")[part.row].as_py()
            np.testing.assert_allclose(said, whole.score(rows_of(batch))["ref_log_probs"][0], atol=1e-5)
            ray.get(store.consume.remote(iteration))
            if iteration == 0:
                with at_rest([fleet], timeout_s=60):
                    pass
                os.kill(parts()[0], signal.SIGKILL)
        assert fleet.states() == {"reference-1": "ready"}
        assert len(parts()) == 2, "the other part went with the lost one"
    finally:
        fleet.close()
        ray.kill(store)
