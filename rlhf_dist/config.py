"""Every setting of a PPO run: typed, bounded, documented where it is declared.

Imports neither torch, ray nor vllm, so that `--help` and validation answer at once. A default lives here and nowhere else.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rlhf_dist.errors import ConfigError

C = TypeVar("C", bound=BaseModel)


class Section(BaseModel):
    """A frozen part of the config that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Prompts(Section):
    """Where prompts come from."""

    path: str = Field(description="JSONL, Parquet, Arrow file, or a `datasets` name")
    column: str | None = Field(None, description="column with the prompt; default: `prompt`, else `messages`")
    split: str = Field("train", description="split, for a `datasets` name")
    max_tokens: int = Field(512, ge=1, le=1_000_000, description="longest prompt, in tokens; a longer one is refused")
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
    temperature: float = Field(1.0, gt=0, le=10, description="softmax temperature of sampling and of all log-probs")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus: smallest set of tokens with this probability mass")
    top_k: int = Field(0, ge=0, description="only the k likeliest tokens; 0: all")
    stop: tuple[str, ...] = Field((), description="strings that end an answer (they stay part of it)")
    prefix_caching: bool = Field(True, description="share the KV cache of equal prompt beginnings (vLLM)")
    max_concurrent: int = Field(256, ge=1, le=65_536, description="samples that one engine decodes at once")
    gpu_memory_fraction: float = Field(0.5, gt=0, le=1, description="share of a GPU's memory for the engine (vLLM)")
    kv_cache_gib: float = Field(1.0, gt=0, description="KV cache per engine on CPU, in GiB (vLLM)")
    compile: bool = Field(False, description="let vLLM compile the model and capture CUDA graphs: slower start")
    threads: int = Field(1, ge=1, description="CPU threads per worker, where there is no GPU")


class Scoring(Section):
    """How finished samples are scored."""

    reward_workers: int = Field(1, ge=1, le=1024, description="processes that hold the reward model")
    reference_workers: int = Field(1, ge=1, le=1024, description="processes that hold the reference policy")
    batch_tokens: int = Field(8192, ge=1, description="tokens per forward pass, padding included")
    threads: int = Field(1, ge=1, description="CPU threads per worker, where there is no GPU")


class Optimizer(Section):
    """AdamW and its schedule."""

    lr: float = Field(1e-6, gt=0, le=1, description="peak learning rate")
    betas: tuple[float, float] = Field((0.9, 0.95), description="AdamW's moment decay rates")
    eps: float = Field(1e-8, gt=0, description="AdamW's denominator offset")
    weight_decay: float = Field(0.0, ge=0, le=1, description="decoupled weight decay")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this global norm")
    warmup: float = Field(0.05, ge=0, le=1, description="share of all optimiser steps spent warming up")
    schedule: Literal["constant_with_warmup", "linear", "cosine"] = Field(
        "constant_with_warmup", description="learning rate after the warm-up"
    )


class Learner(Section):
    """The DeepSpeed group that trains policy and critic."""

    ranks: int = Field(1, ge=1, le=65_536, description="data-parallel processes, one GPU each where there are GPUs")
    zero_stage: Literal[0, 1, 2, 3] = Field(2, description="what ZeRO shards: 1 optimiser, 2 + gradients, 3 + weights")
    cpu_offload: bool = Field(False, description="keep optimiser state in host memory (GPU machines)")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="precision of forward and backward passes")
    critic: Literal["model", "value_head"] = Field("model", description="a model of its own, or a head on the policy")
    gradient_checkpointing: bool = Field(False, description="recompute activations instead of keeping them")
    micro_batch_tokens: int = Field(8192, ge=1, description="tokens of one forward and backward pass")
    row_tokens: int = Field(
        0, ge=0, description="samples are packed into rows of this many tokens; 0: the longest sample's length"
    )
    attention: Literal["sdpa", "eager", "flash_attention_2"] = Field("sdpa", description="attention kernels")
    threads: int = Field(2, ge=1, description="CPU threads per rank, where there is no GPU")
    policy: Optimizer = Field(Optimizer(), description="the policy's optimiser")
    value: Optimizer = Field(Optimizer(lr=1e-5), description="the critic's optimiser")


class PPO(Section):
    """Proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347) as in RLHF (arXiv:1909.08593)."""

    iterations: int = Field(100, ge=1, description="rollout-and-update rounds")
    prompts_per_iteration: int = Field(64, ge=1, description="prompts of one round")
    epochs: int = Field(1, ge=1, le=100, description="passes over each round's samples")
    mini_batches: int = Field(1, ge=1, description="optimiser steps per pass")
    clip_ratio: float = Field(0.2, gt=0, lt=1, description="the ratio is clipped to 1 ± this")
    clip_value: float = Field(0.2, gt=0, description="the new value is clipped to the old value ± this")
    gamma: float = Field(1.0, ge=0, le=1, description="discount per token")
    gae_lambda: float = Field(0.95, ge=0, le=1, description="GAE's bias and variance trade-off")
    kl_coef: float = Field(0.05, ge=0, description="weight of the KL penalty in the reward")
    kl_target: float | None = Field(
        None,
        gt=0,
        description="KL per sample, in nats, that an adaptive coefficient steers to; null: fixed coefficient",
    )
    kl_horizon: int = Field(10_000, ge=1, description="samples over which the adaptive coefficient reacts")
    entropy_coef: float = Field(0.0, ge=0, description="weight of the entropy bonus")
    value_coef: float = Field(0.5, ge=0, description="weight of the value loss where the critic is a head")
    whiten_advantages: bool = Field(True, description="zero mean and unit variance over the batch, all ranks together")
    score_clip: float | None = Field(None, gt=0, description="reward scores are clipped to ± this; null: not at all")
    missing_eos_penalty: float = Field(0.0, ge=0, description="taken off the score of an answer cut at max_new_tokens")
    max_policy_kl: float | None = Field(
        None, gt=0, description="epochs stop early once the mean KL of the new to the old policy exceeds this, in nats"
    )


class Supervised(Section):
    """A supervised stage: fine-tuning, or a reward model."""

    examples: int = Field(4096, ge=8, description="demonstrations or preference pairs")
    held_out: int = Field(256, ge=1, description="of these, how many are only for evaluation")
    batch_size: int = Field(64, ge=1, description="demonstrations or pairs of one optimiser step")
    epochs: int = Field(1, ge=1, le=1000, description="passes over the data")
    optimizer: Optimizer = Field(Optimizer(lr=1e-5), description="the stage's optimiser")

    @model_validator(mode="after")
    def _leaves_a_batch(self) -> Supervised:
        if self.examples - self.held_out < self.batch_size:
            raise ValueError(
                f"examples {self.examples} less held_out {self.held_out} is below one batch_size of {self.batch_size}"
            )
        return self


class ModelShape(Section):
    """The small Llama that the demo makes from nothing."""

    hidden: int = Field(160, ge=16, multiple_of=8, description="hidden size")
    layers: int = Field(4, ge=1, le=64, description="decoder layers")
    heads: int = Field(5, ge=1, description="attention heads")
    positions: int = Field(256, ge=32, description="longest sequence, in tokens")

    @model_validator(mode="after")
    def _heads_fit_kernels(self) -> ModelShape:
        if self.hidden % (32 * self.heads):
            raise ValueError(
                f"model.hidden {self.hidden} over model.heads {self.heads} is a head of {self.hidden / self.heads:g}; "
                "expected a multiple of 32, which vLLM's CPU attention needs"
            )
        return self


class Experience(Section):
    """The experience store."""

    max_staleness: Literal[0] = Field(0, description="weight versions that a sample may lag; 0: strictly on-policy")
    keep: bool = Field(False, description="write every iteration's samples as Arrow files into the run folder")
    capacity_rows: int | None = Field(
        None, ge=1, description="most samples held at once; null: what the schedule needs"
    )


class Weights(Section):
    """Weights on their way from learner to rollout workers."""

    wire_dtype: Literal["float32", "bfloat16", "auto"] = Field("auto", description="auto: the learner's precision")
    bucket_mib: int = Field(256, ge=1, le=4096, description="size of one Arrow bucket, in MiB")
    probe_every: int = Field(10, ge=1, description="versions between two comparisons of the engine with the learner")
    probe_tolerance: float | None = Field(
        None, gt=0, description="largest mean difference of probe log-probs, in nats; null: 1e-3 in fp32, 0.1 in bf16"
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
    call: float = Field(60, gt=0, description="a short call")


class Cluster(Section):
    """The Ray cluster, and where on it the actors go."""

    address: str | None = Field(None, description="cluster to attach to (`auto`, host:port); null: start one here")
    dashboard: bool = Field(False, description="serve Ray's dashboard, on loopback")
    dashboard_port: int = Field(8265, ge=1024, le=65_535, description="the dashboard's port")
    object_store_mib: int = Field(512, ge=80, description="Ray's shared memory, in MiB, for a cluster started here")
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
    gpu_share: float = Field(1.0, gt=0, le=1, description="share of a GPU that one device of the placement is")
    interface: str | None = Field(
        None, description="network interface of NCCL and Gloo, e.g. eth0; null: the one that has the node's Ray address"
    )


class PPOConfig(Section):
    """One PPO run."""

    policy: str = Field(description="Hugging Face folder or name of the policy to train")
    reward: str = Field(
        description="Hugging Face folder or name of the reward model (sequence classification, 1 label)"
    )
    reference: str | None = Field(None, description="the reference policy; null: the policy as it starts")
    critic: str | None = Field(None, description="the critic's start; null: the reward model")
    prompts: Prompts = Field(description="prompts")
    gold_judge: str | None = Field(
        None,
        pattern=r"^[\w.]+:\w+$",
        description="`package.module:function` of (prompt, answer), a rule that judges held-out answers and never trains",
    )
    run_dir: str = Field("runs/ppo", description="folder that the run leaves behind")
    seed: int = Field(0, ge=0, lt=2**31, description="every random choice derives from it")
    checkpoint_every: int = Field(
        0,
        ge=0,
        description="iterations between checkpoints, from which --resume goes on; 0: only the policy, at the end",
    )
    ppo: PPO = PPO()
    rollout: Rollout = Rollout()
    scoring: Scoring = Scoring()
    learner: Learner = Learner()
    experience: Experience = Experience()
    weights: Weights = Weights()
    telemetry: Telemetry = Telemetry()
    timeouts: Timeouts = Timeouts()
    cluster: Cluster = Cluster()

    @property
    def batch_samples(self) -> int:
        """Samples of one iteration."""
        return self.ppo.prompts_per_iteration * self.rollout.samples_per_prompt

    @property
    def max_sequence(self) -> int:
        """Tokens of the longest prompt and answer together."""
        return self.prompts.max_tokens + self.rollout.max_new_tokens

    @property
    def wire_dtype(self) -> str:
        """Torch's name of the dtype in which weights travel."""
        if self.weights.wire_dtype == "auto":
            return "bfloat16" if self.learner.precision == "bf16" else "float32"
        return self.weights.wire_dtype

    @property
    def probe_tolerance(self) -> float:
        """Largest mean difference between the engine's and the learner's probe log-probs, in nats."""
        return self.weights.probe_tolerance or (1e-3 if self.wire_dtype == "float32" else 0.1)

    @model_validator(mode="after")
    def _settings_fit_each_other(self) -> PPOConfig:
        if self.ppo.prompts_per_iteration < self.ppo.mini_batches:
            raise ValueError(
                f"ppo.mini_batches is {self.ppo.mini_batches}, more than the {self.ppo.prompts_per_iteration} prompts "
                "of ppo.prompts_per_iteration; expected at most one mini-batch per prompt"
            )
        if self.batch_samples < self.learner.ranks * self.ppo.mini_batches:
            raise ValueError(
                f"a batch has {self.batch_samples} samples for learner.ranks {self.learner.ranks} x ppo.mini_batches "
                f"{self.ppo.mini_batches}; expected at least one sample per rank and mini-batch"
            )
        if self.learner.micro_batch_tokens < self.max_sequence:
            raise ValueError(
                f"learner.micro_batch_tokens is {self.learner.micro_batch_tokens}; expected at least prompts.max_tokens "
                f"+ rollout.max_new_tokens = {self.max_sequence}, so that the longest sample fits"
            )
        capacity = self.experience.capacity_rows
        needed = (self.experience.max_staleness + 1) * self.batch_samples
        if capacity is not None and capacity < needed:
            raise ValueError(
                f"experience.capacity_rows is {capacity}; expected at least (max_staleness + 1) x batch = {needed}, "
                "else no batch ever completes"
            )
        if self.learner.critic == "value_head" and self.critic is not None:
            raise ValueError("critic names a model but learner.critic is value_head; expected one of the two")
        return self

    @model_validator(mode="after")
    def _engines_can_share(self) -> PPOConfig:
        if self.cluster.placement != "colocated":
            return self
        workers = self.rollout.workers
        if workers.min != workers.max or workers.max > self.learner.ranks:
            raise ValueError(
                f"cluster.placement colocated puts one engine beside one learner rank; rollout.workers is {workers.min} to "
                f"{workers.max}, expected a number of at most learner.ranks = {self.learner.ranks}"
            )
        if self.rollout.tensor_parallel > 1:
            raise ValueError(
                f"cluster.placement colocated with rollout.tensor_parallel {self.rollout.tensor_parallel}; expected 1, since "
                "an engine over several GPUs cannot share them with a rank on each. Take disaggregated or hybrid"
            )
        return self


class DemoConfig(PPOConfig):
    """The demo: fine-tuning, a reward model and PPO on the embedded help desk. The PPO models are the earlier stages'."""

    policy: str = Field("", description="made by the demo")
    reward: str = Field("", description="made by the demo")
    prompts: Prompts = Field(Prompts(path=""), description="made by the demo")
    model: ModelShape = ModelShape()
    sft: Supervised = Supervised()
    reward_model: Supervised = Supervised()
    prompt_count: int = Field(4096, ge=64, description="most prompts that PPO trains on")


def load(kind: type[C], path: Path, overrides: list[str] | None = None) -> C:
    """Read a YAML file, apply `key.sub=value` overrides, and check everything.

    Raises:
        ConfigError: names the file (or the override), the key, what was found and what was expected.
    """
    tree = _read_yaml(path)
    for override in overrides or []:
        _apply(tree, override)
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(kind, path, item) for item in error.errors())) from None


def dump(config: BaseModel) -> str:
    """The resolved config as YAML, enough to run again."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"{path}: no such config file; expected a YAML file")
    try:
        tree = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: found {type(tree).__name__}; expected a mapping of settings")
    return tree


def _apply(tree: dict[str, Any], override: str) -> None:
    key, found, value = override.partition("=")
    if not found or not key:
        raise ConfigError(f"--set {override}: expected key.sub=value")
    *parents, leaf = key.split(".")
    for parent in parents:
        branch = tree.setdefault(parent, {})
        if not isinstance(branch, dict):
            raise ConfigError(f"--set {override}: {parent} is a value, not a section")
        tree = branch
    try:
        tree[leaf] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: {value!r} is not valid YAML: {error}") from None


def _explain(kind: type[BaseModel], path: Path, item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        near = nearest_key(kind, [str(part) for part in item["loc"]])
        hint = f"; did you mean `{near}`?" if near else ""
        return f"{path}: unknown key `{key}`{hint}"
    if item["type"] == "missing":
        return f"{path}: key `{key}` is missing; expected {_description(kind, item['loc'])}"
    message = item["msg"].removeprefix("Value error, ")
    return f"{path}: {message}" if not key else f"{path}: `{key}` is {item['input']!r}; expected: {message}"


def keys(kind: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted key that a config may have."""
    found = []
    for name, field in kind.model_fields.items():
        found.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += keys(field.annotation, f"{prefix}{name}.")
    return found


def nearest_key(kind: type[BaseModel], location: list[str]) -> str | None:
    """The valid dotted key that looks most like the one found, or None."""
    valid = keys(kind)
    same_leaf = [key for key in valid if key.rsplit(".", 1)[-1] == location[-1]]
    close = difflib.get_close_matches(".".join(location), same_leaf or valid, n=1, cutoff=0.0 if same_leaf else 0.7)
    return close[0] if close else None


def _description(kind: type[BaseModel], location: tuple[Any, ...]) -> str:
    field = None
    for part in location:
        field = kind.model_fields.get(str(part)) if isinstance(part, str) else None
        if field is None:
            return "a value"
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            kind = field.annotation
    return (field.description if field else None) or "a value"
