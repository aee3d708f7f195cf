"""What a stage has running at once: one scene after the other, each with its actors, their places and what fills their memory."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_dist.cluster.placement import Layout, Place, lay_out, lay_out_ranks
from rlhf_dist.config import DPOConfig, EvaluateConfig, Job, PipelineConfig, RewardConfig, RLJob, Rollout, SFTConfig
from rlhf_dist.config.job import ScoringJob
from rlhf_dist.config.rewards import devices_of_scorer
from rlhf_dist.config.supervised import SupervisedJob, Training
from rlhf_dist.planning.learning import GENERATE, KEPT, LearnerWork, Phases, learner_phases
from rlhf_dist.planning.memory import Engine, engine_parts, masked_row, phases, scorer_parts
from rlhf_dist.planning.sizes import ModelSize

Sizes = dict[str, ModelSize]


@dataclass(frozen=True)
class Scene:
    """Actors that are there at the same time."""

    title: str
    layout: Layout
    memory: dict[str, Phases]
    """Of one actor of each role."""
    engines: int = 0
    """Most rollout workers; more than are laid out where there may be more."""


def scenes(config: Job, sizes: Sizes, *, gpu_bytes: float | None) -> list[Scene]:
    """All scenes of a stage, in order.

    Args:
        config: the stage's settings.
        sizes: of each role's models (`planning.roles.sizes_of`).
        gpu_bytes: a GPU's memory; None: actors are in a host's.
    """
    if isinstance(config, PipelineConfig):
        return [*_before(config, sizes, gpu_bytes), _reinforcement(config, sizes, gpu_bytes)]
    if isinstance(config, RLJob):
        return [_reinforcement(config, sizes, gpu_bytes)]
    if isinstance(config, EvaluateConfig):
        return _evaluation(config, sizes, gpu_bytes)
    assert isinstance(config, SupervisedJob)
    return _supervised(config, sizes, gpu_bytes)


def _reinforcement(config: RLJob, sizes: Sizes, gpu_bytes: float | None) -> Scene:
    roles = ("learner", "rollout", *config.scoring_workers, "store")
    memory = {role: phases(role, config, sizes, gpu_bytes=gpu_bytes) for role in roles}
    layout = lay_out(config, gpus=gpu_bytes is not None)
    return Scene("reinforcement learning", layout, memory, config.rollout.workers.max)


def _supervised(config: SupervisedJob, sizes: Sizes, gpu_bytes: float | None) -> list[Scene]:
    """SFT, a reward model, or a policy from judgements; what is sampled before has the devices to itself."""
    trained = sizes["value"] if isinstance(config, RewardConfig) else sizes["policy"]
    found = []
    if isinstance(config, RewardConfig):
        length = config.prompts.max_tokens + config.rollout.max_new_tokens if config.prompts else 0
        asked = {"sampling": sizes.get("sampled"), "reading comments": sizes.get("judge")}
        found += [
            _sampling(title, config, config.rollout, size, length or config.max_tokens, gpu_bytes)
            for title, size in asked.items()
            if size is not None
        ]
    if "reference" in sizes:
        found.append(_training("asking the reference", config, sizes["reference"], gpu_bytes, None))
    assert isinstance(config, (SFTConfig, DPOConfig, RewardConfig))
    return [*found, _training("training", config, trained, gpu_bytes, config)]


def _before(config: PipelineConfig, sizes: Sizes, gpu_bytes: float | None) -> list[Scene]:
    """A pipeline's stages before the last."""
    found = [_training("fine-tuning", config, sizes["policy"], gpu_bytes, config.sft)]
    if not config.trains_reward_model:
        return found
    length = config.max_sequence
    return [
        *found,
        _sampling("sampling", config, config.rollout, sizes["policy"], length, gpu_bytes),
        _training("reward model", config, sizes["value"], gpu_bytes, config.reward_model),
    ]


def _training(title: str, config: Job, size: ModelSize, gpu_bytes: float | None, training: Training | None) -> Scene:
    """Ranks that train a model; without settings of a training they only ask it."""
    learner, gpus = config.learner, gpu_bytes is not None
    row = masked_row(learner.attention, learner.row_tokens or learner.micro_batch_tokens, gpus=gpus)
    work = LearnerWork(
        (size,),
        lora=training is not None and training.lora is not None,
        checkpoints=training is not None and training.checkpoint_every > 0,
        masked_row=row,
    )
    found = learner_phases(work, learner, learns=training is not None)
    return Scene(title, lay_out_ranks(learner, config.cluster, gpus=gpus), {"learner": found})


def _sampling(
    title: str, config: Job, rollout: Rollout, size: ModelSize, length: int, gpu_bytes: float | None
) -> Scene:
    """Engines of a fixed policy. On CPUs, and for comments, they are those of transformers."""
    own = rollout if gpu_bytes is not None else rollout.model_copy(update={"engine": "transformers"})
    if isinstance(config, ScoringJob) and not isinstance(config, PipelineConfig):
        own = rollout
    engine = Engine(own, config.learner.dtype, length, rollout.max_concurrent)
    gpus = float(rollout.tensor_parallel) if gpu_bytes is not None else 0.0
    places = tuple(Place("generator", index, 1.0, gpus, None) for index in range(rollout.workers.min))
    return Scene(title, Layout(places, ()), {"generator": {KEPT: engine_parts(engine, size, gpu_bytes)}}, len(places))


def _evaluation(config: EvaluateConfig, sizes: Sizes, gpu_bytes: float | None) -> list[Scene]:
    """Engines of one policy after the other, then each scorer by itself."""
    length = config.prompts.max_tokens + config.rollout.max_new_tokens
    found = [_sampling("sampling", config, config.rollout, sizes["policy"], length, gpu_bytes)]
    for role in ("reward", "reference"):
        cut = devices_of_scorer(role, config.reward, config.scoring.tensor_parallel) if gpu_bytes is not None else 1
        share = float(cut) if gpu_bytes is not None else 0.0
        parts = scorer_parts(sizes[role], role, config.learner.dtype, config.scoring.batch_tokens, devices=cut)
        bundle = {"CPU": 1.0, "GPU": share} if share else {"CPU": 1.0}
        layout = Layout((Place(role, 0, 1.0, share, 0),), (bundle,))
        found.append(Scene(f"scoring ({role})", layout, {role: {KEPT: parts, GENERATE: parts}}))
    return found
