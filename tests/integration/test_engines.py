"""vLLM against transformers, in fp32: the same log-probs before and after a weight pull."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from rlhf_dist.cluster.watch import Watch
from rlhf_dist.config import Rollout
from rlhf_dist.errors import EnvironmentProblem, WeightError
from rlhf_dist.models import load_policy
from rlhf_dist.models.file_names import in_file
from rlhf_dist.records import RowKey, Sample, SampleRequest, Sampling, sample_seed
from rlhf_dist.rollout.engine import RolloutEngine
from rlhf_dist.rollout.spec import engine_spec, environment
from rlhf_dist.rollout.transformers_engine import TransformersEngine, truncated_log_probs
from rlhf_dist.rollout.vllm_engine import ENVIRONMENT, VLLMEngine
from rlhf_dist.rollout.worker import PullSettings, RolloutWorker
from rlhf_dist.store.weights import encode_bucket
from tests.runs import Folders

SAMPLING = Sampling(max_new_tokens=16, temperature=0.7, top_p=0.9, top_k=50, stop=(), eos_token_ids=(2,))


class EngineHost:
    """A process of its own around one engine: vLLM keeps global state, so two engines cannot share one."""

    def __init__(self, path: str) -> None:
        self.engine = VLLMEngine(
            path,
            SAMPLING,
            dtype="float32",
            max_sequence=96,
            max_concurrent=16,
            engine_options={"enforce_eager": True, "seed": 0},
        )

    def load_weights(self, tables: list[pa.Table], names: list[str], version: int) -> None:
        self.engine.load_weights(tables, names, version=version)

    def generate(self, order: list[int]) -> dict[int, Sample]:
        return generate(self.engine, order)

    def probe(self, tokens: list[int]) -> list[float]:
        return self.engine.probe(tokens)


class Remote:
    """Calls an `EngineHost` as if it were here."""

    def __init__(self, path: str) -> None:
        import ray

        env = {**ENVIRONMENT, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        self.host = ray.remote(EngineHost).options(runtime_env={"env_vars": env}).remote(path)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        import ray

        return lambda *arguments: ray.get(getattr(self.host, name).remote(*arguments), timeout=200)


@pytest.fixture(scope="module", params=["policy", "experts"])
def engine(request: pytest.FixtureRequest, ray_session: None, folders: Folders) -> Iterator[tuple[Remote, str]]:
    import ray

    path = str(getattr(folders, request.param))
    made = Remote(path)
    yield made, path
    ray.kill(made.host)


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


def test_probe_equals_transformers(engine: tuple[Remote, str]) -> None:
    vllm, path = engine
    tables, names, _ = tables_of(path, seed=7)
    oracle = TransformersEngine(path, SAMPLING, dtype="float32", max_concurrent=16)
    vllm.load_weights(tables, names, 7)
    oracle.load_weights(tables, names, version=7)
    tokens = list(range(5, 45))
    np.testing.assert_allclose(vllm.probe(tokens), oracle.probe(tokens), atol=1e-4)


def test_samples_do_not_depend_on_order_or_company(engine: tuple[Remote, str]) -> None:
    vllm, path = engine
    tables, names, _ = tables_of(path, seed=3)
    vllm.load_weights(tables, names, 8)
    whole = vllm.generate(list(range(12)))
    parts = {**vllm.generate([11, 3, 5, 7, 9, 1]), **vllm.generate([0, 2, 4, 6, 8, 10])}
    assert {i: s.response_tokens for i, s in whole.items()} == {i: s.response_tokens for i, s in parts.items()}


def test_a_flipped_bit_or_a_missing_weight_is_refused(folders: Folders, engine: tuple[Remote, str]) -> None:
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


def test_no_room_for_the_kv_cache_names_the_settings(ray_session: None, folders: Folders, tmp_path: Path) -> None:
    import ray

    settings = Rollout(kv_cache_gib=1e-6, max_concurrent=4, max_new_tokens=12)
    shared = {"dtype": "float32", "max_sequence": 64, "seed": 0, "on_gpu": False, "log_dir": str(tmp_path)}
    spec = engine_spec(settings, str(folders.policy), **shared)
    env = {"env_vars": environment(settings, on_gpu=False)}
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
