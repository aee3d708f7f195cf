"""DeepSpeed ZeRO 0 to 3 on one and two ranks against plain torch: the same losses and weights after five steps."""

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from rlhf_dist.cluster import pulse
from rlhf_dist.cluster.watch import Watch
from rlhf_dist.config import RL, Algorithm, Correction, Learner, Optimizer, Timeouts
from rlhf_dist.data.examples import example_table
from rlhf_dist.errors import NumbersError
from rlhf_dist.learner import saving
from rlhf_dist.learner.example_batch import ExampleBatch
from rlhf_dist.learner.frozen_model import FrozenSpec
from rlhf_dist.learner.group import LearnerGroup
from rlhf_dist.learner.model_spec import ModelSpec
from rlhf_dist.learner.objective import Now, RLObjective
from rlhf_dist.learner.optimizer_state import PIECES
from rlhf_dist.learner.rank import LearnerRank
from rlhf_dist.learner.supervised_batch import SupervisedBatch
from rlhf_dist.learner.trained_model import TrainedModel
from rlhf_dist.models import PolicyModel, load_policy, pack
from rlhf_dist.records import RowKey, Sample
from rlhf_dist.stages.sft import sft_loss
from rlhf_dist.store.experience import RowView, Slice
from rlhf_dist.store.row import rollout_batch
from rlhf_dist.store.schema import EXPERIENCE
from rlhf_dist.store.weights import decode_bucket
from tests.runs import Folders

STEPS = 5
FILE_BYTES = 100_000
OPTIMIZER = Optimizer(lr=1e-3, warmup=0.4, max_grad_norm=0.5, weight_decay=0.01)

ATTENTION = {0: "varlen", 1: "auto", 2: "eager", 3: "varlen"}


def loss_that_is_nan_on_one_rank(model: TrainedModel, batch: ExampleBatch) -> tuple[torch.Tensor, dict[str, float]]:
    total, facts = sft_loss(model, batch)
    return (total * math.nan if 0 in batch.numbers else total), facts


class AnyStage(LearnerRank):
    """A rank whose ZeRO stage changes from load to load, so that eight cases share three processes; its files are small."""

    def choose(self, settings: Learner) -> None:
        import deepspeed

        self.settings, self.most = settings, 0
        saving.SAVED_BUCKET_BYTES = FILE_BYTES
        gathered = deepspeed.zero.GatheredParameters.__init__

        def counting(context: Any, params: list[Any], *args: Any, **kwargs: Any) -> None:
            self.most = max(self.most, sum(each.ds_numel * each.itemsize for each in params))
            gathered(context, params, *args, **kwargs)

        deepspeed.zero.GatheredParameters.__init__ = counting

    def gathered_at_once(self) -> int:
        """Most bytes that were whole on this rank at any moment of saving."""
        return self.most

    def ask(self, name: str, sequences: list[np.ndarray]) -> tuple[list[float], int, int]:
        """Log-probs of sequences in two rows; numbers that this rank holds of the model's afterwards, and those elsewhere too."""
        model, last = self.frozen[name], len(sequences) - 1
        wanted = [range(len(each) - 1) for each in sequences]
        said = model(pack(sequences, wanted, [[0, last], [*range(1, last)]])).tolist()
        parameters = [*model.engine.module.parameters()]
        return said, sum(each.numel() for each in parameters), sum(each.ds_tensor.numel() for each in parameters)


@pytest.fixture(scope="module", params=[1, 2])
def group(
    request: pytest.FixtureRequest, ray_session: None, folders: Folders, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LearnerGroup]:
    settings = Learner(ranks=request.param, zero_stage=0, micro_batch_tokens=128, row_tokens=64, threads=1)
    kind = pulse.watched(AnyStage).options(num_cpus=1, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}})
    ranks = [kind.remote(rank, settings.ranks, settings) for rank in range(settings.ranks)]
    timeouts = Timeouts(start=240, update=120, publish=60)
    made = LearnerGroup(ranks, settings, watch=Watch(), timeouts=timeouts)
    made.meet(run_dir=tmp_path_factory.mktemp("parity"), interface=None)
    yield made
    made.close()


@pytest.fixture(scope="session")
def one_rank() -> dict[int, Path]:
    """States that one rank has saved, by ZeRO stage; the group of one comes first."""
    return {}


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
            group["lr"] = o.lr * min(1.0, (step + 1) / (warmup + 1))
        adamw.step()
        adamw.zero_grad()
        losses.append(total)
    return losses, {name.removeprefix("lm."): value.detach() for name, value in model.named_parameters()}


def batches(sequences: list[np.ndarray]) -> list[SupervisedBatch]:
    """One for each step."""
    import ray

    stored = ray.put(example_table([x.tolist() for x in sequences], [range(3, len(x) - 1) for x in sequences]))
    made = []
    for step in range(STEPS):
        chosen = range(step * 12, (step + 1) * 12)
        count = float(sum(len(sequences[i]) - 4 for i in chosen))
        made.append(SupervisedBatch(stored, [[i] for i in chosen], [len(sequences[i]) for i in chosen], count))
    return made


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_zero_equals_plain_torch(
    stage: int,
    group: LearnerGroup,
    folders: Folders,
    sequences: list[np.ndarray],
    plain: tuple[list[float], dict[str, torch.Tensor]],
    one_rank: dict[int, Path],
    tmp_path: Path,
) -> None:
    import ray

    settings = group.settings.model_copy(update={"zero_stage": stage, "attention": ATTENTION[stage]})
    ray.get([rank.choose.remote(settings) for rank in group.ranks])
    group.load({"model": ModelSpec(str(folders.policy), "policy", OPTIMIZER, STEPS)}, run_dir=tmp_path, seed=0)
    every = batches(sequences)
    losses = [group.train_step("model", batch, sft_loss)["loss"] for batch in every]
    reached = group.train_step("model", every[0], sft_loss, learn=False)["loss"]
    with pytest.raises(
        NumbersError, match=rf"^the loss is nan in optimiser step {STEPS + 1}, with example [0-9]+.* more\. No step"
    ):
        group.train_step("model", every[0], loss_that_is_nan_on_one_rank)
    assert group.train_step("model", every[0], sft_loss, learn=False)["loss"] == reached
    group.save("model", tmp_path / "saved")
    told = {Path(name): digest for name, digest in group.written(tmp_path).items()}
    files = sorted((tmp_path / "saved").glob("model-*.safetensors"))
    assert {*files} == {*told}
    assert len(files) > 2
    weights = {name: tensor for file in files for name, tensor in load_file(file).items()}
    largest = max(tensor.nbytes for tensor in weights.values())
    assert max(ray.get([rank.gathered_at_once.remote() for rank in group.ranks])) <= max(largest, FILE_BYTES)
    assert losses == pytest.approx(plain[0], abs=1e-4)
    for name, expected in plain[1].items():
        torch.testing.assert_close(weights[name], expected, atol=1e-4, rtol=0, msg=name)
    sent = published(group, bucket_bytes=2**14)
    assert sent.keys() == weights.keys()
    assert all(torch.equal(sent[name], weights[name]) for name in weights), "published as it is saved, in any stage"
    # Each element of the state goes on as it was, moments too, in another stage, and on two ranks what one rank had saved.
    group.save_state("model", tmp_path / "state")
    group.written(tmp_path)
    one_rank.setdefault(stage, tmp_path / "state")
    other = group.settings.model_copy(update={"zero_stage": (stage + 1) % 4})
    ray.get([rank.choose.remote(other) for rank in group.ranks])
    for number, folder in enumerate({tmp_path / "state", one_rank[stage]}):
        spec = ModelSpec(str(folders.policy), "policy", OPTIMIZER, STEPS, state=str(folder))
        group.load({"model": spec}, run_dir=tmp_path, seed=0)
        group.save_state("model", tmp_path / f"again-{number}")
        group.written(tmp_path)
        before, after = whole_state(folder), whole_state(tmp_path / f"again-{number}")
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
    for (what, name), value in before.items():
        if what == "weight" and folder == tmp_path / "state":
            assert torch.equal(value, weights[name.partition(".")[2]].view(-1)), name


def published(group: LearnerGroup, *, bucket_bytes: int) -> dict[str, torch.Tensor]:
    """What the ranks send of the model, each as an engine reads it; they share the buckets evenly."""
    import ray

    ray.get([rank.plan_weights.remote("model", bucket_bytes, "float32") for rank in group.ranks])
    begun = [rank.weight_buckets.options(num_returns="streaming").remote() for rank in group.ranks]
    streams = [[*stream] for stream in begun]
    counts = [len(stream) - 1 for stream in streams]
    assert min(counts) > 2
    assert max(counts) - min(counts) <= 1
    return {name: tensor for stream in streams for ref in stream[:-1] for name, tensor in decode_bucket(ray.get(ref))}


def whole_state(folder: Path) -> dict[tuple[str, str], torch.Tensor]:
    """What all ranks have saved, put together, by what it is and the parameter's name."""
    parts: dict[tuple[str, str], dict[int, torch.Tensor]] = defaultdict(dict)
    for file in folder.glob(f"rank-*/{PIECES}"):
        for key, value in load_file(file).items():
            offset, what, name = key.split("/", 2)
            parts[what, name][int(offset)] = value
    return {
        key: torch.cat([found[offset] for offset in sorted(found)]) for key, found in parts.items() if key[0] != "step"
    }


@pytest.mark.parametrize(("stage", "precision"), [(2, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16")])
def test_a_loaded_state_is_what_all_ranks_compute_with_and_bf16_stays_near_plain_torch(
    stage: int,
    precision: str,
    group: LearnerGroup,
    folders: Folders,
    sequences: list[np.ndarray],
    plain: tuple[list[float], dict[str, torch.Tensor]],
    tmp_path: Path,
) -> None:
    import ray

    chosen = {"zero_stage": stage, "precision": precision, "attention": ATTENTION[stage]}
    settings = group.settings.model_copy(update={**chosen, "gradient_checkpointing": stage == 3})
    ray.get([rank.choose.remote(settings) for rank in group.ranks])
    spec = ModelSpec(str(folders.policy), "policy", OPTIMIZER, STEPS)
    group.load({"model": spec}, run_dir=tmp_path, seed=0)
    every = batches(sequences)
    losses = [group.train_step("model", batch, sft_loss)["loss"] for batch in every]
    assert losses == pytest.approx(plain[0], abs=2e-2)
    group.save_state("model", tmp_path / "state")
    group.written(tmp_path)
    trained = group.train_step("model", every[0], sft_loss, learn=False)["loss"]
    assert trained < losses[0] - 0.01
    # The files hold the untrained weights, the state the trained ones.
    group.load({"model": replace(spec, state=str(tmp_path / "state"))}, run_dir=tmp_path, seed=0)
    assert group.train_step("model", every[0], sft_loss, learn=False)["loss"] == trained


@pytest.mark.parametrize(("on_host", "precision"), [(False, "fp32"), (True, "fp32"), (False, "bf16")])
def test_a_model_that_is_only_asked_is_cut_over_the_ranks_and_says_what_it_says_whole(
    on_host: bool, precision: str, group: LearnerGroup, folders: Folders, sequences: list[np.ndarray], tmp_path: Path
) -> None:
    import ray

    settings = group.settings.model_copy(update={"zero_stage": 2, "precision": precision})
    ray.get([rank.choose.remote(settings) for rank in group.ranks])
    trained = ModelSpec(str(folders.policy), "policy", OPTIMIZER, STEPS)
    spec = FrozenSpec(str(folders.experts), 0.7, on_host)
    group.load({"model": trained}, run_dir=tmp_path, seed=0, frozen={"reference": spec})
    for path in (folders.experts, folders.policy):
        group.renew("reference", spec.at(str(path)))
        whole = PolicyModel(load_policy(str(path), dtype=getattr(torch, settings.dtype)), temperature=0.7)
        chosen = sequences[:5]
        with torch.no_grad():
            expected = whole(pack(chosen, [range(len(x) - 1) for x in chosen], [[0, 4], [1, 2, 3]]))[0].tolist()
        size = sum(parameter.numel() for parameter in whole.parameters())
        for said, whole_ones, part in ray.get([rank.ask.remote("reference", chosen) for rank in group.ranks]):
            assert said == expected
            assert part == pytest.approx(size / len(group.ranks), rel=0.01)
            assert whole_ones < 0.1 * size, "what a layer gathered is given back"
    assert ray.get(group.ranks[0].snapshot.remote()).num_rows, "only what is trained is remembered"


# Ranks that share each row learn, to 1e-5, what one rank learns of it whole: sequence parallelism.
SEEN: dict[Any, Any] = {}
"""What one rank has learnt, by case; the group of one comes first."""


def all_outputs(model: TrainedModel, batch: ExampleBatch) -> tuple[torch.Tensor, dict[str, float]]:
    log_probs, entropy, values = model(batch.packed, entropy_grad=True)
    return (values - 1).square().sum() - log_probs.sum() - 0.1 * entropy.sum(), {"entropy": float(entropy.sum())}


def squares(model: TrainedModel, batch: ExampleBatch) -> tuple[torch.Tensor, dict[str, float]]:
    return (model(batch.packed) - 1).square().sum(), {}


@pytest.fixture
def shared(group: LearnerGroup) -> Iterator[LearnerGroup]:
    """The group, all of whose ranks share each row."""
    before = group.settings
    group.settings = before.model_copy(update={"sequence_parallel": len(group.ranks), "gradient_checkpointing": True})
    yield group
    group.settings = before


def chosen(group: LearnerGroup, **changes: Any) -> None:
    import ray

    group.settings = group.settings.model_copy(update={"attention": "varlen", **changes})
    ray.get([rank.choose.remote(group.settings) for rank in group.ranks])


def saved_weights(group: LearnerGroup, name: str, folder: Path) -> dict[str, torch.Tensor]:
    group.save(name, folder)
    group.written(folder)
    return {key: tensor for file in folder.glob("*.safetensors") for key, tensor in load_file(file).items()}


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
    sequences: list[np.ndarray],
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
        found |= saved_weights(shared, model, tmp_path / model)
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
    weights = saved_weights(shared, "policy", tmp_path / "policy")
    compare("update", facts | weights, len(shared.ranks), within=1e-5)


def test_ranks_that_cannot_share_rows_are_refused_by_the_settings_alone() -> None:
    with pytest.raises(ValueError, match=r"sequence_parallel to divide ranks, found 2 beside 3 ranks"):
        Learner(ranks=3, sequence_parallel=2)
    with pytest.raises(ValueError, match=r"attention auto or varlen beside sequence_parallel, found sdpa"):
        Learner(ranks=2, sequence_parallel=2, attention="sdpa")
    assert Learner(ranks=2, sequence_parallel=2).kernels == "varlen"
