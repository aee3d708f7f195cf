"""vLLM behind `RolloutEngine`. Everything that touches vLLM's API is here and in `vllm_weight_*.py`."""

from __future__ import annotations

import atexit
import gc
import os
import threading
from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from rlhf_dist.cluster import shared_memory
from rlhf_dist.cluster.children import NEWS_S, Children
from rlhf_dist.errors import EnvironmentProblem, RlhfDistError, WeightError, WorkerLost
from rlhf_dist.imports import import_vllm
from rlhf_dist.records import GREEDY, Sample, SampleRequest, Sampling
from rlhf_dist.rollout import vllm_weight_plugin
from rlhf_dist.rollout.checked import check_once
from rlhf_dist.rollout.device_memory import wait_for_memory
from rlhf_dist.rollout.engine import LoadedWeights, check_finite
from rlhf_dist.rollout.places import places_of
from rlhf_dist.store.arrived import Bucket, sorted_out
from rlhf_dist.store.lent import borrow
from rlhf_dist.store.weights import Cell, cells_of, encode_bucket

if TYPE_CHECKING:
    from collections.abc import Iterator

ENVIRONMENT = {
    "VLLM_PLUGINS": "rlhf_dist_arrow",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    # The engine runs inside the actor's process: no orphan can outlive the actor, and weights are handed over by pointer.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
EXACT_LOGITS = {"head_dtype": "float32"}
"""Logits are fp32 whatever the model's dtype, as the learner's are (`models.heads`)."""
REFUSED = ("VLLM_ALLOW_INSECURE_SERIALIZATION", "VLLM_SERVER_DEV_MODE")


class VLLMEngine:
    """One vLLM engine in this process (its tensor-parallel workers in processes of their own)."""

    def __init__(
        self,
        model: str,
        sampling: Sampling,
        *,
        dtype: Any,
        max_sequence: int,
        max_concurrent: int,
        tensor_parallel: int = 1,
        engine_options: dict[str, Any] | None = None,
    ) -> None:
        """Build the engine with random weights, a version of which must be loaded before the first sample.

        Args:
            model: Hugging Face folder, for its config (and tokenizer where stop strings are given).
            sampling: distribution and end of answers.
            dtype: `float32` or `bfloat16`.
            max_sequence: longest prompt plus answer, in tokens.
            max_concurrent: samples decoded at once.
            tensor_parallel: processes that share the model.
            engine_options: further keyword arguments of `vllm.LLM`; with `load_format: auto` the folder's weights are used.

        Raises:
            EnvironmentProblem: a dangerous variable is set, or the KV cache does not fit.
            WorkerLost: one of the engine's processes was killed.
        """
        for name in REFUSED:
            if os.environ.get(name, "0") not in ("", "0"):
                raise EnvironmentProblem(f"{name} is set, which lets anyone who reaches vLLM run code; unset it")
        if "kv_cache_memory_bytes" in (engine_options or {}):
            os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # before which vLLM would forget what it is told
        import_vllm()
        from vllm import LLM

        vllm_weight_plugin.register()
        options = {"load_format": "dummy", **(engine_options or {})}
        options["hf_overrides"] = EXACT_LOGITS | options.get("hf_overrides", {})
        self._weights = LoadedWeights(whole=options["load_format"] != "dummy")
        self._sampling = sampling
        self._requests: dict[str, SampleRequest] = {}
        self._can_sleep = bool(options.get("enable_sleep_mode"))
        self._asleep: set[str] = set()
        """What of its device memory is given back, by vLLM's tags."""
        self._llm: Any = None
        self._busy, self._closed, self._closing = False, False, threading.Lock()
        atexit.register(self.close)  # Ray's actors exit on SIGTERM
        shared_memory.sweep()
        if torch.cuda.is_available() and "gpu_memory_utilization" in options:
            wait_for_memory(options["gpu_memory_utilization"])
        self._children = Children() if tensor_parallel > 1 else None
        with self._closed_after_errors(), self._losses_told(), _lack_of_memory_explained(max_sequence):
            self._llm = LLM(
                model,
                dtype=dtype,
                skip_tokenizer_init=not sampling.stop,
                max_model_len=max_sequence,
                max_num_seqs=max_concurrent,
                tensor_parallel_size=tensor_parallel,
                distributed_executor_backend="uni" if tensor_parallel == 1 else "mp",
                weight_transfer_config={"backend": vllm_weight_plugin.BACKEND},
                logprobs_mode="processed_logprobs",
                disable_log_stats=not in_an_actor(),
                trust_remote_code=False,
                **options,
            )
            if self._children is not None:
                self._children.are_complete()
            _report_through_ray(self._llm.llm_engine)
            self._llm.init_weight_transfer_engine({"init_info": {}})

    @property
    def version(self) -> int:
        """Weight version in the engine; see `RolloutEngine`."""
        return self._weights.version

    @property
    def running(self) -> int:
        """Samples added and not finished."""
        return len(self._requests)

    def add(self, request: SampleRequest) -> None:
        """Start one more sample."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling = self._sampling
        params = SamplingParams(
            max_tokens=sampling.max_new_tokens,
            temperature=0.0 if request.key.sample_index == GREEDY else sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            stop=list(sampling.stop),
            include_stop_str_in_output=True,
            # A stop string may hold special tokens, and the other engine finds them.
            skip_special_tokens=False,
            stop_token_ids=list(sampling.eos_token_ids),
            seed=request.seed,
            logprobs=0,
            flat_logprobs=True,
            detokenize=bool(sampling.stop),
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        name = "/".join(map(str, request.key))
        with self._losses_told():
            self._weights.check()
            self._requests[name] = request
            self._llm.llm_engine.add_request(name, {"prompt_token_ids": list(request.prompt_tokens)}, params)

    def step(self) -> list[Sample]:
        """Advance by one scheduler step; returns the samples that ended in it."""
        with self._losses_told():
            self._weights.check()
            finished = [output for output in self._llm.llm_engine.step() if output.finished]
        return [self._sample(output) for output in finished]

    def _sample(self, output: Any) -> Sample:
        request = self._requests.pop(output.request_id)
        answer = output.outputs[0]
        log_probs = tuple(answer.logprobs.logprobs)
        check_finite(request.key, log_probs)  # vLLM samples from NaN without a word
        return Sample(
            key=request.key,
            prompt_tokens=request.prompt_tokens,
            response_tokens=tuple(answer.token_ids),
            log_probs=log_probs,
            finish_reason=answer.finish_reason,
            versions=((self.version, len(answer.token_ids)),),
        )

    def abort(self) -> None:
        """Drop all running samples; see `RolloutEngine`."""
        with self._losses_told():
            engine = self._llm.llm_engine
            engine.abort_request([*self._requests])
            core = engine.engine_core.engine_core
            # Steps that are under way end, and the engine's processes hear of what was dropped with the next one.
            while core.scheduler.has_requests() or core.batch_queue:
                engine.step()
            self._requests.clear()
            self._llm.reset_prefix_cache()

    def load_weights(
        self, tables: Sequence[Bucket], names: Sequence[str], *, version: int, partial: bool = False
    ) -> None:
        """Replace weights; see `RolloutEngine`. An error in the middle is the end of the engine."""
        self._weights.replaced(partial=partial)
        sent, held, lent = sorted_out(tables)
        cells = [cell for table in sent for cell in cells_of(table)]
        arrived = [*(cell.name for cell in cells), *dict.fromkeys(row.name for row in held)]
        arrived += [each.name for bucket in lent for each in bucket.tensors]
        if sorted(arrived) != sorted(names):
            raise WeightError(f"weight version {version} has {len(arrived)} tensors; its manifest names {len(names)}")
        check_once(sent, version)  # before the old weights are touched, and not in each process
        if self._children is not None:  # they are no actors, and have no references
            cells += [cell for each in lent for cell in cells_of(encode_bucket(borrow([each], on_host=True)))]
            lent = []
        # After an error tensors are new, old or gone, and of several processes each has answered or not.
        with self._closed_after_errors(), self._losses_told():
            try:
                with self._announced(cells) as announced:
                    self._update({**announced, "held": held, "lent": lent, "partial": partial}, version)
            except RuntimeError as error:  # of vLLM's processes nothing else arrives, whatever they raise
                self._check_news()
                raise WeightError(f"weight version {version} did not arrive whole: {error}") from error
        self._weights.arrived(version)

    def _update(self, announced: dict[str, Any], version: int) -> None:
        self._llm.start_weight_update()
        self._llm.update_weights({"update_info": announced})
        self._llm.finish_weight_update(str(version))
        self._wake("kv_cache")
        self._llm.reset_prefix_cache()

    @contextmanager
    def _announced(self, cells: Sequence[Cell]) -> Iterator[dict[str, Any]]:
        """The tensors as they are for an engine in this process, and where they lie for one in several."""
        if self._children is None:
            yield {"tensors": [(cell.name, cell.tensor()) for cell in cells]}
            return
        with places_of(cells) as places:
            yield {"places": places}

    def forget(self) -> None:
        """Have no version any more; see `RolloutEngine`."""
        self._weights.forget()

    def probe(self, tokens: Sequence[int]) -> list[float]:
        """Log-probs of tokens[1:]; see `RolloutEngine`."""
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, temperature=1.0, prompt_logprobs=0, detokenize=False)
        with self._losses_told():
            (output,) = self._llm.generate([{"prompt_token_ids": list(tokens)}], params, use_tqdm=False)
        return [found[token].logprob for token, found in zip(tokens[1:], output.prompt_logprobs[1:], strict=True)]

    def sleep(self) -> None:
        """Give weights and KV cache back; see `RolloutEngine`. vLLM can do so on GPUs; elsewhere this does nothing."""
        if self._can_sleep and not self._asleep:
            self._weights.forget()
            with self._losses_told():
                # 2: the weights are not kept in host memory, since the next version replaces them.
                self._llm.sleep(level=2)
            self._asleep = {"weights", "kv_cache"}

    def wake(self) -> None:
        """Take the weights' memory again; see `RolloutEngine`. vLLM dies when a sleeping engine is updated.

        The cache's follows when they are loaded, so that it is not there beside what they are loaded from.
        """
        with self._losses_told():
            self._wake("weights")

    def _wake(self, tag: str) -> None:
        if tag in self._asleep:
            self._llm.wake_up(tags=[tag])
            self._asleep.remove(tag)

    def check(self) -> None:
        """Raise when the engine is gone; see `RolloutEngine`."""
        if self._children is not None:
            self._children.check()
        if self._closed:
            raise WorkerLost("the engine was ended")

    def close(self) -> None:
        """End vLLM, its processes and their shared memory; see `RolloutEngine`."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            atexit.unregister(self.close)
            if self._children is not None:
                self._children.expect_end()
                if self._busy:  # then they may hang
                    self._children.kill()
            if self._llm is not None:
                # It asks its processes to end, terminates them after 5 s, and kills them after 4 more.
                self._llm.llm_engine.engine_core.shutdown()
                self._llm = None
                gc.collect()  # vLLM unlinks a segment when Python drops its object
            if self._children is not None:
                self._children.end()

    def _check_news(self) -> None:
        """Raise if what just failed, failed because a process is gone."""
        if self._children is not None:
            self._children.check(news_s=NEWS_S)

    @contextmanager
    def _losses_told(self) -> Iterator[None]:
        """What a call into vLLM raises because one of its processes is gone, or does not answer, becomes `WorkerLost`."""
        self.check()
        self._busy = True
        try:
            yield
        except RlhfDistError:
            raise
        except TimeoutError as error:
            if self._children is not None:
                self._children.give_up(f"the engine's processes do not answer: {error}")
            self._check_news()
            raise
        except Exception:
            self._check_news()
            self.check()
            raise
        finally:
            self._busy = False

    @contextmanager
    def _closed_after_errors(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise


def in_an_actor() -> bool:
    """Whether this process is a Ray actor, whose node exports metrics."""
    import ray

    return ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None


def _report_through_ray(engine: Any) -> None:
    """Let vLLM's own metrics leave through Ray's exporter, beside ours, as `ray_vllm_*`."""
    if engine.logger_manager is None:
        return
    from ray.util import metrics
    from vllm.v1.metrics import ray_wrappers
    from vllm.v1.metrics.loggers import StatLoggerManager

    class WithoutEachToken(ray_wrappers.RayPrometheusStatLogger):
        """Without the latency of each token: a call into Ray for each would be nearly the whole cost of these metrics."""

        def record(self, scheduler_stats: Any, iteration_stats: Any, *rest: Any, **named: Any) -> None:
            if iteration_stats is not None:
                iteration_stats.inter_token_latencies_iter = []
            super().record(scheduler_stats, iteration_stats, *rest, **named)

    # vLLM finds Ray's metrics only beside Ray Serve, which it needs for a label that stays empty here.
    ray_wrappers.ray_metrics = metrics  # type: ignore[attr-defined]
    engine.logger_manager = StatLoggerManager(
        vllm_config=engine.vllm_config,
        custom_stat_loggers=[WithoutEachToken],
        enable_default_loggers=False,
    )


@contextmanager
def _lack_of_memory_explained(max_sequence: int) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        if "Free memory on device" in str(error):
            raise EnvironmentProblem(
                f"no room for the engine on its GPU: {error} Lower rollout.gpu_memory_fraction, or end what else is there"
            ) from error
        if "KV cache" not in str(error) and "cache blocks" not in str(error):
            raise
        raise EnvironmentProblem(
            f"no room for the KV cache of one sample of {max_sequence} tokens: {error}. Raise rollout.kv_cache_gib (CPU) "
            "or rollout.gpu_memory_fraction (GPU), or lower prompts.max_tokens or rollout.max_new_tokens"
        ) from error
