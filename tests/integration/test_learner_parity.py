"""DeepSpeed ZeRO 0 to 3 on one and two ranks against plain torch: the same losses and weights after five steps."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from rlhf_dist.cluster.session import session
from rlhf_dist.cluster.watch import Watch
from rlhf_dist.config import Cluster, Learner, Optimizer, Timeouts
from rlhf_dist.data.examples import example_table
from rlhf_dist.learner.group import GroupPlace, SupervisedBatch, start_group
from rlhf_dist.learner.rank import ModelSpec
from rlhf_dist.models import PolicyModel, load_policy, pack
from rlhf_dist.stages.sft import sft_loss
from tests.integration.runs import Folders

STEPS = 5
OPTIMIZER = Optimizer(lr=1e-3, warmup=0.4, max_grad_norm=0.5, weight_decay=0.01)


@pytest.fixture(scope="module", autouse=True)
def ray_session() -> Iterator[None]:
    with session(Cluster(), cpus=4, gpus=0, namespace="test"):
        yield


@pytest.fixture(scope="module")
def sequences() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, 400, size=rng.integers(6, 40)).astype(np.int32) for _ in range(STEPS * 12)]


@pytest.fixture(scope="module")
def plain(folders: Folders, sequences: list[np.ndarray]) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and weights of plain torch: one sequence per pass, no packing, no DeepSpeed."""
    model = PolicyModel(load_policy(str(folders.policy), dtype=torch.float32))
    o = OPTIMIZER
    adamw = torch.optim.AdamW(model.parameters(), lr=o.lr, betas=o.betas, eps=o.eps, weight_decay=o.weight_decay)
    warmup = round(o.warmup * STEPS)
    losses = []
    for step in range(STEPS):
        batch = sequences[step * 12 : (step + 1) * 12]
        tokens = sum(len(x) - 4 for x in batch)
        total = 0.0
        for x in batch:
            log_probs, _, _ = model(pack([x], [range(3, len(x) - 1)], [[0]]))
            loss = -log_probs.sum() / tokens
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), o.max_grad_norm)
        for group in adamw.param_groups:
            group["lr"] = o.lr * min(1.0, step / warmup)
        adamw.step()
        adamw.zero_grad()
        losses.append(total)
    return losses, {name.removeprefix("lm."): value.detach() for name, value in model.named_parameters()}


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_zero_equals_plain_torch(
    stage: int,
    ranks: int,
    folders: Folders,
    sequences: list[np.ndarray],
    plain: tuple[list[float], dict[str, torch.Tensor]],
    tmp_path: Path,
) -> None:
    import ray

    settings = Learner(ranks=ranks, zero_stage=stage, micro_batch_tokens=128, row_tokens=64, threads=1)
    spec = ModelSpec(str(folders.policy), "policy", OPTIMIZER, STEPS)
    timeouts = Timeouts(start=240, update=120, publish=60)
    options = [{"num_cpus": 1, "num_gpus": 0} for _ in range(settings.ranks)]
    place = GroupPlace(settings, options, tmp_path, Watch(), timeouts)
    group = start_group(place, {"model": spec}, hidden=64, seed=0)
    try:
        stored = ray.put(example_table([x.tolist() for x in sequences], [range(3, len(x) - 1) for x in sequences]))
        losses = []
        for step in range(STEPS):
            chosen = range(step * 12, (step + 1) * 12)
            count = float(sum(len(sequences[i]) - 4 for i in chosen))
            batch = SupervisedBatch(stored, [[i] for i in chosen], [len(sequences[i]) for i in chosen], count)
            losses.append(group.train_step("model", batch, sft_loss)["loss"])
        weights = ray.get([rank.state.remote("model") for rank in group.ranks])[0]
    finally:
        for rank in group.ranks:
            ray.kill(rank)
    assert losses == pytest.approx(plain[0], abs=1e-4)
    for name, expected in plain[1].items():
        np.testing.assert_allclose(weights[name], expected.numpy(), atol=1e-4, rtol=0, err_msg=name)
