"""vLLM against transformers, in fp32: the same log-probs before and after a weight pull."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from rlhf_dist.cluster import shared_memory
from rlhf_dist.cluster.fleet import Fleet, FleetSize, WorkerKind
from rlhf_dist.cluster.pulse import Beat, watched
from rlhf_dist.cluster.watch import Watch
from rlhf_dist.config import Rollout
from rlhf_dist.errors import EnvironmentProblem, NumbersError, WeightError, WorkerLost
from rlhf_dist.learner.holding import Holding
from rlhf_dist.models import PolicyModel, at_temperature, load_policy, pack
from rlhf_dist.models.file_names import in_file
from rlhf_dist.records import RowKey, Sample, SampleRequest, Sampling, sample_seed
from rlhf_dist.rollout.engine import RolloutEngine
from rlhf_dist.rollout.spec import engine_spec, environment
from rlhf_dist.rollout.transformers_engine import TransformersEngine, truncated_log_probs
from rlhf_dist.rollout.vllm_engine import ENVIRONMENT, VLLMEngine
from rlhf_dist.rollout.worker import PullSettings, RolloutWorker
from rlhf_dist.store.agreement import agreement, longest_sample
from rlhf_dist.store.held import held_table
from rlhf_dist.store.row import rollout_batch
from rlhf_dist.store.weights import decode_bucket, encode_bucket
from tests.runs import Folders

SAMPLING = Sampling(max_new_tokens=16, temperature=0.7, top_p=0.9, top_k=50, stop=(), eos_token_ids=(2,))
START_S = 300
SEGMENTS = 7
"""Names in /dev/shm of an engine over two processes: four queues, two buffers of collectives, and the ledger of them."""


class EngineHost:
    """A process of its own around one engine: vLLM keeps global state, so two engines cannot share one."""

    def __init__(self, path: str, tensor_parallel: int, dtype: str) -> None:
        self.path, self.tensor_parallel, self.dtype = path, tensor_parallel, dtype
        self.built: VLLMEngine | None = None

    @property
    def engine(self) -> VLLMEngine:
        assert self.built is not None
        return self.built

    def start(self) -> None:
        self.built = VLLMEngine(
            self.path,
            replace(SAMPLING, top_p=1.0, top_k=0) if self.dtype == "bfloat16" else SAMPLING,
            dtype=self.dtype,
            max_sequence=96,
            max_concurrent=16,
            tensor_parallel=self.tensor_parallel,
            engine_options={"enforce_eager": True, "seed": 0},
        )
        ledgers = [*shared_memory.FOLDER.glob(f"rlhf_dist-{os.getpid()}-*.names")]
        self.own = ledgers + [
            shared_memory.FOLDER / line.split()[1] for ledger in ledgers for line in ledger.read_text().splitlines()
        ]

    def load_weights(self, tables: list[pa.Table], names: list[str], version: int, partial: bool = False) -> None:
        self.engine.load_weights(tables, names, version=version, partial=partial)

    def generate(self, order: list[int]) -> dict[int, Sample]:
        return generate(self.engine, order)

    def abort_half_way(self) -> int:
        for index in range(20):
            self.engine.add(SampleRequest(RowKey(1, index, 0), (9, 8, 7, 6 + index), index))
        for _ in range(3):
            self.engine.step()
        dropped = self.engine.running
        self.engine.abort()
        assert self.engine.running == 0
        return dropped

    def probe(self, tokens: list[int]) -> list[float]:
        return self.engine.probe(tokens)

    def head_dtype(self) -> str:
        return str(self.engine._llm.llm_engine.vllm_config.model_config.head_dtype)

    def pulse(self) -> Beat:
        if self.built is not None:
            self.built.check()
        return Beat(0, "")

    def close(self) -> None:
        self.engine.close()

    def call(self, name: str) -> Any:
        return getattr(self.engine, name)()

    def pid(self) -> int:
        return os.getpid()

    def generate_for_ever(self) -> None:
        while True:
            generate(self.engine, list(range(12)))

    def wait_for_a_loss(self) -> None:
        while True:
            self.engine.check()
            time.sleep(0.1)

    def workers(self) -> list[int | None]:
        return [child.pid for child in multiprocessing.active_children()]

    def segments(self) -> list[Path]:
        """Shared memory of this engine that is there; other engines may come and go."""
        return [path for path in self.own if path.exists()]


class Remote:
    """A fleet of one `EngineHost`, called as if it were here."""

    def __init__(self, path: str, tensor_parallel: int, dtype: str = "float32") -> None:
        env = {**ENVIRONMENT, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        host = watched(EngineHost).options(runtime_env={"env_vars": env}, max_concurrency=2)
        kind = WorkerKind("engine", lambda *_: host.remote(path, tensor_parallel, dtype))
        self.fleet = Fleet(kind, FleetSize(1, 1, 1), Watch())
        self.fleet.open(timeout_s=START_S)
        self.fleet.wait_for_fewest(timeout_s=START_S)

    @property
    def host(self) -> Any:
        (host,) = self.fleet.ready.values()
        return host

    def __getattr__(self, name: str) -> Callable[..., Any]:
        import ray

        return lambda *arguments: ray.get(getattr(self.host, name).remote(*arguments), timeout=200)


OVER_TWO_PROCESSES = ("policy", 2)


@pytest.fixture(scope="module", params=[OVER_TWO_PROCESSES, ("experts", 1)], ids=["over two processes", "experts"])
def engine(request: pytest.FixtureRequest, ray_session: None, folders: Folders) -> Iterator[tuple[Remote, str]]:
    model, tensor_parallel = request.param
    path = str(getattr(folders, model))
    made = Remote(path, tensor_parallel)
    yield made, path
    made.fleet.close()


def tables_of(path: str, seed: int) -> tuple[list[pa.Table], list[str], torch.nn.Module]:
    """A weight version that is not the folder's: every weight is moved a little."""
    lm = load_policy(path, dtype=torch.float32)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    named = [*in_file(lm, {name: parameter.data for name, parameter in lm.named_parameters()}).items()]
    return [encode_bucket(named[:5]), encode_bucket(named[5:])], [name for name, _ in named], lm


def generate(engine: RolloutEngine, order: list[int]) -> dict[int, Sample]:
    rng = np.random.default_rng(0)
    prompts = [tuple(rng.integers(3, 400, size=rng.integers(4, 20)).tolist()) for _ in range(12)]
    for index in order:
        key = RowKey(0, index, 0)
        engine.add(SampleRequest(key, prompts[index], sample_seed(1, key)))
    found = {}
    while engine.running:
        for sample in engine.step():
            found[sample.key.prompt_id] = sample
    return found


def test_vllm_log_probs_equal_transformers_before_and_after_a_pull(engine: tuple[Remote, str]) -> None:
    vllm, path = engine
    for version in range(2):
        tables, names, lm = tables_of(path, seed=version)
        vllm.load_weights(tables, names, version)
        for sample in vllm.generate(list(range(12))).values():
            ids = torch.tensor([[*sample.prompt_tokens, *sample.response_tokens]])
            with torch.no_grad():
                logits = lm(input_ids=ids).logits[0, len(sample.prompt_tokens) - 1 : -1]
            rows = zip(logits, sample.response_tokens, strict=True)
            expected = [float(truncated_log_probs(row, SAMPLING)[token]) for row, token in rows]
            np.testing.assert_allclose(sample.log_probs, expected, atol=1e-3)
            assert sample.versions == ((version, len(sample.response_tokens)),)


@pytest.mark.parametrize("layers", [(), ("layers.1.self_attn.",), ("layers.0.self_attn.", "layers.1.mlp.")])
def test_probe_equals_transformers_whole_and_with_some_layers_replaced(
    layers: tuple[str, ...], engine: tuple[Remote, str]
) -> None:
    vllm, path = engine
    tables, names, _ = tables_of(path, seed=7)
    oracle = TransformersEngine(path, SAMPLING, dtype="float32", max_concurrent=16)
    vllm.load_weights(tables, names, 7)
    oracle.load_weights(tables, names, version=7)
    tokens = list(range(5, 45))
    before = oracle.probe(tokens)
    if layers:
        tables, _, _ = tables_of(path, seed=8)
        named = [pair for table in tables for pair in decode_bucket(table) if any(each in pair[0] for each in layers)]
        some = [name for name, _ in named]
        vllm.load_weights([encode_bucket(named)], some, 8, True)
        oracle.load_weights([encode_bucket(named)], some, version=8, partial=True)
        assert np.abs(np.subtract(oracle.probe(tokens), before)).max() > 1e-3
    np.testing.assert_allclose(vllm.probe(tokens), oracle.probe(tokens), atol=1e-4)


def test_in_bf16_both_sides_have_logits_in_fp32_and_agree_reading_and_decoding(
    ray_session: None, folders: Folders
) -> None:
    path = str(folders.policy)
    vllm = Remote(path, 1, "bfloat16")
    try:
        tables, names, lm = tables_of(path, seed=7)
        half = [encode_bucket((name, tensor.bfloat16()) for name, tensor in decode_bucket(table)) for table in tables]
        vllm.load_weights(half, names, 1)
        assert vllm.head_dtype() == "torch.float32"
        policy = PolicyModel(lm.bfloat16())

        def learner(tokens: Sequence[int], temperature: float) -> list[float]:
            with torch.no_grad(), at_temperature(policy, temperature):
                return policy(pack([np.array(tokens)], [range(len(tokens) - 1)], [[0]]))[0].tolist()

        tokens = list(range(5, 95))
        assert agreement(vllm.probe(tokens), learner(tokens, 1.0)).within(0.02)
        decoded = longest_sample(rollout_batch(list(vllm.generate(list(range(12))).values())), 1)
        assert decoded is not None
        assert decoded.compared(learner(decoded.tokens, SAMPLING.temperature)).within(0.02)
    finally:
        vllm.fleet.close()


def test_weights_that_a_rank_holds_are_read_there_and_are_the_same(engine: tuple[Remote, str]) -> None:
    vllm, path = engine
    tables, names, _ = tables_of(path, seed=11)
    vllm.load_weights(tables, names, 7)
    sent = vllm.probe(list(range(5, 45)))
    tables, _, _ = tables_of(path, seed=12)
    vllm.load_weights(tables, names, 8)
    assert vllm.probe(list(range(5, 45))) != sent
    ranks = [Holding(torch.device("cpu")) for _ in range(2)]
    tables, _, _ = tables_of(path, seed=11)
    rows = [rank.keep(dict(decode_bucket(table)), partial=False) for table in tables for rank in ranks]
    vllm.load_weights([held_table(each) for each in rows], names, 9)
    assert vllm.probe(list(range(5, 45))) == sent


def test_samples_do_not_depend_on_order_or_company(engine: tuple[Remote, str]) -> None:
    vllm, path = engine
    tables, names, _ = tables_of(path, seed=3)
    vllm.load_weights(tables, names, 8)
    whole = vllm.generate(list(range(12)))
    parts = {**vllm.generate([11, 3, 5, 7, 9, 1]), **vllm.generate([0, 2, 4, 6, 8, 10])}
    assert {i: s.response_tokens for i, s in whole.items()} == {i: s.response_tokens for i, s in parts.items()}


def test_after_an_abort_samples_are_the_same_to_the_bit(engine: tuple[Remote, str]) -> None:
    vllm, path = engine
    tables, names, _ = tables_of(path, seed=5)
    vllm.load_weights(tables, names, 8)
    before = vllm.generate(list(range(12)))
    assert vllm.abort_half_way() > 0
    assert vllm.generate(list(range(12))) == before


def test_a_flipped_bit_is_refused_before_an_engine_is_touched(engine: tuple[Remote, str]) -> None:
    vllm, path = engine
    tables, names, _ = tables_of(path, seed=4)
    with pytest.raises(WeightError, match="its manifest names"):
        vllm.load_weights(tables[:1], names, 9)
    buffer = bytearray(tables[0]["data"][0].as_py())
    buffer[5] ^= 1
    data = pa.chunked_array([pa.array([bytes(buffer)], pa.large_binary()), *tables[0]["data"].chunks[1:]])
    broken = tables[0].set_column(4, tables[0].schema.field("data"), data)
    with pytest.raises(WeightError, match=f"weight {names[0]}: checksum"):
        vllm.load_weights([broken, tables[1]], names, 9)
    with pytest.raises(WeightError, match="no whole weight version"):
        vllm.generate([0])
    vllm.load_weights(tables, names, 9)
    assert vllm.generate([0])[0].versions[0][0] == 9


@pytest.mark.parametrize("engine", [OVER_TWO_PROCESSES], ids=["over two processes"], indirect=True)
def test_the_death_of_a_child_is_the_loss_of_its_worker_and_another_takes_its_place(engine: tuple[Remote, str]) -> None:
    vllm, path = engine
    tables, names, _ = tables_of(path, seed=4)
    vllm.load_weights(tables, names, 9)
    before, segments = vllm.probe(list(range(5, 45))), vllm.segments()
    assert len(segments) == SEGMENTS
    (lost,), work = vllm.fleet.ready, vllm.host.generate_for_ever.remote()
    os.kill(vllm.workers()[1] or 0, signal.SIGKILL)
    assert vllm.fleet.watch.until(lambda: [*vllm.fleet.ready] not in ([], [lost]), timeout_s=START_S)
    with pytest.raises(WorkerLost, match="engine-0.*died"):
        Watch().one(lost, work, timeout_s=30, doing="working")
    assert (vllm.fleet.restarts, [path for path in segments if path.exists()]) == (1, [])
    vllm.load_weights(tables, names, 9)
    assert vllm.probe(list(range(5, 45))) == before


def test_weights_that_are_not_finite_give_no_sample(engine: tuple[Remote, str]) -> None:
    """After the others: the cache of an engine on a CPU keeps some of the NaN, which publishing refuses."""
    vllm, path = engine
    tables, names, _ = tables_of(path, seed=6)
    named = [(name, tensor) for table in tables for name, tensor in decode_bucket(table)]
    broken = [(name, torch.full_like(tensor, torch.nan) if "norm" in name else tensor) for name, tensor in named]
    vllm.load_weights([encode_bucket(broken)], names, 8)
    with pytest.raises(NumbersError, match="log-prob nan to token 0 of prompt 4, answer 0, iteration 0"):
        vllm.generate([4])
    vllm.call("abort")


def test_of_an_engine_that_lacks_a_weight_nothing_is_left(engine: tuple[Remote, str]) -> None:
    """The last of them: the engine is ended after it."""
    vllm, path = engine
    tables, names, _ = tables_of(path, seed=4)
    with pytest.raises(WeightError, match=r"lacks \d+ of the engine's weights"):
        vllm.load_weights(tables[:1], names[:5], 10)
    assert (vllm.workers(), vllm.segments()) == ([], [])
    for call in (lambda: vllm.probe([5, 6, 7]), lambda: vllm.generate([0])):
        with pytest.raises(WorkerLost, match="the engine was ended"):
            call()
    vllm.close()


def test_no_room_for_the_kv_cache_names_the_settings(ray_session: None, folders: Folders, tmp_path: Path) -> None:
    import ray

    settings = Rollout(kv_cache_gib=1e-6, max_concurrent=4, max_new_tokens=12)
    shared = {"dtype": "float32", "max_sequence": 64, "seed": 0, "log_dir": str(tmp_path)}
    spec = engine_spec(settings, str(folders.policy), **shared)
    # vLLM would take this variable's for its cache, whatever the settings say.
    env = {"env_vars": {**environment(settings, on_gpu=False, threads=1), "VLLM_CPU_KVCACHE_SPACE": "1"}}
    worker = (
        ray.remote(RolloutWorker)
        .options(runtime_env=env)
        .remote("rollout-0", spec, SAMPLING, seed=0, pulls=PullSettings(probe_tolerance=1e-3, timeout_s=60))
    )
    with pytest.raises(EnvironmentProblem, match=r"rollout-0(.|\n)*KV cache(.|\n)*rollout.kv_cache_gib"):
        Watch().one("rollout-0", worker.start.remote(), timeout_s=240, doing="starting")
    ray.kill(worker)


def test_a_variable_that_opens_vllm_to_strangers_is_refused(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    with pytest.raises(EnvironmentProblem, match="VLLM_SERVER_DEV_MODE is set"):
        VLLMEngine(str(folders.policy), SAMPLING, dtype="float32", max_sequence=96, max_concurrent=4)


@pytest.fixture
def two_processes(ray_session: None, folders: Folders) -> Iterator[Remote]:
    """An engine over two processes, with weights."""
    vllm = Remote(str(folders.policy), 2)
    tables, names, _ = tables_of(str(folders.policy), seed=0)
    vllm.load_weights(tables, names, 0)
    yield vllm
    vllm.fleet.close()


@pytest.mark.soak
@pytest.mark.parametrize("busy", [True, False])
@pytest.mark.parametrize("number", [0, 1])
def test_the_death_of_a_child_is_the_loss_of_the_worker(two_processes: Remote, busy: bool, number: int) -> None:
    vllm = two_processes
    work = vllm.host.generate_for_ever.remote() if busy else vllm.host.wait_for_a_loss.remote()
    time.sleep(1)
    os.kill(vllm.workers()[number] or 0, signal.SIGKILL)
    with pytest.raises(WorkerLost, match="died"):
        Watch().one("engine", work, timeout_s=30, doing="working")
    vllm.close()
    assert (vllm.workers(), vllm.segments()) == ([], [])


@pytest.mark.soak
def test_an_engine_with_a_stopped_child_is_ended_from_another_thread(two_processes: Remote) -> None:
    vllm = two_processes
    os.kill(vllm.workers()[1] or 0, signal.SIGSTOP)
    work = vllm.host.generate_for_ever.remote()
    time.sleep(1)
    vllm.close()
    assert (vllm.workers(), vllm.segments()) == ([], [])
    with pytest.raises(WorkerLost):
        Watch().one("engine", work, timeout_s=30, doing="working")


@pytest.mark.soak
def test_what_a_killed_worker_leaves_is_swept(two_processes: Remote) -> None:
    from ray.exceptions import RayActorError

    left = two_processes.segments()
    assert len(left) == SEGMENTS
    os.kill(two_processes.pid(), signal.SIGKILL)
    with pytest.raises(RayActorError):
        two_processes.call("check")
    shared_memory.sweep()
    assert [path for path in left if path.exists()] == []
