"""All learner ranks as one object: it plans who gets which rows, and makes the collective calls."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from rlhf_dist.cluster import head, pulse, rendezvous
from rlhf_dist.cluster.watch import Watch
from rlhf_dist.config import RL, Learner, Timeouts
from rlhf_dist.config.sections import Transport
from rlhf_dist.data.examples import ExampleSet
from rlhf_dist.errors import EnvironmentProblem, NumbersError
from rlhf_dist.learner.dealing import Dealer
from rlhf_dist.learner.finite import check_metrics, found_in, told
from rlhf_dist.learner.frozen_model import FrozenSpec
from rlhf_dist.learner.imitation import Imitation
from rlhf_dist.learner.model_spec import Loaded, ModelSpec
from rlhf_dist.learner.objective import Now, RLObjective
from rlhf_dist.learner.policy_update import Updated
from rlhf_dist.learner.rank import Loss
from rlhf_dist.learner.snapshot import Snapshot
from rlhf_dist.learner.supervised_batch import SupervisedBatch
from rlhf_dist.learner.version_notes import notes_on
from rlhf_dist.learner.writing import GROUP as WRITING
from rlhf_dist.models import read_config
from rlhf_dist.store.experience import RowView
from rlhf_dist.store.weights import Probe
from rlhf_dist.telemetry import logs

log = logging.getLogger(__name__)

NO_FROZEN: Mapping[str, FrozenSpec] = MappingProxyType({})
MOST_LEFT_OUT = 5
"""Optimiser steps in a row that may be left out (`learner.on_bad_numbers: skip`) before the run ends."""


class LearnerGroup:
    """The learner as the controller sees it."""

    def __init__(self, ranks: Sequence[Any], settings: Learner, *, watch: Watch, timeouts: Timeouts) -> None:
        """Take over started ranks.

        Args:
            ranks: handles of `LearnerRank` actors, in rank order.
            settings: the learner's settings.
            watch: how to wait.
            timeouts: how long.
        """
        self.ranks, self.settings = list(ranks), settings
        self._watch, self._timeouts = watch, timeouts
        self.models: tuple[str, ...] = ()
        """Names of what is loaded."""
        self._dealer: Dealer
        """Who gets what; of the models that are loaded."""
        self._adapted = False
        """Whether there are versions of what adapters change, alone."""
        self._delta_every = 0
        self._published = False
        """Whether the store has a complete version of these models."""
        self._warned: set[str] = set()
        """What people were warned of, once."""
        self._demonstrations: tuple[Any, ExampleSet] | None = None
        self.num_parameters = 0
        self._left_out = 0
        """Optimiser steps that were left out, one after the other, up to now."""

    def meet(self, *, run_dir: Path, interface: str | None) -> None:
        """Let the ranks find each other.

        Raises:
            EnvironmentProblem: ranks cannot reach each other or the run folder; names who cannot reach whom.
        """
        self._guard(loading=True)
        start = self._timeouts.start
        nodes = self._call("address", timeout_s=start, doing="telling where it is")
        doors = self._call("open", rendezvous.host_for(nodes), timeout_s=start, doing="opening a port")
        self._check_reachable(doors, run_dir)
        self._call("shut", timeout_s=start, doing="closing the port")
        self._call("join", *doors[0], self._timeouts, interface, timeout_s=start, doing="meeting the other ranks")

    def load(
        self,
        specs: dict[str, ModelSpec],
        *,
        run_dir: Path,
        seed: int,
        frozen: Mapping[str, FrozenSpec] = NO_FROZEN,
    ) -> None:
        """Load models in place of those that the ranks held.

        Args:
            specs: models to train, by name.
            frozen: models to ask in every update, by name.
            run_dir: where log files go from now on.
            seed: of weights that start at random.
        """
        self.models = tuple(specs)
        paths = [each.path for each in specs.values()] + [each.path for each in frozen.values()]
        configs = [read_config(path) for path in paths]
        loaded: Loaded = self._call(
            "load",
            specs,
            {**frozen},
            logs.log_dir(run_dir),
            seed,
            timeout_s=self._timeouts.start,
            doing="loading models",
        )[0]
        self.num_parameters, layout = loaded
        self._dealer = Dealer.of(self.settings, len(self.ranks), layout, configs)
        self._guard(loading=False)

    def renew(self, name: str, spec: FrozenSpec) -> None:
        """Load a model that is only asked anew, from another folder."""
        self._call("renew", name, spec, timeout_s=self._timeouts.start, doing=f"loading the {name}")

    def close(self) -> None:
        """Stop all ranks."""
        for number, rank in enumerate(self.ranks):
            self._watch.forget(f"learner-{number}")
            head.kill(rank)

    def _guard(self, *, loading: bool) -> None:
        """Have every rank watched, also while nothing is asked of it: the loss of one ends the group's work."""
        for number, rank in enumerate(self.ranks):
            self._watch.vigil.guard(f"learner-{number}", partial(pulse.ask, rank), loading=loading)

    def _check_reachable(self, doors: Sequence[tuple[str, int]], run_dir: Path) -> None:
        """Before the first collective, which would only hang: everybody knocks at one rank of every node."""
        one_per_node = [*{host: (host, port) for host, port in doors}.values()]
        found = self._call(
            "unreachable", one_per_node, run_dir.absolute(), timeout_s=self._timeouts.start, doing="reaching the others"
        )
        problems = [
            f"learner-{rank} on {doors[rank][0]}: {problem}" for rank, told in enumerate(found) for problem in told
        ]
        if problems:
            raise EnvironmentProblem(
                "the learner's ranks cannot work together. "
                + "; ".join(problems)
                + ". Nodes must reach each other on all ports (firewall, security group), at the addresses that Ray uses "
                "(`ray start --node-ip-address`)"
            )

    def update(self, views: Sequence[RowView], objective: RLObjective, now: Now) -> dict[str, float]:
        """One update on a batch of scored rows; the mini-batches are the same whatever the number of ranks.

        Args:
            views: the batch, in canonical order.
            objective: what is estimated and minimised, and in which steps.
            now: what belongs to this update.

        Raises:
            NumbersError: something is not finite, and `learner.on_bad_numbers` says stop, or too many steps in a row were left
                out; names the samples.
        """
        rl = objective.rl
        shards = self._dealer.rows(views, rl, now.seed)
        shown = self._shown(rl, now.seed)
        calls = {
            f"learner-{rank}": handle.update.remote(shard, objective, now, demonstrations)
            for rank, (handle, shard, demonstrations) in enumerate(zip(self.ranks, shards, shown, strict=True))
        }
        results = self._watch.wait(calls, timeout_s=self._timeouts.update, doing="updating the models")
        measured = "objective/kl" in results["learner-0"].facts
        return self._judged(results, str, steps=rl.epochs * rl.mini_batches, may_skip=measured)

    def imitate(self, demonstrations: ExampleSet) -> None:
        """From now on, updates learn from demonstrations too, `rl.ptx_batch` of them in each step (PPO-ptx)."""
        import ray

        self._demonstrations = ray.put(demonstrations.table), demonstrations

    def _shown(self, rl: RL, seed: int) -> Sequence[Imitation | None]:
        if self._demonstrations is None:
            return [None] * len(self.ranks)
        return self._dealer.demonstrations(*self._demonstrations, rl, seed)

    def train_step(self, name: str, batch: SupervisedBatch, loss: Loss, *, learn: bool = True) -> dict[str, float]:
        """One supervised optimiser step (or, without `learn`, an evaluation): mean loss, and the loss's other means.

        Of a step that was left out only `skipped_steps` is told.

        Raises:
            NumbersError: as in `update`; in an evaluation always.
        """
        calls = {
            f"learner-{rank}": self.ranks[rank].train_step.remote(
                name, batch.examples, micros, loss, batch.count, batch.draws if learn else None
            )
            for rank, micros in enumerate(self._dealer.examples(batch))
        }
        results = self._watch.wait(calls, timeout_s=self._timeouts.update, doing="a training step")
        if not learn:
            return self._judged(results, batch.name_of, steps=0, may_skip=False)
        skipped = any(each.found for each in results.values())
        if skipped:
            results = {worker: Updated({}, each.found) for worker, each in results.items()}
        return self._judged(results, batch.name_of, steps=1, may_skip=True) | {"skipped_steps": float(skipped)}

    def _judged(
        self, results: Mapping[str, Updated], name_of: Callable[[Any], str], *, steps: int, may_skip: bool
    ) -> dict[str, float]:
        """The ranks' facts, unless what they found ends the run.

        Args:
            results: of all ranks.
            name_of: a sample's name.
            steps: optimiser steps that were to be taken.
            may_skip: without these steps the run can go on.
        """
        facts, found = results["learner-0"].facts, [each for result in results.values() for each in result.found]
        left_out = len({each.step for each in found})
        if steps:
            self._left_out = self._left_out + left_out if left_out >= steps else 0
        if found:
            problem = told(found, name_of)
            if self.settings.on_bad_numbers == "stop" or not may_skip:
                raise NumbersError(f"{problem}. No step was taken on it: weights and optimiser state are as before")
            if self._left_out >= MOST_LEFT_OUT:
                raise NumbersError(
                    f"{problem}. That makes {self._left_out} optimiser steps in a row that were left out"
                )
            log.warning("%s; the step was left out", problem, extra={"left_out": left_out})
        check_metrics(facts, "the learner's metrics")
        return dict(facts)

    def predict(self, name: str, batch: SupervisedBatch) -> dict[int, list[float]]:
        """What a model says of examples, by example number; see `LearnerRank.predict`.

        Raises:
            NumbersError: it is not finite of some; names them.
        """
        calls = {
            f"learner-{rank}": self.ranks[rank].predict.remote(name, batch.examples, micros)
            for rank, micros in enumerate(self._dealer.examples(batch))
        }
        found = self._watch.wait(calls, timeout_s=self._timeouts.update, doing="a forward pass")
        said = {number: values for part in found.values() for number, values in part.items()}
        odd = sorted(number for number, values in said.items() if not np.isfinite(values).all())
        if odd:
            raise NumbersError(told([found_in(1, f"what {name} says is not finite", odd)], batch.name_of))
        return said

    def plan_weights(
        self, *, bucket_bytes: int, wire_dtype: str, delta_every: int, transport: Transport = "store"
    ) -> None:
        """Fix the buckets in which the policy is published, how often whole (0: always), and by which transport."""
        call = self._timeouts.call
        adapted: list[bool] = self._call(
            "plan_weights", "policy", bucket_bytes, wire_dtype, transport, timeout_s=call, doing="planning buckets"
        )
        self._adapted, self._published, self._delta_every = adapted[0], False, delta_every

    def probe(self, tokens: Sequence[int], *, temperature: float, version: int) -> list[float]:
        """The policy's log-probs of tokens[1:], in nats.

        Raises:
            NumbersError: one is not finite; names the version that the policy is.
        """
        doing = "computing the probe"
        said: list[float] = self._call(
            "probe", list(tokens), temperature, timeout_s=self._timeouts.publish, doing=doing
        )[0]
        if not np.isfinite(said).all():
            raise NumbersError(f"weight version {version}: the policy's log-probs of the probe are not finite")
        return said

    def publish(self, store: Any, version: int, *, probe_tokens: Sequence[int] | None) -> dict[str, float]:
        """Make the policy's weights version `version` of the store; returns its metrics.

        With adapters, versions after the first have only what these change.

        Raises:
            NumbersError: a weight, or what the policy says of the probe, is not finite.
        """
        publish = self._timeouts.publish
        probe = None
        if probe_tokens is not None:
            probe = Probe(tuple(probe_tokens), tuple(self.probe(probe_tokens, temperature=1.0, version=version)))
        partial = self._published and self._adapted
        deltas = self._delta_every if self._published else 0
        ref = store.publish.remote(version, self.ranks, probe, partial, deltas)
        doing = f"publishing weight version {version}"
        facts: dict[str, float] = self._watch.one("store", ref, timeout_s=publish, doing=doing)
        self._published = True
        for about, note in notes_on(facts).items():
            if about not in self._warned:
                self._watch.say(note)
                self._warned.add(about)
        return facts

    def save(self, name: str, folder: Path) -> None:
        """Copy a model, which the ranks then write into an absolute folder in Hugging Face layout: see `written`."""
        self._call("save", name, folder, timeout_s=self._timeouts.save, doing=f"saving {name} to {folder}")

    def save_state(self, name: str, folder: Path) -> None:
        """Copy what each rank needs to go on training a model, and have it written likewise."""
        self._call("save_state", name, folder, timeout_s=self._timeouts.save, doing=f"saving the state of {name}")

    def written(self, folder: Path) -> dict[str, str]:
        """Wait for all that the ranks write below a folder; returns digests by path.

        Raises:
            StorageError: a disk takes no more.
        """
        found: list[dict[str, str]] = []
        self.when_written(folder, found.append)
        self.until(lambda: bool(found))
        return found[0]

    def when_written(self, folder: Path, done: Callable[[dict[str, str]], None]) -> None:
        """The same, telling it to `done` as soon as it is so and somebody waits for anything."""
        digests: dict[str, str] = {}
        left = {*range(len(self.ranks))}

        def take(rank: int, found: dict[str, str]) -> None:
            digests.update(found)
            left.discard(rank)
            if not left:
                done(digests)

        for number, rank in enumerate(self.ranks):
            ref = rank.written.options(concurrency_group=WRITING).remote(folder)
            doing, granted = f"writing {folder}", self._timeouts.save
            self._watch.then(f"learner-{number}", ref, partial(take, number), doing=doing, within_s=granted)

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is so that comes of what is waited for (`when_written`), whose time is bounded."""
        self._watch.until(condition, timeout_s=math.inf)

    def snapshot(self) -> Snapshot:
        """Have every rank keep what its models are now, behind what it was asked before; nobody waits for it."""
        tables = [rank.snapshot.remote() for rank in self.ranks]
        return Snapshot(tables, [rank.snapshot_cost.remote() for rank in self.ranks], time.monotonic())

    def state_bytes(self) -> int:
        """Size of a snapshot."""
        sizes: list[int] = self._call(
            "state_bytes", timeout_s=self._timeouts.call, doing="telling how much it would keep"
        )
        return sum(sizes)

    def restore(self, snapshot: Snapshot) -> None:
        """Be as a snapshot of a group of the same layout says, which has the same models loaded."""
        pairs = zip(self.ranks, snapshot.tables, strict=True)
        calls = {f"learner-{number}": rank.restore.remote(table) for number, (rank, table) in enumerate(pairs)}
        self._watch.wait(calls, timeout_s=self._timeouts.publish, doing="going back to a snapshot")

    def offload(self) -> None:
        """Have every rank keep only its weights on the device; nothing but `publish` and `save` may follow before `reload`."""
        self._call("offload", timeout_s=self._timeouts.publish, doing="moving its states to the host")

    def reload(self) -> None:
        """Have every rank be ready to learn again."""
        self._call("reload", timeout_s=self._timeouts.publish, doing="moving its states to the device")

    def peak_memory(self) -> int:
        """Largest peak memory of a rank, in bytes."""
        peaks: list[int] = self._call("peak_memory", timeout_s=self._timeouts.call, doing="reading its memory")
        return max(peaks)

    def _call(self, method: str, *args: Any, timeout_s: float, doing: str) -> list[Any]:
        calls = {f"learner-{rank}": getattr(handle, method).remote(*args) for rank, handle in enumerate(self.ranks)}
        return list(self._watch.wait(calls, timeout_s=timeout_s, doing=doing).values())
