"""Sequence parallelism: ranks that share each row learn, to 1e-5, what one rank learns of it whole."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from rlhf_dist.config import RL, Algorithm, Correction, Learner
from rlhf_dist.learner.example_batch import ExampleBatch
from rlhf_dist.learner.group import LearnerGroup
from rlhf_dist.learner.model_spec import ModelSpec
from rlhf_dist.learner.objective import Now, RLObjective
from rlhf_dist.learner.trained_model import TrainedModel
from rlhf_dist.records import RowKey, Sample
from rlhf_dist.store.experience import RowView, Slice
from rlhf_dist.store.row import rollout_batch
from rlhf_dist.store.schema import EXPERIENCE
from tests.integration.test_learner_parity import OPTIMIZER, STEPS, batches, group, sequences  # noqa: F401 - fixtures
from tests.runs import Folders

SEEN: dict[Any, Any] = {}
"""What one rank has learnt, by case; the group of one comes first."""


def all_outputs(model: TrainedModel, batch: ExampleBatch) -> tuple[torch.Tensor, dict[str, float]]:
    log_probs, entropy, values = model(batch.packed, entropy_grad=True)
    return (values - 1).square().sum() - log_probs.sum() - 0.1 * entropy.sum(), {"entropy": float(entropy.sum())}


def squares(model: TrainedModel, batch: ExampleBatch) -> tuple[torch.Tensor, dict[str, float]]:
    return (model(batch.packed) - 1).square().sum(), {}


@pytest.fixture
def shared(group: LearnerGroup) -> Iterator[LearnerGroup]:  # noqa: F811
    """The group, all of whose ranks share each row."""
    before = group.settings
    group.settings = before.model_copy(update={"sequence_parallel": len(group.ranks), "gradient_checkpointing": True})
    yield group
    group.settings = before


def chosen(group: LearnerGroup, **changes: Any) -> None:  # noqa: F811
    import ray

    group.settings = group.settings.model_copy(update={"attention": "varlen", **changes})
    ray.get([rank.choose.remote(group.settings) for rank in group.ranks])


def compare(case: Any, found: dict[str, Any], ranks: int, *, within: float) -> None:
    if ranks == 1:
        SEEN[case] = found
        return
    for name, expected in SEEN[case].items():
        torch.testing.assert_close(
            torch.as_tensor(found[name]), torch.as_tensor(expected), atol=within, rtol=0, msg=name
        )


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_log_probs_entropies_values_losses_and_weights_are_those_of_whole_rows(
    stage: int,
    shared: LearnerGroup,
    folders: Folders,
    sequences: list[np.ndarray],  # noqa: F811
    tmp_path: Path,
) -> None:
    import ray

    chosen(shared, zero_stage=stage)
    policy = ModelSpec(str(folders.policy), "policy", OPTIMIZER, STEPS, value_head=True)
    critic = ModelSpec(str(folders.reward), "value", OPTIMIZER, STEPS)
    shared.load({"policy": policy, "critic": critic}, run_dir=tmp_path, seed=0)
    every = batches(sequences)
    found: dict[str, Any] = {}
    for number, batch in enumerate(every[:3]):
        found |= {f"{name} {number}": value for name, value in shared.train_step("policy", batch, all_outputs).items()}
        found |= {f"{name} {number}": value for name, value in shared.train_step("critic", batch, squares).items()}
    for model in ("policy", "critic"):
        told = shared.predict(model, every[4])
        found[f"{model} says"] = [told[number] for number in sorted(told)]
        shared.save(model, tmp_path / model)
        found |= load_file(tmp_path / model / "model.safetensors")
    (said,) = {tuple(each) for each in ray.get([rank.probe.remote(list(range(3, 40))) for rank in shared.ranks])}
    compare(stage, found | {"probe": said}, len(shared.ranks), within=1e-5)


def rows_of_experience() -> list[RowView]:
    import ray

    rng = np.random.default_rng(0)
    keys = [RowKey(0, number // 2, number % 2) for number in range(8)]
    answers = [tuple(rng.integers(3, 400, size=rng.integers(2, 30)).tolist()) for _ in keys]
    log_probs = [tuple((-6 + rng.normal(0, 0.1, size=len(answer))).tolist()) for answer in answers]
    samples = [
        Sample(key, (5, 6, 7), answer, said, "stop", ((0, len(answer)),))
        for key, answer, said in zip(keys, answers, log_probs, strict=True)
    ]
    rollout = rollout_batch(samples)
    columns = {
        "score": rng.normal(size=len(keys)).tolist(),
        "score_parts": [[("r", 0.0)]] * len(keys),
        "ref_log_probs": log_probs,
    }
    arrays = [*rollout.columns, *(pa.array(columns[name], EXPERIENCE.field(name).type) for name in columns)]
    block = ray.put(pa.RecordBatch.from_arrays(arrays, schema=EXPERIENCE))
    writers = ("rollout", "reward", "reference")
    return [
        RowView(sample.key, 3 + len(sample.response_tokens), {writer: Slice(block, row) for writer in writers})
        for row, sample in enumerate(samples)
    ]


def test_an_update_of_policy_and_values_is_that_of_whole_rows(
    shared: LearnerGroup, folders: Folders, tmp_path: Path
) -> None:
    chosen(shared, zero_stage=2, critic="value_head", micro_batch_tokens=64)
    spec = ModelSpec(str(folders.policy), "policy", OPTIMIZER, STEPS, value_head=True)
    shared.load({"policy": spec}, run_dir=tmp_path, seed=0)
    objective = RLObjective(Algorithm(), Correction(), RL(epochs=2, mini_batches=2), longest=30)
    now = Now(
        kl_coef=0.1,
        entropy_coef=0.01,
        ratio_is_one=False,
        iteration=0,
        seed=0,
        running_mean=0.0,
        given={},
        critic_only=False,
    )
    facts = shared.update(rows_of_experience(), objective, now)
    assert len(facts) > 20
    shared.save("policy", tmp_path / "policy")
    weights = load_file(tmp_path / "policy" / "model.safetensors")
    compare("update", facts | weights, len(shared.ranks), within=1e-5)


def test_ranks_that_cannot_share_rows_are_refused_by_the_settings_alone() -> None:
    with pytest.raises(ValueError, match=r"sequence_parallel to divide ranks, found 2 beside 3 ranks"):
        Learner(ranks=3, sequence_parallel=2)
    with pytest.raises(ValueError, match=r"attention auto or varlen beside sequence_parallel, found sdpa"):
        Learner(ranks=2, sequence_parallel=2, attention="sdpa")
    assert Learner(ranks=2, sequence_parallel=2).kernels == "varlen"
