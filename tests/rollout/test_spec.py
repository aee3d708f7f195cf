from dataclasses import replace
from pathlib import Path

import pytest

from rlhf_dist.config import Rollout
from rlhf_dist.errors import ConfigError
from rlhf_dist.planning.sharing import SharedCard
from rlhf_dist.rollout import spec
from rlhf_dist.rollout.device_memory import DeviceMemory
from rlhf_dist.rollout.spec import engine_spec, environment, sampling_of
from tests.models.test_ends import model
from tests.planning.test_memory import SIZES, config


@pytest.mark.parametrize(
    ("stop", "strings", "ids"),
    [
        ((), (), (2,)),
        (("<|end|>",), (), (2, 13)),
        (("\nUser:", "<|eot_id|>", "<eos>"), ("\nUser:",), (2, 7)),
        (("<|end|>\n", "a"), ("<|end|>\n", "a"), (2,)),
    ],
)
def test_a_stop_string_that_is_one_of_the_tokenizers_own_tokens_is_an_end(
    stop: tuple[str, ...], strings: tuple[str, ...], ids: tuple[int, ...], tmp_path: Path
) -> None:
    folder = model(tmp_path / "m")
    made = sampling_of(Rollout(stop=stop), (2,), str(folder))
    assert (made.stop, made.eos_token_ids) == (strings, ids)


@pytest.mark.parametrize("on_gpu", [True, False])
def test_an_engines_processes_meet_on_loopback_unless_the_user_says_where(
    on_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("vllm")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    made = environment(Rollout(engine="vllm"), on_gpu=on_gpu, threads=3)
    assert (made["GLOO_SOCKET_IFNAME"], made["NCCL_SOCKET_IFNAME"]) == ("lo", "ib0")
    assert made["OMP_NUM_THREADS"] == "3"


def test_batch_invariance_is_asked_of_vllm_on_gpus_and_refused_where_it_would_do_nothing() -> None:
    pytest.importorskip("vllm")
    assert environment(Rollout(batch_invariant=True), on_gpu=True, threads=1)["VLLM_BATCH_INVARIANT"] == "1"
    assert "VLLM_BATCH_INVARIANT" not in environment(Rollout(), on_gpu=True, threads=1)
    with pytest.raises(ConfigError, match=r"batch_invariant is true, but the engines are on CPUs.*expected false"):
        environment(Rollout(batch_invariant=True), on_gpu=False, threads=1)
    with pytest.raises(ValueError, match=r"batch_invariant is true beside engine transformers; expected vllm"):
        Rollout(batch_invariant=True, engine="transformers")


def test_on_cpus_prompts_are_read_whole_however_many_begin_together() -> None:
    """In two steps vLLM would turn a seeded request's generator back, which one on a CPU refuses: the worker died of it."""
    for longest in (64, 10_000):
        made = engine_spec(Rollout(), "m", dtype="float32", max_sequence=longest, seed=0, log_dir="logs")
        options = made._options_on("cpu")
        assert options["enable_chunked_prefill"] is False
        assert options["max_num_batched_tokens"] >= longest


@pytest.mark.parametrize(
    ("compile", "on_gpu", "eager"), [(None, True, False), (None, False, True), (True, False, False)]
)
def test_graphs_are_captured_on_gpus_unless_the_config_says_otherwise(
    compile: bool | None, on_gpu: bool, eager: bool
) -> None:
    rollout = Rollout(compile=compile, engine_args={"kv_cache_dtype": "fp8"})
    made = engine_spec(rollout, "m", dtype="bfloat16", max_sequence=64, seed=0, log_dir="logs")
    options = made._options_on("cuda" if on_gpu else "cpu")
    assert options["enforce_eager"] is eager
    assert options["kv_cache_dtype"] == "fp8"
    assert ("kv_cache_memory_bytes" in options) is not on_gpu
    assert ("TORCH_COMPILE_DISABLE" in environment(rollout, on_gpu=on_gpu, threads=1)) is (eager and not on_gpu)


def test_on_a_shared_gpu_the_smallest_of_an_engines_gpus_says_how_large_its_cache_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = config(cluster={"placement": "colocated"}, learner={"ranks": 2}, rollout={"tensor_parallel": 2})
    plain = engine_spec(made.rollout, "m", dtype="float32", max_sequence=64, seed=0, log_dir="logs")
    shared = replace(plain, shared=SharedCard.of(made, SIZES))
    cards = [DeviceMemory(1, 80 * 10**9), DeviceMemory(1, 40 * 10**9)]
    monkeypatch.setattr(spec, "memory_of_visible", lambda: cards)
    assert shared.shared is not None
    assert shared._options_on("cuda").items() >= shared.shared.engine_options(40 * 10**9).items()
    assert "kv_cache_memory_bytes" not in plain._options_on("cuda"), "vLLM measures what its own card has"
