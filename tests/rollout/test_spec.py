from rlhf_dist.config import Rollout
from rlhf_dist.rollout.spec import engine_spec


def test_on_cpus_prompts_are_read_whole_however_many_begin_together() -> None:
    """In two steps vLLM would turn a seeded request's generator back, which one on a CPU refuses: the worker died of it."""
    for longest in (64, 10_000):
        spec = engine_spec(Rollout(), "m", dtype="float32", max_sequence=longest, seed=0, on_gpu=False, log_dir="logs")
        assert spec.options["enable_chunked_prefill"] is False
        assert spec.options["max_num_batched_tokens"] >= longest
