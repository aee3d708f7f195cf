"""A rollout worker in this process: a real engine, and a store that gives what the test says."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_dist.config import Rollout
from rlhf_dist.errors import WeightError
from rlhf_dist.models import load_policy
from rlhf_dist.records import PromptTask, RowKey, SampleRequest, Sampling
from rlhf_dist.rollout.spec import engine_spec
from rlhf_dist.rollout.worker import PullSettings, RolloutWorker
from rlhf_dist.store.deltas import encode_delta
from rlhf_dist.store.row import rows_of
from rlhf_dist.store.weights import Manifest, Probe, encode_bucket
from tests.runs import Folders

TOKENS = tuple(range(3, 12))


class Silent:
    """In place of metrics, which leave through Ray."""

    def pulled(self, version: int) -> None:
        assert version in (4, 5, 6)

    def count(self, **counts: int) -> None:
        pass


class Store:
    """Hands out one version; calls answer at once."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest

    def __getattr__(self, method: str) -> Any:
        answers = {"newest_version": self.manifest.version, "newest_weights": [self.manifest]}
        return type("Method", (), {"remote": staticmethod(lambda *_: answers[method])})


@pytest.fixture(autouse=True)
def answers_are_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf_dist.rollout.worker.fetch", lambda ref, **_: ref)
    monkeypatch.setattr(RolloutWorker, "_metrics", Silent())


@pytest.fixture
def own(folders: Folders) -> Any:
    return load_policy(str(folders.policy), dtype=torch.float32)


def worker(folders: Folders, tmp_path: Path, lm: Any, probe: Probe | None) -> RolloutWorker:
    weights = [(name, parameter.detach().clone()) for name, parameter in lm.named_parameters()]
    manifest = Manifest(5, tuple(name for name, _ in weights), 1, (encode_bucket(weights),), probe)
    settings = Rollout(engine="transformers", max_new_tokens=4)
    shared = {"dtype": "float32", "max_sequence": 32, "seed": 0, "log_dir": str(tmp_path)}
    sampling = Sampling(4, 1.0, 1.0, 0, (), (2,))
    spec = engine_spec(settings, str(folders.policy), **shared)
    made = RolloutWorker("rollout-0", spec, sampling, seed=0, pulls=PullSettings(probe_tolerance=1e-3, timeout_s=5))
    made.start()
    made._begin(Store(manifest))
    return made


def probe_of(lm: Any) -> list[float]:
    with torch.no_grad():
        log_probs = torch.log_softmax(lm(input_ids=torch.tensor([TOKENS])).logits[0, :-1], -1)
    return log_probs.gather(1, torch.tensor(TOKENS[1:])[:, None])[:, 0].tolist()


def test_a_version_whose_probe_agrees_is_sampled_from(folders: Folders, tmp_path: Path, own: Any) -> None:
    made = worker(folders, tmp_path, own, Probe(TOKENS, tuple(probe_of(own))))
    rows = rows_of(made.generate([PromptTask(0, 3, (1, 5), 2)]))
    assert [row.prompt.tolist() for row in rows] == [[1, 5]] * 2
    assert {version for row in rows for version, _ in row.versions} == {5}
    assert made._engine.version == 5
    assert not made._facts, "what is measured outside of training is not an iteration's"


@pytest.mark.parametrize("wrong", [0.01, float("nan")])
def test_a_version_whose_probe_differs_is_not_sampled_from(
    wrong: float, folders: Folders, tmp_path: Path, own: Any
) -> None:
    told = [value + wrong for value in probe_of(own)]
    made = worker(folders, tmp_path, own, Probe(TOKENS, tuple(told)))
    with pytest.raises(
        WeightError, match=r"weight version 5: .* differ from the learner's by .* expected at most 0.001"
    ):
        made.generate([PromptTask(0, 3, (1, 5), 1)])


class Versions(Store):
    """A store that published a complete version, then a partial one; remembers what it was asked."""

    def __init__(self, complete: Manifest, partial: Manifest) -> None:
        super().__init__(partial)
        self.complete, self.asked = complete, list[bool]()

    def __getattr__(self, method: str) -> Any:
        return type("Method", (), {"remote": staticmethod(lambda *given: self.answer(method, *given))})

    def answer(self, method: str, *given: Any) -> Any:
        if method == "newest_version":
            return self.manifest.version
        self.asked.append(*given)
        return [self.manifest] if given[0] else [self.complete, self.manifest]


def test_a_worker_without_a_version_takes_a_complete_one_and_then_only_what_changed(
    folders: Folders, tmp_path: Path, own: Any
) -> None:
    made = worker(folders, tmp_path, own, None)
    complete = made._store.manifest
    name = "model.layers.0.self_attn.q_proj.weight"

    def moved_by(change: float) -> Manifest:
        with torch.no_grad():
            own.get_parameter(name).add_(change)
        table = encode_bucket([(name, own.get_parameter(name).detach().clone())])
        return Manifest(5, (name,), 1, (table,), Probe(TOKENS, tuple(probe_of(own))), partial=True)

    store = Versions(replace(complete, version=4), moved_by(0.05))
    made._begin(store)
    made.generate([PromptTask(0, 3, (1, 5), 1)])
    assert made._engine.version == 5
    store.manifest = replace(moved_by(0.05), version=6)
    made.generate([PromptTask(0, 3, (1, 5), 1)])
    assert (made._engine.version, store.asked) == (6, [False, True])
    made._begin(store)
    made.generate([PromptTask(0, 3, (1, 5), 1)])
    assert store.asked == [False, True, False], "what a store before this one gave is nothing to put its versions on"


def test_a_worker_puts_a_delta_on_its_base_whatever_it_had_before(folders: Folders, tmp_path: Path, own: Any) -> None:
    found = worker(folders, tmp_path, own, None)
    base = replace(found._store.manifest, version=3)
    (table,) = base.buckets
    for version, made in ((4, found), (5, found), (6, worker(folders, tmp_path, own, None))):
        with torch.no_grad():
            own.get_parameter("model.layers.0.self_attn.q_proj.weight")[version].add_(0.05)
        delta = encode_delta(table, [(name, tensor.detach().clone()) for name, tensor in own.named_parameters()])
        assert delta.nbytes < table.nbytes / 10
        probe = Probe(TOKENS, tuple(probe_of(own)))
        made._begin(Store(Manifest(version, base.names, delta.nbytes, (delta,), probe, base=base)))
        made.generate([PromptTask(0, 3, (1, 5), 1)])
        assert made._engine.version == version, "the probe agrees with the learner's"


class OneGrant:
    """A store that grants some prompts once, and lets the worker go after them; `breaks`: it is lost with the first rows."""

    def __init__(self, manifest: Manifest, worker: RolloutWorker, *, breaks: bool) -> None:
        self.manifest, self.worker, self.breaks = manifest, worker, breaks
        self.granted, self.rows = False, list[Any]()

    def __getattr__(self, method: str) -> Any:
        return type("Method", (), {"remote": staticmethod(lambda *given: self.answer(method, *given))})

    def answer(self, method: str, *given: Any) -> Any:
        if method == "next_prompts":
            if self.granted:
                self.worker.retire()
                return []
            self.granted = True
            return [PromptTask(0, 3, (1, 5), 1), PromptTask(0, 4, (1, 6, 7, 8), 2)]
        if method == "append":
            if self.breaks:
                raise ConnectionError("the store is gone")
            self.rows += rows_of(given[1])
        return {"newest_version": 5, "newest_weights": [self.manifest]}.get(method)


def test_a_worker_that_serves_another_store_gives_what_a_new_one_would(
    folders: Folders, tmp_path: Path, own: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlhf_dist.rollout.worker._is_ready", lambda ref: True)
    found = []
    for breaks in (False, True):
        made = worker(folders, tmp_path, own, None)
        manifest = made._store.manifest
        if breaks:
            with pytest.raises(ConnectionError):
                made.run(OneGrant(manifest, made, breaks=True))
            made._engine.add(SampleRequest(RowKey(0, 9, 0), (1, 5), seed=1))  # as those that were half done
            assert made._engine.version == 5
        store = OneGrant(manifest, made, breaks=False)
        made.run(store)
        found.append(sorted((*row.tokens.tolist(),) for row in store.rows))
    assert len(found[0]) == 3
    assert found[0] == found[1]
