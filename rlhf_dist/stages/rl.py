"""The PPO stage: check everything, start the system, train, judge, and leave the run folder behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.markup import escape

from rlhf_dist.checkpoint import complete_or_absent
from rlhf_dist.cluster.dealing import everyone
from rlhf_dist.cluster.fleet import Fleet
from rlhf_dist.cluster.placement import lay_out
from rlhf_dist.cluster.session import check_size, cores_per_gpu, has_gpus, namespace_of, session
from rlhf_dist.config import RLConfig
from rlhf_dist.controller import Probing, train
from rlhf_dist.data.demonstrations import demonstration_set, read_demonstrations
from rlhf_dist.data.encoder import Encoder
from rlhf_dist.data.example_view import view
from rlhf_dist.data.examples import ExampleSet
from rlhf_dist.data.prompts import PromptSampler, read_prompts
from rlhf_dist.errors import ClusterLost, ConfigError, DataError, WaitTimeout
from rlhf_dist.evaluation.bands import LAST_AND_THIS as MOST_UNDONE
from rlhf_dist.evaluation.before_after import Verdict, compare
from rlhf_dist.learner.group import LearnerGroup
from rlhf_dist.learner.memory import Memory, object_store_bytes
from rlhf_dist.learner.objective import check_own
from rlhf_dist.learner.snapshot import Snapshot
from rlhf_dist.models import check_same_tokenizer, write_ends
from rlhf_dist.parts import Parts
from rlhf_dist.planning.memory import store_memory
from rlhf_dist.planning.roles import model_folders, sizes_of
from rlhf_dist.planning.sizes import ModelSize
from rlhf_dist.records import Failure, Prompt, RowKey
from rlhf_dist.rollout.agreement import probe_tolerance
from rlhf_dist.rollout.held_out import held_out_answers
from rlhf_dist.run_folder.names import POLICY
from rlhf_dist.run_folder.quarantine import Quarantine, warning
from rlhf_dist.run_folder.rl_folder import RLFolder
from rlhf_dist.scoring.functions import GuardedRule
from rlhf_dist.stages.behind import Behind
from rlhf_dist.stages.fitting import check_room, check_room_there, check_stage
from rlhf_dist.stages.hub import resolved
from rlhf_dist.stages.inputs import changed, keep_inputs, kept_inputs
from rlhf_dist.stages.places import Where, placed
from rlhf_dist.stages.reference_values import reference_values
from rlhf_dist.stages.restarting import restarting
from rlhf_dist.stages.resume import newest, save_checkpoint
from rlhf_dist.stages.scoring import check_columns, check_functions
from rlhf_dist.stages.supervised import encoder_of
from rlhf_dist.stages.wiring import Begin, engines, model_specs, wired
from rlhf_dist.steering import State
from rlhf_dist.telemetry import logs
from rlhf_dist.telemetry.tracing import Span, Trace
from rlhf_dist.telemetry.tracing import take as take_spans

OUTPUT = POLICY
Inputs = tuple[list[Prompt], list[Prompt]]
"""Prompts to train on, and held-out ones."""
JUDGE_S = 60.0
"""Granted to the gold judge for one answer."""


@dataclass(frozen=True)
class PreparedRL:
    """What could be read and checked before a process is started."""

    prompts: list[Prompt]
    held_out: list[Prompt]
    encoder: Encoder
    sizes: dict[str, ModelSize]
    demonstrations: ExampleSet | None
    """What PPO-ptx goes on imitating."""
    state: State
    begin: Begin

    @property
    def tokenizer(self) -> Any:
        """The policy's."""
        return self.encoder.tokenizer

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """What ends an answer."""
        return self.encoder.ends.ids

    def describe(self) -> str:
        """A line for people, and one for each thing about the data that they should know."""
        at = f", going on after iteration {self.state.iteration}" if self.state.iteration else ""
        damaged = (
            f" (not from a newer checkpoint: {'; '.join(self.begin.passed_over)})" if self.begin.passed_over else ""
        )
        told = f"{len(self.prompts)} prompts, {len(self.held_out)} held out{at}{damaged}"
        return "\n".join([told, *self.encoder.notes()])

    def example(self) -> str:
        """The first prompt, as the engine is given it."""
        return view(self.encoder, self.prompts[0].tokens, (), title="A prompt as the engine is given it", mark="")


def prepare(config: RLConfig, resume: Path | None = None, inputs: Inputs | None = None) -> PreparedRL:
    """Read configs, tokenizers, prompts and, if the run is resumed, a checkpoint, and check that they fit each other.

    Args:
        config: the run's settings.
        resume: folder of a run that goes on from its newest checkpoint.
        inputs: what `read_inputs` read before, by the same tokenizer; None: not yet.

    Raises:
        UserError: names the key, folder or line, what was found and what was expected.
    """
    config = resolved(config)
    models = model_folders(config)
    others = {role: path for role, paths in models.items() for path in paths if role != "policy"}
    check_same_tokenizer(config.policy, others)
    encoder = encoder_of(config.policy)
    folders = [(role, path) for role, paths in models.items() for path in paths]
    check_stage(config, folders, encoder, config.max_sequence)
    prompts, held_out = inputs or read_inputs(config, encoder)
    state, begin = newest(config, resume) if resume else (State.start(config.algorithm), Begin())
    if resume and state.iteration and (why := changed(config, kept_inputs(resume))):
        raise DataError(f"{why}; a resumed run keeps what it has learnt from. Expected the same, or a new run")
    sizes = sizes_of(config)
    check_room(config, sizes, encoder.tell)
    for spec in model_specs(config, begin).values():
        spec.check_adapters()
    return PreparedRL(
        prompts=prompts,
        held_out=held_out,
        encoder=encoder,
        sizes=sizes,
        demonstrations=_demonstrations(config, encoder),
        state=state,
        begin=begin,
    )


def read_inputs(config: RLConfig, encoder: Encoder) -> Inputs:
    """Prompts to train on and held-out ones, after a look at every function that scores.

    Raises:
        UserError: names the key, or file and line.
    """
    check_functions(config)
    check_own(config.algorithm)
    settings = config.prompts
    prompts = read_prompts(settings, encoder)
    check_columns(config, settings.path, prompts)
    PromptSampler(prompts, batch=config.rl.prompts_per_iteration, samples=1, seed=config.seed)
    held_out = read_prompts(settings, encoder, path=settings.held_out) if settings.held_out else []
    check_columns(config, settings.held_out, held_out, judge_only=True)
    return prompts, held_out[: settings.held_out_limit]


def _demonstrations(config: RLConfig, encoder: Encoder) -> ExampleSet | None:
    """What PPO-ptx goes on imitating: all of the demonstrations, since PPO holds none of them out."""
    settings = config.demonstrations
    if settings is None or not config.rl.ptx_coef:
        return None
    rows = read_demonstrations(
        settings.path, encoder, max_tokens=settings.max_tokens, split=settings.split, settings=settings
    )
    made = demonstration_set(rows)
    longest = max(made.lengths())
    if longest > config.learner.micro_batch_tokens:
        raise ConfigError(
            f"learner.micro_batch_tokens is {config.learner.micro_batch_tokens}; expected at least {longest}, the longest of "
            "the demonstrations"
        )
    return made


def run(config: RLConfig, prepared: PreparedRL, folder: RLFolder) -> None:
    """Train, and leave the run folder complete."""
    config = resolved(config)
    needs = lay_out(config, gpus=has_gpus()).needs(config.rollout)
    if config.cluster.address is None:
        needs["cpus"] += config.rollout.workers.max - config.rollout.workers.min
    needs["store_bytes"] = sum(store_memory(config, prepared.sizes["policy"]).values())
    with folder.told_of_failure(), session(config.cluster, **needs, namespace=namespace_of(folder.path)):
        logs.to_file(logs.log_dir(folder.path), "controller")
        keep_inputs(config, folder.path)
        folder.tell("starting")
        check_room_there(config, prepared.sizes, lambda told: folder.console.say(escape(told)))
        with ExitStack() as ends:
            going = _Going(config, prepared, folder, memory_of(config), ends)
            first = _Start(prepared.state.copy(), prepared.begin)
            stopped, after = restarting(config, folder, going.once, first, going.again)
    verdict = _verdict(config, prepared, folder.answers_before(), after)
    folder.close(config, verdict, parameters=prepared.sizes["policy"].parameters, stopped=stopped)


def _verdict(config: RLConfig, prepared: PreparedRL, before: Any, after: Any) -> Verdict:
    """The gold judge's, if there is one, on the answers before and after."""
    if config.gold_judge is None:
        return compare(prepared.held_out, before, after, prepared.tokenizer, None)
    with closing(GuardedRule(config.gold_judge, JUDGE_S)) as rule:
        return compare(
            prepared.held_out, before, after, prepared.tokenizer, lambda of, said: rule(of.text, said, of.told)
        )


def memory_of(config: RLConfig) -> Memory[State]:
    """What a run remembers to go on from, and to go back to."""
    return Memory(object_store_bytes(), every=MOST_UNDONE if config.rl.stop_on.then == "roll_back" else 0)


@dataclass(frozen=True)
class _Start:
    """Where a run is wired to begin, or to go on."""

    state: State
    begin: Begin
    snapshot: Snapshot | None = None

    @property
    def step(self) -> int:
        """Iterations that are done."""
        return self.state.iteration


@dataclass
class _Going:
    """A run, and what stays of it when it is wired anew: its place, rollout workers, and the last moments of the learner."""

    config: RLConfig
    prepared: PreparedRL
    folder: RLFolder
    memory: Memory[State]
    ends: ExitStack
    """Let go of what stays."""
    _stays: tuple[Where, Fleet] | None = None

    def once(self, start: _Start) -> tuple[str | None, Any]:
        """Train until the end or a loss; returns why it ended early, if it did, and the answers to the held-out prompts."""
        self.folder.rewind(start.step)
        try:
            return self._wired(start)
        except (ClusterLost, WaitTimeout) as error:
            self.ends.close()  # after a wait that ran out nobody knows who hangs, so everybody is started anew
            self._stays = None
            if isinstance(error, ClusterLost):
                self.memory.clear()
            raise

    def _wired(self, start: _Start) -> tuple[str | None, Any]:
        config, folder = self.config, self.folder
        where, rollouts = self._stays = self._stays or self._placed()
        with wired(config, where, rollouts, start.begin, self.memory, self.prepared.prompts) as parts:
            if start.snapshot is not None:
                parts.learner.restore(start.snapshot)
            self.memory.clear()
            folder.listeners.append(parts.store.note.remote)
            stopped = _train(parts, self.prepared, config, folder, start.state)
            folder.tell("evaluating")
            parts.turns.to_others()
            after = held_out_answers(parts.rollouts, self.prepared.held_out, timeout_s=config.timeouts.batch)
            save_policy(parts.learner, self.prepared.encoder, folder.path / OUTPUT)
            folder.listeners.clear()
        return stopped, after

    def _placed(self) -> tuple[Where, Fleet]:
        config, folder = self.config, self.folder
        layout = lay_out(config, gpus=has_gpus(), cores=cores_per_gpu())
        check_size(*layout.totals())
        where = self.ends.enter_context(placed(layout, folder.path, config.timeouts))
        where.watch.say = lambda told: folder.console.say(escape(told))
        return where, self.ends.enter_context(engines(config, where, self.prepared.eos_token_ids))

    def again(self) -> _Start:
        """Where to go on after a loss: the newest checkpoint, or the last moment that is remembered, if that is later.

        What is remembered serves once: if it is lost with a node that held it, the checkpoint comes next.
        """
        kept = self.memory.newest()
        self.memory.clear()
        state, begin = newest(self.config, self.folder.path)
        if kept is None or kept.state.iteration <= state.iteration:
            return _Start(state, begin)
        return _Start(kept.state.copy(), replace(begin, iteration=kept.state.iteration, state=""), kept.snapshot)


def _train(parts: Parts, prepared: PreparedRL, config: RLConfig, folder: RLFolder, state: State) -> str | None:
    """Publish the first version, answer the held-out prompts with it, and train, reporting every iteration.

    Returns why training ended early, if it did.
    """
    probing = probing_of(prepared, config)
    parts.learner.publish(parts.store, state.iteration, probe_tokens=probing.tokens)
    parts.memory.keep(parts.learner, state.copy())
    parts.turns.to_others()
    if state.iteration == 0:
        folder.tell("evaluating")
        folder.keep_answers_before(held_out_answers(parts.rollouts, prepared.held_out, timeout_s=config.timeouts.batch))
    prompts = PromptSampler(
        prepared.prompts,
        batch=config.rl.prompts_per_iteration,
        samples=config.rollout.samples_per_prompt,
        seed=config.seed,
        greedy=config.algorithm.baseline == "greedy",
    )
    quarantine = Quarantine(folder.path)
    quarantine.rewind(state.iteration)
    trace = Trace(folder.path / "trace.json", config.telemetry.trace_iterations)

    def report(iteration: int, metrics: Mapping[str, float], batch: Any, failures: Mapping[RowKey, Failure]) -> None:
        parts.memory.keep(parts.learner, state.copy())  # first, since the ranks copy while the rest is written
        if failures:
            quarantine.add(failures)
            folder.console.say(escape(warning(failures, config.batch_samples - batch.num_rows - len(failures))))
        folder.record(iteration, metrics, fleet=parts.rollouts.states())
        if config.experience.keep:
            folder.keep(iteration, batch)
        if trace.wants(iteration):
            spans = spans_of(parts, timeout_s=config.timeouts.call)
            # Not so many seconds ago: what was written since has taken its own time.
            trace.add(spans, since_us=max(each.start_us for each in spans["controller"] if each.name == "experience"))
        if config.checkpoint_every and (iteration + 1) % config.checkpoint_every == 0:
            save_checkpoint(behind, prepared.tokenizer, folder.path, state, config, ends=prepared.eos_token_ids)

    if prepared.demonstrations is not None:
        parts.learner.imitate(prepared.demonstrations)
    values = reference_values(parts, prompts, config, folder.path, iteration=state.iteration)
    progress = folder.console.progress(config.algorithm.method, config.rl.iterations, done=state.iteration)
    with Behind(parts.learner) as behind, progress:
        return train(parts, prompts, config, probing=probing, report=report, state=state, values=values)


def spans_of(parts: Parts, *, timeout_s: float) -> dict[str, list[Span]]:
    """What every actor did since it was asked last, the controller included."""
    doing = "telling what they did"
    found = {"controller": take_spans()}
    for fleet in (parts.rollouts, *parts.scorers.values()):
        found |= everyone(fleet, lambda worker: worker.take_spans.remote(), timeout_s=timeout_s, doing=doing)
    others = {f"learner-{number}": rank for number, rank in enumerate(parts.learner.ranks)} | {"store": parts.store}
    calls = {name: actor.take_spans.remote() for name, actor in others.items()}
    return found | parts.watch.wait(calls, timeout_s=timeout_s, doing=doing)


def save_policy(learner: LearnerGroup, encoder: Encoder, folder: Path) -> None:
    """Write the policy with its tokenizer and ends, as transformers and vLLM load it; the folder is complete or absent."""
    with complete_or_absent(folder, learner.written) as aside:
        learner.save("policy", aside.absolute())
        encoder.tokenizer.save_pretrained(aside)
        write_ends(aside, encoder.ends.ids)


def probing_of(prepared: PreparedRL, config: RLConfig) -> Probing:
    """How engines are compared: at first on the first prompt, again and again, until it is as long as a sample may be."""
    tokens: Sequence[int] = prepared.prompts[0].tokens
    wanted = max(2, config.max_sequence - 1)
    return Probing([tokens[number % len(tokens)] for number in range(wanted)], probe_tolerance(config))
