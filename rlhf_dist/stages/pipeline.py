"""The whole way: fine-tuning, a reward model if PPO's rewards have it, PPO; each stage's output is the next one's input.

Finished stages are skipped, unless what they have read has changed since: then they run again, and after them those that read
what they made. What such a stage had left is moved into its `earlier-N/`. What people said of the run's own answers, once
`again` has taken it, is data of the reward model beside the config's.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.markup import escape

from rlhf_dist.cluster.placement import lay_out
from rlhf_dist.cluster.session import has_gpus, namespace_of, session
from rlhf_dist.config import (
    SFT,
    CommentJudge,
    Feedback,
    Job,
    PipelineConfig,
    RewardConfig,
    RLConfig,
    SFTConfig,
    dump,
    load,
)
from rlhf_dist.config.pipeline import OWN_REWARD
from rlhf_dist.errors import ConfigError
from rlhf_dist.files import write_text
from rlhf_dist.models import read_config
from rlhf_dist.planning.memory import store_memory
from rlhf_dist.planning.sizes import model_size
from rlhf_dist.run_folder.console import Console
from rlhf_dist.run_folder.folder import RunFolder
from rlhf_dist.run_folder.names import CONFIG
from rlhf_dist.run_folder.rl_folder import RLFolder
from rlhf_dist.stages import reward, rl, sft
from rlhf_dist.stages.changes import changes
from rlhf_dist.stages.hub import resolved
from rlhf_dist.stages.resume import check_settings, told_of_resume
from rlhf_dist.stages.stage import SharingStage
from rlhf_dist.stages.standing import Standing, finished, set_aside, standing
from rlhf_dist.stages.supervised import SharedLearner, encoder_of
from rlhf_dist.tasks.start_model import make_policy
from rlhf_dist.tasks.task_data import TaskData, write_task

JUDGEMENTS = Path("feedback") / "judgements.jsonl"
"""What people said of the run's own answers."""
PEOPLE = "people"
"""What these judgements are called in the reward model's report."""
PAGE_SCALE = (1.0, 5.0)
"""Worst and best score on the page."""


def run(config: PipelineConfig, path: Path, console: Console, *, resume: bool = False) -> None:
    """Run what is not finished yet; the folder holds the RL run, and the earlier stages under `stages/`.

    Args:
        config: all stages' settings.
        path: the run folder.
        console: where to speak.
        resume: let the stage that was interrupted go on from its newest checkpoint.

    Raises:
        ConfigError: a finished stage was made with other settings.
    """
    path.mkdir(parents=True, exist_ok=True)
    given = config.model_copy(update={"run_dir": str(path)})
    if config.task is not None:
        _check_unchanged(path / "pipeline.yaml", config, of=("task.", "model.", "seed", "prompts.held_out_limit"))
        config = with_task(config, path, console)
    ppo = rl_config(config, path)
    supervised = supervised_stages(config, path)
    everything: list[Job] = [*(stage for _, _, stage in supervised), ppo]
    for stage in filter(finished, everything):
        _check_unchanged(Path(stage.run_dir) / CONFIG, stage, run=path)
    # Read first: else it would be found wrong when two models are trained.
    encoder = encoder_of(config.policy)
    done = all(standing(stage, resume=resume).done for stage in everything)
    inputs = None if done else rl.read_inputs(ppo, encoder)
    for note in encoder.notes():
        console.say(escape(note))
    if resume and not finished(ppo):
        check_settings(ppo, path)
    write_text(path / "pipeline.yaml", dump(given))
    needs = lay_out(config, gpus=has_gpus()).needs(config.rollout)
    needs["store_bytes"] = _held_at_once(config, ppo)
    with session(config.cluster, **needs, namespace=namespace_of(path)):
        _supervise(supervised, console, share=_room_for_both(config), resume=resume)
        _reinforce(ppo, inputs, path, console, resume=resume)


def _reinforce(ppo: RLConfig, inputs: rl.Inputs | None, path: Path, console: Console, *, resume: bool) -> None:
    """Run PPO, unless it is finished."""
    found = standing(ppo, resume=resume)
    console.say(f"ppo: {escape(found.told)}")
    if found.done:
        return
    prepared = rl.prepare(ppo, resume=path if found.goes_on else None, inputs=inputs)
    console.say(f"[bold]ppo:[/] {escape(prepared.describe())}")
    _make_room(found, path, console)
    notes = told_of_resume(resolved(ppo), path, prepared.begin) if found.goes_on else []
    folder = RLFolder(path, ppo, console=console, notes=notes)
    rl.run(ppo, prepared, folder)


def _make_room(found: Standing, path: Path, console: Console) -> None:
    """Set aside what a stage has left that does not count any more, now that all that it reads has been checked."""
    if found.anew:
        console.say(f"what it had left is in {escape(str(set_aside(path)))}")


def with_task(config: PipelineConfig, path: Path, console: Console) -> PipelineConfig:
    """The config with what its embedded task brings: data, a model of random weights, a gold judge."""
    assert config.task is not None
    console.say(f"[bold]The task {config.task.name}:[/] writing prompts, demonstrations and feedback")
    data = write_task(config.task, path / "data", held_out=config.prompts.held_out_limit, seed=config.seed)
    start = path / "stages" / "start"
    if not start.exists():
        make_policy(config.model, data.tokenizer, start, seed=config.seed)
    return _filled(config, start, data, path)


def _filled(config: PipelineConfig, start: Path, data: TaskData, path: Path) -> PipelineConfig:
    demonstrations = config.sft.data.model_copy(update={"path": data.demonstrations})
    prompts = {"path": data.prompts, "held_out": data.held_out, "column": "prompt"}
    judges: dict[str, Any] = {}
    rated = config.comment_judge.data.model_copy(update={"path": data.ratings or ""})
    if data.ratings:
        judges["comment_judge"] = CommentJudge(model=str(path / "stages/judge" / sft.OUTPUT), **data.judge)
    made = {
        "task": None,
        "policy": str(start),
        "prompts": config.prompts.model_copy(update=prompts),
        "gold_judge": data.gold_judge,
        "sft": config.sft.model_copy(update={"data": demonstrations}),
        "comment_judge": config.comment_judge.model_copy(update={"data": rated}),
        "reward_model": config.reward_model.model_copy(update={"data": data.feedback, **judges}),
    }
    return PipelineConfig.model_validate({**dict(config), **made})


def rl_config(config: PipelineConfig, path: Path) -> RLConfig:
    """The PPO part as a config of its own, so that `rlhf-dist rl RUN/config.yaml` runs it again."""
    own = str(path / OWN_REWARD)
    rewards = tuple(
        each.model_copy(update={"path": own}) if each.kind == "model" and each.path == OWN_REWARD else each
        for each in config.reward
    )
    kept = {name: getattr(config, name) for name in RLConfig.model_fields}
    if config.rl.ptx_coef:
        kept["demonstrations"] = config.demonstrations or config.sft.data
    return RLConfig(
        **{**kept, "policy": str(path / "stages/sft" / sft.OUTPUT), "reward": rewards, "run_dir": str(path)}
    )


def supervised_stages(config: PipelineConfig, path: Path) -> list[tuple[SharingStage, str, Job]]:
    """Modules, names and configs of the stages before PPO."""
    judge = _sft_config(config, config.comment_judge, path / "stages/judge")
    tuned: tuple[SharingStage, str, Job] = (sft, "sft", _sft_config(config, config.sft, path / "stages/sft"))
    if not config.trains_reward_model:
        return [tuned]
    return [
        tuned,
        *([(sft, "judge", judge)] if judge.data.path else []),
        (reward, "reward", _reward_config(config, path)),
    ]


def _sft_config(config: PipelineConfig, stage: SFT, path: Path) -> SFTConfig:
    return SFTConfig(**_shared(config, path), **dict(stage), model=config.policy)


def _reward_config(config: PipelineConfig, path: Path) -> RewardConfig:
    policy = str(path / "stages/sft" / sft.OUTPUT)
    made = {"model": policy, "policy": policy, "prompts": config.prompts, "rollout": config.rollout}
    heard = {**dict(config.reward_model), "data": _with_people(config.reward_model.data, path)}
    return RewardConfig(**_shared(config, path / "stages/reward"), **heard, **made)


def _with_people(data: tuple[Feedback, ...], path: Path) -> tuple[Feedback, ...]:
    """Feedback, and what people said of the run's own answers, if they did and it is not among it already."""
    file = path / JUDGEMENTS
    if not file.exists() or any(Path(each.path).resolve() == file.resolve() for each in data):
        return data
    return (*data, Feedback(path=str(file), source=PEOPLE, scale=PAGE_SCALE))


def _shared(config: PipelineConfig, path: Path) -> dict[str, Any]:
    names = set(Job.model_fields) - {"run_dir"}
    return {**{name: getattr(config, name) for name in names}, "run_dir": str(path)}


def _held_at_once(config: PipelineConfig, ppo: RLConfig) -> float:
    """Bytes of shared memory that the last stage will need: known before the first, whose policy has its size."""
    size = model_size(read_config(config.policy), kind="policy", lora=ppo.learner.lora)
    return sum(store_memory(ppo, size).values())


def _room_for_both(config: PipelineConfig) -> bool:
    """Whether engines, which the reward model's stage needs for a while, find room beside the learner's ranks.

    On GPUs they take turns: an engine has the devices to itself between two groups.
    """
    import ray

    slots = ray.cluster_resources().get("CPU", 0.0)
    return not has_gpus() and slots >= config.learner.ranks + config.rollout.workers.min


def _supervise(stages: Sequence[tuple[SharingStage, str, Job]], console: Console, *, share: bool, resume: bool) -> None:
    """Run the supervised stages that are not finished, with `share` on one learner group for them all."""
    with closing(SharedLearner()) as shared:
        for stage, name, config in stages:
            path, found = Path(config.run_dir), standing(config, resume=resume)
            console.say(f"{name}: {escape(found.told)}")
            if found.done:
                continue
            prepared = stage.prepare(config, resume=path if found.goes_on else None)
            console.say(f"[bold]{name}:[/] {escape(prepared.describe())}")
            _make_room(found, path, console)
            folder = RunFolder(path, config, console=console, stage=name)
            stage.run(config, prepared, folder, shared if share else None)


def _check_unchanged(file: Path, config: Job, of: tuple[str, ...] = ("",), *, run: Path | None = None) -> None:
    """Compare settings with those that a folder was made with, if it was: all, or those under some sections.

    That people have judged answers of the pipeline's `run` since is no changed setting.
    """
    if not file.exists():
        return
    made = load(type(config), file)
    if run is not None and isinstance(made, RewardConfig):
        made = made.model_copy(update={"data": _with_people(made.data, run)})
    for key, before, now in changes(made, config):
        if key.startswith(of) and key != "run_dir":  # its folder is the file's, however it is spelt
            raise ConfigError(
                f"{file.parent} was made with {key} = {before!r}, the config now says {now!r}; expected the same. Delete the "
                "folder to make it again, or name another --run-dir"
            )
