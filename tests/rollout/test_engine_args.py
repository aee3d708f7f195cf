"""What may be added to vLLM's arguments."""

import ast
import inspect
from typing import Any

import pytest

from rlhf_dist.config import Rollout
from rlhf_dist.errors import ConfigError
from rlhf_dist.rollout import engine_args, spec, vllm_engine
from rlhf_dist.rollout.engine_args import OURS, check_engine_args


def test_arguments_are_those_of_the_installed_vllm() -> None:
    check_engine_args(Rollout(engine_args={"kv_cache_dtype": "fp8", "max_num_batched_tokens": 4096}))
    with pytest.raises(ConfigError, match=r"engine_args.kv_cache_dtyp: .* did you mean `kv_cache_dtype`\?"):
        check_engine_args(Rollout(engine_args={"kv_cache_dtyp": "fp8"}))
    assert OURS.keys() <= {*engine_args._known()}


@pytest.mark.parametrize(
    ("rollout", "message"),
    [
        (
            {"engine_args": {"max_num_seqs": 9}},
            "engine_args.max_num_seqs is the engine's own .* `rollout.max_concurrent`",
        ),
        ({"engine_args": {"trust_remote_code": True}}, "engine_args.trust_remote_code .* expected it left out"),
        ({"engine_args": {"seed": 1}, "engine": "transformers"}, "rollout.engine is transformers; expected none"),
    ],
)
def test_what_is_set_here_or_goes_nowhere_is_refused(rollout: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_engine_args(Rollout(**rollout))


def test_all_that_the_engine_is_given_by_name_is_ours() -> None:
    """Whatever the code passes to `vllm.LLM` and users passed too would be an error there, or silently another engine."""
    calls = [node for node in ast.walk(ast.parse(inspect.getsource(vllm_engine))) if isinstance(node, ast.Call)]
    (call,) = [call for call in calls if getattr(call.func, "id", "") == "LLM"]
    given = {keyword.arg for keyword in call.keywords if keyword.arg}
    made = spec.engine_spec(Rollout(), "m", dtype="float32", max_sequence=64, seed=0, log_dir="")
    given |= made.options.keys() | made.on_cuda.keys() | made.on_cpu.keys()
    on_cpus_and_free_on_gpus = {"enable_chunked_prefill", "max_num_batched_tokens"}
    assert given - on_cpus_and_free_on_gpus <= OURS.keys()
