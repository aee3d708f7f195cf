"""The folder of an RL run: experience, answers before and after, and the summary that tools read."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_dist.checkpoint import forget_after
from rlhf_dist.config import RLConfig
from rlhf_dist.errors import DataError
from rlhf_dist.evaluation.bands import GOLD_MEAN
from rlhf_dist.evaluation.before_after import Verdict
from rlhf_dist.files import write_json_lines
from rlhf_dist.run_folder.charts import line_chart
from rlhf_dist.run_folder.console import COLUMNS, Console
from rlhf_dist.run_folder.folder import RunFolder
from rlhf_dist.run_folder.names import SAMPLES, experience_file
from rlhf_dist.run_folder.passages import Passage
from rlhf_dist.store.kept import keep, read_kept

log = logging.getLogger(__name__)


class RLFolder(RunFolder):
    """A `RunFolder` with what only PPO leaves behind."""

    def __init__(self, path: Path, config: RLConfig, *, console: Console, notes: Sequence[str] = ()) -> None:
        """Create the folder and write the resolved config; `notes` are what is known already (`note`)."""
        super().__init__(path, config, console=console, stage="rl", steps=config.rl.iterations)
        for sentence in notes:
            self.note(sentence)

    def record(self, iteration: int, metrics: Mapping[str, float], **facts: Any) -> None:
        """Take one iteration's metrics to all trackers and to the screen."""
        super().record(iteration, metrics, **facts)
        self.console.iteration(iteration, metrics)
        log.info("iteration done", extra={name: metrics[key] for name, (key, _) in COLUMNS.items()})

    def rewind(self, iteration: int) -> None:
        """Forget iterations, and the checkpoints after them: they are damaged, or the run would have gone on from them."""
        forget_after(self.path, iteration)
        super().rewind(iteration)

    def keep_answers_before(self, answers: Any) -> None:
        """Keep the untrained policy's answers to the held-out prompts, for a run that is resumed."""
        if answers is not None:
            keep(self.path / "before.arrow", answers)

    def answers_before(self) -> Any:
        """What `keep_answers_before` kept; None if there were no held-out prompts, or the file is damaged, which is noted."""
        kept = self.path / "before.arrow"
        try:
            return read_kept(kept).combine_chunks().to_batches()[0] if kept.exists() else None
        except DataError as error:
            self.note(f"the answers before training are lost, so there is nothing to compare with: {error}")
            return None

    def keep(self, iteration: int, batch: Any) -> None:
        """Write an iteration's samples as an Arrow file: `experience/iteration=N/batch.arrow`."""
        keep(experience_file(self.path, iteration), batch)

    def close(self, config: RLConfig, verdict: Verdict, *, parameters: int, stopped: str | None) -> dict[str, Any]:
        """Write samples, summary and report.

        Args:
            config: the run's settings.
            verdict: the held-out comparison of the policies before and after.
            parameters: of the policy.
            stopped: why the run ended before its last iteration, if it did.
        """
        if verdict.problem:
            self.note(verdict.problem)
        with self.told_of_failure():
            write_json_lines(self.path / SAMPLES, map(dataclasses.asdict, verdict.comparisons))
            self.write_passages(over_optimisation(self._rows))
        return self.finish(self._facts(config, verdict, parameters) | {"stopped": stopped})

    def _facts(self, config: RLConfig, verdict: Verdict, parameters: int) -> dict[str, Any]:
        seconds: dict[str, float] = defaultdict(float)
        for row in self._rows:
            for name, value in row.items():
                if name.startswith("timing_s/"):
                    seconds[name.removeprefix("timing_s/")] += value
        first, last = self._rows[0], self._rows[-1]
        samples = sum(row["perf/num_samples"] for row in self._rows)
        return {
            "iterations": len(self._rows),
            "engine": config.rollout.engine,
            "schedule": "sync",
            "gold_win_rate": verdict.win_rate,
            "gold_tie_rate": verdict.tie_rate,
            "gold_length_bias": dataclasses.asdict(verdict.length_bias) if verdict.length_bias else None,
            "gold_score_before": verdict.gold_before,
            "gold_score_after": verdict.gold_after,
            "reward_start": first["critic/score/mean"],
            "reward_end": last["critic/score/mean"],
            "kl_end": last["objective/kl"],
            "samples_per_second": samples / seconds["step"],
            "seconds": dict(seconds),
            "weight_versions": int(last["weights/version"]) + 1,
            "restarts": int(last["fleet/restarts"]),
            "model": f"{parameters / 1e6:.1f} M parameters",
        }


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def over_optimisation(rows: Sequence[Mapping[str, float]]) -> list[Passage]:
    """Proxy and gold reward against the root of KL (Gao et al. 2023, arXiv:2210.10760, figure 1); none without gold."""
    seen = [row for row in rows if all(_is_number(row.get(key)) for key in (GOLD_MEAN, "objective/kl"))]
    if len(seen) < 2:
        return []
    distance = [math.sqrt(max(row["objective/kl"], 0.0)) for row in seen]
    order = sorted(range(len(seen)), key=lambda number: distance[number])
    xs = [distance[number] for number in order]

    def drawn(name: str, key: str) -> str:
        return f'<p class="soft">{name}</p>' + line_chart(
            name, xs, [seen[number][key] for number in order], along="root of KL"
        )

    best = max(range(len(seen)), key=lambda number: seen[number][GOLD_MEAN])
    text = (
        "The score by all rewards and rules, and the gold score that PPO does not see, each against the root of the KL to "
        "the reference. Where the first goes on rising and the second falls, the reward model is being gamed. The gold "
        f"score is highest ({seen[best][GOLD_MEAN]:.3f}) in iteration {best + 1} at {seen[best]['objective/kl']:.2f} nats, and "
        f"{seen[-1][GOLD_MEAN]:.3f} in the last at {seen[-1]['objective/kl']:.2f} nats."
    )
    return [
        Passage("Over-optimisation", text, svg=drawn("Reward", "critic/score/mean") + drawn("Gold score", GOLD_MEAN))
    ]
