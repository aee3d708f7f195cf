"""Whether a stage's models can do what is wanted of them, asked before anything starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rlhf_dist.cluster.session import has_gpus
from rlhf_dist.config import EvaluateConfig, Job, RLConfig, RLJob
from rlhf_dist.config.job import ScoringJob
from rlhf_dist.data.encoder import Encoder
from rlhf_dist.errors import ConfigError
from rlhf_dist.learner.deepspeed_settings import check_deepspeed
from rlhf_dist.models import check_models, read_config
from rlhf_dist.models.attention import attention_note
from rlhf_dist.models.tensor_parallel import check_can_be_cut
from rlhf_dist.planning.advice import MORE_CARDS, advice
from rlhf_dist.planning.attached import machines_there
from rlhf_dist.planning.plan import Machines, make_plan, this_machine
from rlhf_dist.planning.scenes import Sizes
from rlhf_dist.rollout.engine_args import check_engine_args
from rlhf_dist.store.lent import check_lending


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
        EnvironmentProblem: what `weights.transport` takes is not installed.
        ModelError: names role and folder, what was found and what was expected.
    """
    if isinstance(config, RLJob | EvaluateConfig):
        _check_cut(config, models)
    if isinstance(config, RLJob) and config.weights.transport == "sharded_rdt":
        check_lending()
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


def check_room(config: RLConfig, sizes: Sizes, tell: Callable[[str], None]) -> None:
    """Refuse a run on this machine's GPUs that its plan has no room for; of CPUs' memory, which gives way, it is only told.

    Args:
        config: the run's; one on another cluster, whose nodes are not known before it answers, is for `check_room_there`.
        sizes: of its models (`planning.roles.sizes_of`).
        tell: takes a sentence for people.

    Raises:
        ConfigError: names the devices, and what would help.
    """
    if config.cluster.address is None:
        _check_plan(config, this_machine(config, sizes), sizes, tell)


def check_room_there(config: RLConfig, sizes: Sizes, tell: Callable[[str], None]) -> None:
    """The same for GPUs of the cluster that a run has attached to; other arguments and errors as for `check_room`.

    Raises:
        WaitTimeout: a node does not say in time how large its GPUs are.
    """
    if config.cluster.address is None or not has_gpus():
        return
    machines = machines_there(timeout_s=config.timeouts.start)
    if machines is None:
        tell("Ray counts GPUs on this cluster, but torch finds none of them: everything is computed on CPUs")
        return
    _check_plan(config, machines, sizes, tell)


def _check_plan(config: RLConfig, machines: Machines, sizes: Sizes, tell: Callable[[str], None]) -> None:
    problems = make_plan(config, machines, sizes).problems()
    if problems and machines.gpus_per_node:
        changes = advice(config, machines, sizes)
        helping = f"it would fit with `--set {' --set '.join(changes)}`"
        if changes == [MORE_CARDS]:
            helping = "nothing that was tried helps but more GPUs, or a smaller model"
        raise ConfigError(
            f"this run does not fit: {'; '.join(problems)}. By its plan {helping}; `rlhf-dist plan` says more"
        )
    for problem in problems:
        tell(f"this machine's memory may not be enough: {problem}")
