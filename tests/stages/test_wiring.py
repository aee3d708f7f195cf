"""Settings on their way to those who compute with them."""

import time
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from rlhf_dist.cluster.placement import lay_out
from rlhf_dist.cluster.watch import watch_of
from rlhf_dist.config import EvaluateConfig, RLConfig
from rlhf_dist.learner.frozen_model import FrozenSpec
from rlhf_dist.learner.rows import RankRows, to_experience
from rlhf_dist.planning.roles import model_folders, sizes_of
from rlhf_dist.records import RowKey, Sample, SampleRequest
from rlhf_dist.rollout.spec import sampling_of
from rlhf_dist.rollout.transformers_engine import TransformersEngine
from rlhf_dist.scoring.reward_file import RewardFile
from rlhf_dist.stages.places import Where
from rlhf_dist.stages.scoring import scorer_kinds
from rlhf_dist.stages.wiring import Begin, _store, critic_units, model_specs
from rlhf_dist.store.row import rollout_batch, rows_of
from rlhf_dist.store.weights import encode_bucket
from tests.runs import Folders


def sampled(config: RLConfig) -> list[Sample]:
    """What a rollout engine of the config says, by the policy's own weights."""
    engine = TransformersEngine(config.policy, sampling_of(config.rollout, (2,)), dtype="float32", max_concurrent=8)
    weights = [(name, parameter) for name, parameter in engine._lm.named_parameters()]
    engine.load_weights([encode_bucket(weights)], [name for name, _ in weights], version=3)
    for number in range(4):
        engine.add(SampleRequest(RowKey(0, number, 0), (1, 5 + number, 9), seed=number))
    samples: list[Sample] = []
    while engine.running:
        samples += engine.step()
    return sorted(samples, key=lambda sample: sample.key)


def by_reference(config: RLConfig, samples: list[Sample]) -> list[np.ndarray]:
    kind = scorer_kinds(config, policy=config.policy, reference=config.policy)["reference"]
    scored = kind.scorer(**kind.arguments, device="cpu").score(rows_of(rollout_batch(samples)))
    return [np.asarray(values) for values in scored["ref_log_probs"]]


def by_learner(config: RLConfig, samples: list[Sample]) -> list[np.ndarray]:
    policy = model_specs(config, Begin())["policy"].build(config.learner)
    rows, zeros = rows_of(rollout_batch(samples)), [np.zeros(len(sample.log_probs)) for sample in samples]
    count = len(rows)
    groups, keys = np.zeros(count, dtype=np.int64), [RowKey(0, 0, i) for i in range(count)]
    data = RankRows(rows, zeros, zeros, zeros, [], groups > 0, groups + np.nan, groups, groups, keys)
    micro = to_experience(data, [[n] for n in range(len(rows))], torch.device("cpu"))
    with torch.no_grad():
        return [part.numpy() for part in policy(micro.packed)[0].split(micro.lengths.tolist())]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_one_temperature_goes_through_all_three_doors(temperature: float, folders: Folders) -> None:
    config = folders.config(rollout={"temperature": temperature, "engine": "transformers"})
    samples = sampled(config)
    for told in (by_reference(config, samples), by_learner(config, samples)):
        for sample, values in zip(samples, told, strict=True):
            np.testing.assert_allclose(values, sample.log_probs, atol=1e-5)
    other = folders.config(rollout={"temperature": 1.3})
    assert np.abs(by_reference(other, samples)[0] - samples[0].log_probs).max() > 1e-2, "it would be seen"


def test_perplexity_is_measured_at_temperature_1_whatever_is_sampled_at(folders: Folders) -> None:
    at_one = folders.config(rollout={"engine": "transformers"})
    samples = sampled(at_one)
    tree = {"policies": {"a": at_one.policy}, "prompts": {"path": "p"}, "rollout": {"temperature": 0.5}}
    kind = scorer_kinds(EvaluateConfig.model_validate(tree), policy=at_one.policy, reference=at_one.policy)["reference"]
    scored = kind.scorer(**kind.arguments, device="cpu").score(rows_of(rollout_batch(samples)))
    for sample, plain, sharp in zip(samples, scored["plain_log_probs"], scored["ref_log_probs"], strict=True):
        np.testing.assert_allclose(plain, sample.log_probs, atol=1e-5)
        assert np.abs(np.array(sharp) - sample.log_probs).max() > 1e-2


def test_the_learner_trains_what_the_settings_name_from_where_the_run_begins(folders: Folders) -> None:
    specs = model_specs(folders.config(), Begin(2, "there/policy", "there/critic", "there/learner"))
    assert {name: (spec.path, spec.state) for name, spec in specs.items()} == {
        "policy": ("there/policy", "there/learner/policy"),
        "critic": ("there/critic", "there/learner/critic"),
    }
    assert specs["policy"].total_steps == 2 * 2 * 2
    head = model_specs(folders.config(learner={"critic": "value_head"}), Begin())
    assert [(name, spec.value_head) for name, spec in head.items()] == [("policy", True)]
    without: dict[str, Any] = {"algorithm": {"method": "rloo"}}
    assert [(name, spec.value_head) for name, spec in model_specs(folders.config(**without), Begin()).items()] == [
        ("policy", False)
    ]
    assert model_folders(folders.config(**without))["critic"] == ()
    assert sizes_of(folders.config(**without))["critic"].parameters == 0


def test_a_critic_that_starts_as_the_reward_model_says_what_the_weighted_normalised_reward_says(
    folders: Folders, tmp_path: Path
) -> None:
    RewardFile(means=(3.0,), std=2.0).write(tmp_path)
    config = folders.config(reward=[{"path": str(tmp_path), "weight": 0.5}])
    assert critic_units(config) == (3.0, 0.25)
    raw = folders.config(reward=[{"path": str(tmp_path), "weight": 0.5, "normalise": False}])
    assert critic_units(raw) == (0.0, 0.5)
    assert critic_units(folders.config(critic="c")) == (0.0, 1.0)
    watched = {"path": str(folders.reward), "name": "watched", "weight": 0}
    second = folders.config(reward=[watched, {"path": str(tmp_path), "weight": 0.5}])
    assert critic_units(second) == (3.0, 0.25)
    assert model_folders(second)["critic"] == (str(tmp_path),)


def test_a_store_may_take_its_time_to_start_before_its_silence_counts(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = folders.config()
    where = Where(lay_out(config, gpus=False), MagicMock(), tmp_path, watch_of(config.timeouts))
    kind = MagicMock()
    monkeypatch.setattr("ray.remote", lambda _: kind)
    monkeypatch.setattr("rlhf_dist.cluster.head.fallen", lambda: None)
    where.bundles.sight.return_value, where.bundles.options.return_value = {}, {}  # type: ignore[attr-defined]
    monkeypatch.setattr("ray.wait", lambda refs, **_: ([], refs))
    _store(config, where, Begin(), scorers={})
    where.watch.vigil.asked()
    now = time.monotonic()
    monkeypatch.setattr("time.monotonic", lambda: now + 1000.0)
    where.watch.vigil.look()
    where.watch.vigil.asked()
    monkeypatch.setattr("time.monotonic", lambda: now + 1001.0)
    assert not where.watch.vigil.look()


def test_adapters_go_on_the_models_that_a_run_began_with_and_their_policy_is_its_own_reference(
    folders: Folders,
) -> None:
    """A checkpoint's policy and critic have the adapters merged; these come back with the optimiser's state."""
    config = folders.config(learner={"lora": {"rank": 2}})
    specs = model_specs(config, Begin(2, "there/policy", "there/critic", "there/learner"))
    assert {name: (spec.path, spec.state, spec.lora) for name, spec in specs.items()} == {
        "policy": (str(folders.policy), "there/learner/policy", config.learner.lora),
        "critic": (str(folders.reward), "there/learner/critic", config.learner.lora),
    }
    assert model_folders(config)["reference"] == ()
    assert sizes_of(config)["reference"].parameters == 0
    assert 0 < sizes_of(config)["critic"].adapters < sizes_of(config)["critic"].parameters
    assert scorer_kinds(config, policy=config.policy, reference=None).keys() == {"reward"}
    held = folders.config(scoring={"reference_on": "learner", "frozen_on_host": True})
    spec = FrozenSpec(str(folders.policy), held.rollout.temperature, on_host=True)
    assert FrozenSpec.all_of(held, model_folders(held)) == {"reference": spec}
    named = folders.config(learner={"lora": {}}, reference=str(folders.policy))
    assert model_folders(named)["reference"] == (str(folders.policy),)
