"""Chaos: a real run, faults at the moments that the schedule names, and invariants while it goes on and when it is over."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from rlhf_dist.chaos import invariants
from rlhf_dist.chaos.faults import Grounds, Hit, inject
from rlhf_dist.chaos.made import run_config
from rlhf_dist.chaos.report import Aftermath, Report
from rlhf_dist.chaos.schedule import SETTLED, Fault, schedule
from rlhf_dist.chaos.server import LyingServer, serving
from rlhf_dist.chaos.sight import POLL_S, Sight, lives
from rlhf_dist.checkpoint import newest_checkpoint, verify
from rlhf_dist.config import RLConfig, dump
from rlhf_dist.config.chaos import ChaosConfig
from rlhf_dist.data.prompts import PromptSampler
from rlhf_dist.errors import ConfigError, ModelError
from rlhf_dist.files import as_json, write_text
from rlhf_dist.run_folder.lock import LOCK
from rlhf_dist.run_folder.names import CONFIG

REPORT = "chaos.json"
RUN = "run"
"""Name of the run's folder in that of the chaos."""
Tell = Callable[[str], None]


class Hangs(Exception):
    """The run gets no further."""


def chaos(config: ChaosConfig, folder: Path, *, seed: int, faults: int, tell: Tell) -> Report:
    """Put a run through faults, and say what broke.

    Args:
        config: the run, and which faults.
        folder: for the run's folder, what each driver says, and the report `chaos.json`.
        seed: of the schedule.
        faults: how many.
        tell: takes a line for people.

    Raises:
        ConfigError: the folder holds something already.
        UserError: the run cannot start.
    """
    from rlhf_dist.stages.rl import prepare

    if folder.exists() and {each.name for each in folder.iterdir()} - {LOCK}:
        raise ConfigError(f"{folder}: is not empty; expected a folder of its own for each chaos")
    with serving() as server:
        ppo = run_config(config, folder, url=server.url, faults=faults, seed=seed)
        write_text(folder / CONFIG, dump(config))
        prepared = prepare(ppo)
        file = folder / "rl.yaml"
        write_text(file, dump(ppo))
        before = invariants.shared_memory()
        began = time.monotonic()
        sight = Sight(file, folder / RUN, folder / "said")
        report = Report(seed, ppo.rl.iterations)
        storm = Storm(config, sight, server, report, tell)
        try:
            storm.rage(schedule(config.faults, faults, gap=config.chaos.gap, seed=seed))
        except Hangs as hang:
            report.broken.append(str(hang))
        else:
            prompts = PromptSampler(
                prepared.prompts,
                batch=ppo.rl.prompts_per_iteration,
                samples=ppo.rollout.samples_per_prompt,
                seed=ppo.seed,
            )
            report.broken += of_the_folder(ppo, sight, prompts) + invariants.processes_are_gone(sight.seen)
        finally:
            sight.end()
        report.broken += invariants.shared_memory_is_free(before)
        report.seconds = time.monotonic() - began
    write_text(folder / REPORT, as_json(report.record(), indent=2))
    return report


def of_the_folder(ppo: RLConfig, sight: Sight, prompts: PromptSampler) -> list[str]:
    """What does not hold of the run's folder when the run is over."""
    path, iterations = sight.path, ppo.rl.iterations
    return [
        *invariants.metrics_are_whole(sight.rows(), iterations),
        *invariants.rows_are_trained_once(path, prompts, iterations),
        *invariants.digests_are_true(path),
        *invariants.policy_is_finite(path),
        *invariants.folder_is_tidy(path),
    ]


class Storm:
    """Does one fault after the other to a run, and waits until it has got over each."""

    def __init__(self, config: ChaosConfig, sight: Sight, server: LyingServer, report: Report, tell: Tell) -> None:
        """Nothing is done yet."""
        self._sight, self._server, self._report, self._tell = sight, server, report, tell
        self._patience_s = config.chaos.patience_s
        self._grounds = Grounds(sight, server, config.chaos.lies, pause_s=2 * config.timeouts.hung)
        self._changed = time.monotonic()
        """When the run last got further, or was started."""
        self._resumed = ""

    def rage(self, faults: list[Fault]) -> None:
        """Start the run, do everything to it, and wait for its end.

        Raises:
            Hangs: it gets no further, or ends over and over.
        """
        self._start()
        for fault in faults:
            if not self._await(fault):
                self._broken(f"fault {fault.number}, {fault.kind}, never came: the run was over")
                return
            self._do(fault)
        self._wait(lambda: self._sight.exit_code is not None, "the end")
        if self._sight.exit_code != 0:
            self._broken(f"the last driver ended with code {self._sight.exit_code}: {self._last_words()}")

    def _start(self, *, resume: bool = False) -> None:
        self._sight.start(resume=resume)
        self._changed = time.monotonic()

    def _await(self, fault: Fault) -> bool:
        """Wait for the fault's moment, and for somebody to do it to; False if the run ends before."""
        sight = self._sight
        self._wait(
            lambda: sight.recorded() >= fault.iteration or sight.exit_code is not None,
            f"fault {fault.number} ({fault.kind})",
        )
        since = len(sight.lines)
        self._wait(
            lambda: sight.moment_came(fault.moment, since) or sight.exit_code is not None,
            f"the moment of fault {fault.number} ({fault.kind}): {fault.moment}",
        )
        return sight.exit_code is None

    def _do(self, fault: Fault) -> None:
        sight = self._sight
        high, at, since = sight.recorded(), time.monotonic(), len(sight.lines)
        hit = inject(fault, self._grounds)
        if hit is None:
            self._broken(f"fault {fault.number}, {fault.kind}: no such process")
            return
        noticed, said = None, ""
        self._resumed, self._changed = "", time.monotonic()
        over = False
        while not over:
            self._look(f"fault {fault.number} ({fault.kind}: {hit.what}) in iteration {high}")
            warned = [line for line in sight.lines[since:] if line["level"] in ("WARNING", "ERROR", "CRITICAL")]
            if not said and (warned or (sight.exit_code is not None and not fault.ends_driver)):
                noticed = None if fault.ends_driver else time.monotonic() - at
                said = str(warned[0]["message"]).splitlines()[0] if warned else self._last_words()
            if sight.exit_code is not None:
                self._go_on_after_end(fault)
            over = sight.recorded() >= high + SETTLED and self._is_over(fault, hit)
        outcome = Aftermath(
            fault=fault.kind,
            iteration=high,
            moment=fault.moment,
            what=hit.what,
            noticed_s=noticed,
            said=said,
            went_on=self._resumed or "by itself",
            on_again_s=time.monotonic() - at,
        )
        self._report.outcomes.append(outcome)
        self._tell(f"{fault.number}: {fault.kind} in iteration {high}: {hit.what}; {outcome.went_on}")
        self._check()

    def _is_over(self, fault: Fault, hit: Hit) -> bool:
        """Whether nothing of the fault is left: the process is gone, the lies are told."""
        return not (hit.victim and lives(hit.victim)) and (fault.does != "server" or self._server.honest)

    def _go_on_after_end(self, fault: Fault) -> None:
        """The driver has ended: if it may, or not, it is resumed."""
        code = self._sight.exit_code
        last = self._last_words()
        if code not in fault.may_end:
            self._broken(f"fault {fault.number}, {fault.kind}: the run ended with code {code}: {last}")
        if code == 0 or self._resumed:
            raise Hangs(f"fault {fault.number}, {fault.kind}: the run ended again, with code {code}: {last}")
        self._server.be_honest()  # one lie was enough
        self._resumed = f"resumed after code {code}"
        self._start(resume=True)

    def _last_words(self) -> str:
        said = self._sight.said
        return said[-1][:200] if said else ""

    def _check(self) -> None:
        """What holds at any moment."""
        self._report.broken += invariants.metrics_are_whole(self._sight.rows())
        newest = newest_checkpoint(self._sight.path)
        if newest is not None:
            try:
                verify(newest)
            except ModelError as error:
                if newest_checkpoint(self._sight.path) == newest:  # else it was cut down meanwhile, being old
                    self._broken(str(error))

    def _broken(self, sentence: str) -> None:
        self._report.broken.append(sentence)
        self._tell(f"broken: {sentence}")

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        self._look(what)
        while not condition():
            self._look(what)

    def _look(self, what: str) -> None:
        """Watch for a moment; a run that neither logs nor ends is not waited for without end."""
        before = len(self._sight.lines)
        self._sight.look()
        if len(self._sight.lines) > before:
            self._changed = time.monotonic()
        elif time.monotonic() - self._changed > self._patience_s:
            raise Hangs(f"the run hangs: nothing for {self._patience_s:g} s while waiting for {what}")
        time.sleep(POLL_S)
