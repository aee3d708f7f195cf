"""Settings that several stages share: prompts, rollouts, the learner, the cluster."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class Section(BaseModel):
    """A frozen part of the config that refuses unknown keys, and numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


TAKEN_ARGUMENTS = frozenset(
    {
        *("add_generation_prompt", "chat_template", "continue_final_message", "conversation", "max_length"),
        *("messages", "padding", "return_assistant_tokens_mask", "return_dict", "return_tensors", "self", "tokenize"),
        *("tokenizer_kwargs", "tools", "truncation"),
    }
)
"""What apply_chat_template takes itself: it reaches no template, or is what a row or its reader gives."""


class DataFile(Section):
    """Rows of a file, or of a data set."""

    path: str = Field(description="JSONL, Parquet or Arrow file, a folder of them, or a `datasets` name")
    split: str = Field("train", description="split, for a folder or a `datasets` name")
    subset: str | None = Field(None, description="subset, for a folder or a `datasets` name")
    special_tokens: bool = Field(
        False,
        description="text that spells a special token is that token, as in prompts rendered before; no: it stays text",
    )
    chat_template_kwargs: dict[str, Any] = Field(
        {}, description="further arguments of the chat template; a row's own column of that name goes before"
    )

    @field_validator("chat_template_kwargs")
    @classmethod
    def _only_the_templates(cls, value: dict[str, Any]) -> dict[str, Any]:
        taken = sorted(TAKEN_ARGUMENTS & value.keys())
        if taken:
            raise ValueError(f"{taken[0]} is an argument of apply_chat_template itself; expected the template's own")
        return value


TooLong = Literal["refuse", "truncate", "leave_out"]
"""What becomes of rows with more tokens than there is room for."""


class Prompts(DataFile):
    """Where prompts come from."""

    column: str | None = Field(None, description="column with the prompt; default: `prompt`, else `messages`")
    columns: dict[str, str] = Field(
        {}, description="further names of the other columns for functions that score, e.g. {target: ground_truth}"
    )
    max_tokens: int = Field(512, ge=1, le=1_000_000, description="longest prompt, in tokens")
    too_long: TooLong = Field(
        "refuse", description="longer prompts: refuse the file, truncate their beginnings, or leave them out"
    )
    held_out: str | None = Field(None, description="file of prompts to compare the policies on, before and after")
    held_out_limit: int = Field(256, ge=1, description="most held-out prompts used")


class WorkerRange(Section):
    """A number of workers that may change while the run goes on."""

    min: int = Field(ge=1, le=4096, description="workers without which the run does not start")
    max: int = Field(
        ge=1, le=4096, description="most workers, as the cluster grows and generation is what is waited for"
    )

    @model_validator(mode="before")
    @classmethod
    def _number_is_a_range(cls, value: Any) -> Any:
        if isinstance(value, (dict, WorkerRange)):
            return value
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError("a number of workers, or {min: A, max: B}")
        return {"min": value, "max": value}

    @model_validator(mode="after")
    def _in_order(self) -> WorkerRange:
        if self.min > self.max:
            raise ValueError(f"min at most max, found min {self.min} above max {self.max}")
        return self


class Rollout(Section):
    """How samples are generated."""

    engine: Literal["vllm", "transformers"] = Field("vllm", description="generation engine")
    workers: WorkerRange = Field(
        WorkerRange(min=1, max=1),
        description="rollout workers, each an engine of its own: a number, or {min, max} for as many as pay and find room",
    )
    max_restarts: int = Field(
        3, ge=0, description="rollout workers that may be lost and replaced within one iteration before the run stops"
    )
    tensor_parallel: int = Field(1, ge=1, le=64, description="GPUs (or CPU processes) per engine")
    samples_per_prompt: int = Field(1, ge=1, le=1024, description="answers sampled for each prompt")
    max_new_tokens: int = Field(128, ge=1, le=131_072, description="longest answer, in tokens")
    temperature: float = Field(
        1.0,
        ge=0.01,
        le=10,
        description="softmax temperature of sampling and of all log-probs; vLLM samples at no lower one",
    )
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus: smallest set of tokens with this probability mass")
    top_k: int = Field(0, ge=0, description="only the k likeliest tokens; 0: all")
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), description="strings that end an answer (they stay part of it)"
    )
    prefix_caching: bool = Field(True, description="share the KV cache of equal prompt beginnings (vLLM)")
    max_concurrent: int = Field(256, ge=1, le=65_536, description="samples that one engine decodes at once")
    gpu_memory_fraction: float | None = Field(
        None,
        gt=0,
        le=1,
        description="share of a GPU's memory for the engine (vLLM); null: nearly all that those who share the GPU leave",
    )
    kv_cache_gib: float = Field(1.0, gt=0, description="KV cache per engine on CPU, in GiB (vLLM)")
    compile: bool | None = Field(
        None, description="let vLLM compile the model and capture CUDA graphs: slower start; null: on GPUs"
    )
    engine_args: dict[str, Any] = Field(
        {}, description="further arguments of vLLM's EngineArgs by their names there, e.g. {kv_cache_dtype: fp8}"
    )
    batch_invariant: bool = Field(
        False,
        description="a sample's numbers do not depend on its company, at a price in speed (vLLM, GPUs from compute capability 9)",
    )
    threads: int = Field(1, ge=1, description="CPU threads per worker, where there is no GPU")

    @model_validator(mode="after")
    def _kernels_are_vllms(self) -> Rollout:
        if self.batch_invariant and self.engine != "vllm":
            raise ValueError(
                f"batch_invariant is true beside engine {self.engine}; expected vllm, whose kernels it chooses"
            )
        return self

    @property
    def truncated(self) -> bool:
        """Whether answers are drawn from a part of the distribution, so that their log-probs compare with no other's."""
        return self.top_p < 1.0 or self.top_k > 0


ScoredOn = Literal["workers", "learner"]
"""Processes of their own, or those that train."""


class Scoring(Section):
    """How finished samples are scored."""

    reward_workers: int = Field(1, ge=1, le=1024, description="processes that hold the reward model")
    reference_workers: int = Field(1, ge=1, le=1024, description="processes that hold the reference policy")
    teacher_workers: int = Field(1, ge=1, le=1024, description="processes that hold the teacher, where there is one")
    reference_on: ScoredOn = Field(
        "workers",
        description="who holds the reference policy: workers, or the learner's ranks, among which it is cut whatever its size",
    )
    teacher_on: ScoredOn = Field("workers", description="who holds the teacher: workers, or the learner's ranks")
    tensor_parallel: int = Field(
        1, ge=1, le=64, description="GPUs (or CPU processes) of each worker that holds models, which are cut over them"
    )
    frozen_on_host: bool = Field(
        False,
        description="what learner ranks hold of reference and teacher is in host memory, a layer at a time on the GPU",
    )
    batch_tokens: int = Field(8192, ge=1, description="tokens per forward pass, padding included")
    max_restarts: int = Field(
        3,
        ge=0,
        description="scoring workers of a kind that may be lost and replaced within one iteration before the run stops",
    )
    threads: int = Field(1, ge=1, description="CPU threads per scoring worker, where there is no GPU")
    quarantine: int = Field(
        0,
        ge=0,
        description="most samples of an iteration whose reward may fail: they are told in quarantine.jsonl and not trained on; "
        "one more ends the run",
    )


DecayRate = Annotated[float, Field(ge=0, lt=1)]


class Optimizer(Section):
    """AdamW and its schedule."""

    lr: float = Field(1e-6, gt=0, le=1, description="peak learning rate")
    betas: tuple[DecayRate, DecayRate] = Field((0.9, 0.95), description="AdamW's moment decay rates")
    eps: float = Field(1e-8, gt=0, description="AdamW's denominator offset")
    weight_decay: float = Field(0.0, ge=0, le=1, description="decoupled weight decay")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this global norm")
    warmup: float = Field(0.05, ge=0, le=1, description="share of all optimiser steps spent warming up")
    schedule: Literal["constant_with_warmup", "linear", "cosine"] = Field(
        "constant_with_warmup", description="learning rate after the warm-up"
    )


class Lora(Section):
    """Low-rank adapters (Hu et al. 2022, arXiv:2106.09685) through peft."""

    rank: int = Field(16, ge=1, le=4096, description="rank of the adapters")
    alpha: int = Field(32, ge=1, description="the adapters' product is scaled by alpha over rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout before the adapters")
    targets: tuple[str, ...] = Field(("all-linear",), description="modules to adapt; all-linear: all but the head")


class Learner(Section):
    """The DeepSpeed group that trains policy and critic."""

    ranks: int = Field(1, ge=1, le=65_536, description="data-parallel processes, one GPU each where there are GPUs")
    zero_stage: Literal[0, 1, 2, 3] = Field(
        2, description="what ZeRO shards: 1 optimiser, 2 + gradients, 3 + weights; 0 in fp32 only"
    )
    cpu_offload: bool = Field(False, description="keep optimiser state in host memory (GPU machines)")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="precision of forward and backward passes; master weights and sums of gradients are in fp32"
    )
    critic: Literal["model", "value_head", "none"] = Field(
        "model", description="a model of its own, a head on the policy, or none, where `advantage` needs no values"
    )
    lora: Lora | None = Field(
        None,
        description="train adapters of policy and critic instead of all weights, at about ten times the learning rate; null: all "
        "weights",
    )
    sequence_parallel: int = Field(
        1,
        ge=1,
        le=64,
        description="ranks that share each micro-batch, a part of its row each (Ulysses), for samples too long for one GPU",
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations instead of keeping them")
    micro_batch_tokens: int = Field(8192, ge=1, description="tokens of one forward and backward pass")
    row_tokens: int = Field(
        0, ge=0, description="samples are packed into rows of this many tokens; 0: the longest sample's length"
    )
    attention: Literal["auto", "varlen", "sdpa", "eager", "flash_attention_2"] = Field(
        "auto",
        description="attention kernels; varlen: samples in one row, without padding or mask, in torch's own kernel; auto: varlen "
        "on GPUs, sdpa on CPUs; flash_attention_2 wants the package flash-attn",
    )
    on_bad_numbers: Literal["stop", "skip"] = Field(
        "stop",
        description="where a loss, log-prob, value or gradient is not finite: stop the run, or skip that optimiser step, five "
        "in a row at most; no such step is ever taken",
    )
    threads: int = Field(2, ge=1, description="CPU threads per rank, where there is no GPU")
    deepspeed: dict[str, Any] = Field(
        {}, description="further settings of DeepSpeed, as in its JSON, e.g. {zero_optimization: {overlap_comm: true}}"
    )
    policy: Optimizer = Field(Optimizer(), description="the policy's optimiser")
    value: Optimizer = Field(Optimizer(lr=1e-5), description="the critic's optimiser")

    @model_validator(mode="after")
    def _gradients_add_up_in_fp32(self) -> Learner:
        if self.precision == "bf16" and self.zero_stage == 0:
            raise ValueError(
                "zero_stage 1 to 3 beside precision bf16, found 0, with which DeepSpeed adds up gradients in bf16"
            )
        return self

    @model_validator(mode="after")
    def _ranks_share_rows_evenly(self) -> Learner:
        if self.ranks % self.sequence_parallel:
            raise ValueError(
                f"sequence_parallel to divide ranks, found {self.sequence_parallel} beside {self.ranks} ranks"
            )
        if self.sequence_parallel > 1 and self.attention not in ("auto", "varlen"):
            raise ValueError(
                f"attention auto or varlen beside sequence_parallel, found {self.attention}: ranks exchange heads of a row "
                "without padding or mask"
            )
        return self

    @property
    def kernels(self) -> str:
        """Attention kernels of what is trained."""
        return "varlen" if self.sequence_parallel > 1 else self.attention

    @property
    def dtype(self) -> str:
        """Torch's name of the dtype of forward and backward passes, of scorers and of what is saved."""
        return {"fp32": "float32", "bf16": "bfloat16"}[self.precision]


Transport = Literal["store", "cuda_ipc", "sharded_rdt"]


class Weights(Section):
    """Weights on their way from learner to rollout workers."""

    wire_dtype: Literal["float32", "bfloat16", "auto"] = Field("auto", description="auto: the learner's precision")
    transport: Transport = Field(
        "store",
        description="store: through the nodes' shared memory, to engines anywhere; cuda_ipc: each rank holds a whole version on "
        "its card, and the engine beside it (cluster.placement colocated) takes it there; on CPUs from the rank's memory; "
        "sharded_rdt: each rank keeps its buckets on its card, and engines anywhere read them there through NIXL",
    )
    bucket_mib: int = Field(256, ge=1, le=4096, description="size of one Arrow bucket, in MiB")
    delta_every: int = Field(
        0,
        ge=0,
        description="versions are sent as what changed since the last whole one, and every so many are whole; 0 and 1: all are. "
        "For slow networks: readers put the two together, and both must fit into the object store",
    )
    probe_every: int = Field(10, ge=1, description="versions between two comparisons of the engine with the learner")
    probe_tolerance: float | None = Field(
        None,
        gt=0,
        description="largest mean difference of probe log-probs, in nats; null: 1e-3 in fp32, 0.1 in bf16, 0.2 for experts",
    )


class Telemetry(Section):
    """Where metrics go, beside metrics.jsonl and Ray's own metrics."""

    wandb: bool = Field(False, description="log to Weights & Biases; offline where no API key is set")
    tensorboard: bool = Field(False, description="write TensorBoard events into the run folder")
    mlflow: bool = Field(False, description="log to MLflow: MLFLOW_TRACKING_URI, else files in the run folder")
    project: str = Field("rlhf_dist", description="project name for wandb, experiment name for MLflow")
    trace_iterations: tuple[int, ...] = Field(
        (), description="iterations, counted from 0, whose work goes into trace.json for Perfetto"
    )


class Timeouts(Section):
    """How long each wait may take, in seconds, before the run stops with the name of what it waited for."""

    start: float = Field(600, gt=0, description="an actor's start, models loaded")
    batch: float = Field(1800, gt=0, description="a whole scored batch")
    update: float = Field(1800, gt=0, description="one PPO update")
    publish: float = Field(600, gt=0, description="publishing or pulling one weight version")
    save: float = Field(1800, gt=0, description="copying a model or its state for a checkpoint, and writing it")
    call: float = Field(60, gt=0, description="a short call")
    collective: float = Field(600, gt=0, description="one collective operation of the learner's ranks")
    hung: float = Field(30, ge=1, description="an actor that gives no sign of life counts as dead after this")
    stalled: float = Field(
        300, ge=1, description="a rollout or scoring worker that works without any progress counts as dead after this"
    )


class Cluster(Section):
    """The Ray cluster, and where on it the actors go."""

    address: str | None = Field(None, description="cluster to attach to (`auto`, host:port); null: start one here")
    dashboard: bool = Field(False, description="serve Ray's dashboard, on loopback")
    dashboard_port: int = Field(8265, ge=1024, le=65_535, description="the dashboard's port")
    object_store_mib: int | None = Field(
        None,
        ge=80,
        description="Ray's shared memory, in MiB, for a cluster started here; null: what weight versions and experience take, "
        "512 at least",
    )
    metrics_port: int | None = Field(
        None,
        ge=1024,
        le=65_535,
        description="port on which a cluster started here serves Prometheus; null: any free one",
    )
    placement: Literal["disaggregated", "colocated", "hybrid"] = Field(
        "disaggregated",
        description="disaggregated: each actor has devices of its own; colocated: a learner rank, an engine and the "
        "scorers share a device, and engines sleep while learners train; hybrid: scorers share the learners' devices",
    )
    gpu_share: float = Field(1.0, ge=0.01, le=1, description="share of a GPU that one device of the placement is")
    interface: str | None = Field(
        None, description="network interface of NCCL and Gloo, e.g. eth0; null: the one that has the node's Ray address"
    )
