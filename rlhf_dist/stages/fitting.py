"""Whether a stage's models can do what is wanted of them, asked before anything starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlhf_dist.config import EvaluateConfig, Job, RLConfig, RLJob
from rlhf_dist.config.job import ScoringJob
from rlhf_dist.data.encoder import Encoder
from rlhf_dist.errors import ConfigError
from rlhf_dist.learner.deepspeed_settings import check_deepspeed
from rlhf_dist.models import check_models, read_config
from rlhf_dist.models.attention import attention_note
from rlhf_dist.models.tensor_parallel import check_can_be_cut
from rlhf_dist.planning.plan import here
from rlhf_dist.rollout.engine_args import check_engine_args


def check_stage(
    config: Job, models: Sequence[tuple[str, str]], encoder: Encoder, longest: int, *, lower: str = ""
) -> None:
    """Refuse models by their configs, and let the encoder tell what will be computed otherwise than asked.

    Args:
        config: the stage's.
        models: role and folder of each (`models.check_models`).
        encoder: of the first one's tokenizer.
        longest: tokens of the longest sequence.
        lower: which settings bound it; empty: those of prompts and answers.

    Raises:
        ConfigError: DeepSpeed or vLLM does not know what it would be given.
        ModelError: names role and folder, what was found and what was expected.
    """
    if isinstance(config, RLJob | EvaluateConfig):
        _check_cut(config, models)
    check_deepspeed(config.learner)
    if isinstance(config, ScoringJob):
        check_engine_args(config.rollout)
    check_models(models, encoder.tokenizer, longest, lower=lower or "prompts.max_tokens or rollout.max_new_tokens")
    for role, path in dict.fromkeys(models):
        if note := attention_note(role, path, read_config(path), config.learner.attention):
            encoder.tell(note)


def _check_cut(config: RLJob | EvaluateConfig, models: Sequence[tuple[str, str]]) -> None:
    """Refuse models of scoring workers that cannot be cut over as many devices as these have."""
    processes = config.scoring.tensor_parallel
    scored = set(config.scoring_workers) if isinstance(config, RLJob) else {"reward", "reference"}
    for role, path in dict.fromkeys(models):
        if processes > 1 and role in scored:
            check_can_be_cut(path, read_config(path), processes)


def check_room(config: RLConfig, sizes: Mapping[str, Any], tell: Callable[[str], None]) -> None:
    """Refuse a run on this machine's GPUs that its plan has no room for; of CPUs' memory, which gives way, it is only told.

    Args:
        config: the run's; one on another cluster, whose nodes are not known before it answers, is not planned here.
        sizes: of its models (`planning.roles.sizes_of`).
        tell: takes a sentence for people.

    Raises:
        ConfigError: names the devices, and what would help.
    """
    if config.cluster.address is not None:
        return
    plan = here(config, dict(sizes))
    problems = plan.problems()
    if problems and plan.machines.gpus_per_node:
        raise ConfigError(f"this run does not fit: {'; '.join(problems)}. `rlhf-dist plan` says what takes how much")
    for problem in problems:
        tell(f"this machine's memory may not be enough: {problem}")
