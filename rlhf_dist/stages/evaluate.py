"""Policies against each other: every one answers the same prompts, and all answers are scored alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rlhf_dist.cluster.session import namespace_of, session
from rlhf_dist.cluster.watch import Watch
from rlhf_dist.config import GOLD, EvaluateConfig, PPOConfig, load
from rlhf_dist.data.prompts import read_prompts
from rlhf_dist.data.tables import read_rows
from rlhf_dist.errors import DataError
from rlhf_dist.evaluation import texts
from rlhf_dist.evaluation.intervals import Interval, WinRate, interval, win_rate
from rlhf_dist.files import write_json_lines
from rlhf_dist.models import check_same_tokenizer, load_tokenizer
from rlhf_dist.records import Prompt
from rlhf_dist.run_folder.folder import RunFolder
from rlhf_dist.run_folder.passages import Passage
from rlhf_dist.scoring.functions import load_function
from rlhf_dist.scoring.safety import UNSAFE
from rlhf_dist.stages.generation import answers_to, generating
from rlhf_dist.stages.scoring import scorer_kinds, scoring
from rlhf_dist.store.row import rows_of


@dataclass(frozen=True)
class PreparedEvaluation:
    """What could be read and checked before a process is started."""

    tokenizer: Any
    prompts: list[Prompt]
    targets: list[str]
    """What each prompt's answer should be; empty where nothing says so."""


@dataclass(frozen=True)
class ScoredAnswers:
    """One policy's answers with all that was measured of each."""

    name: str
    answers: list[str]
    lengths: list[int]
    kl: list[float]
    """Log-prob of each answer under the policy less that under the reference, nats."""
    ref_log_probs: list[float]
    """Sum over each answer's tokens."""
    rewards: list[float]
    parts: dict[str, list[float]]


@dataclass(frozen=True)
class Result:
    """What is said of one policy."""

    name: str
    means: dict[str, Interval]
    """With an interval over prompts: reward, gold, KL, length, unsafe."""
    figures: dict[str, float]
    """Of all answers together: distinct-n, self-BLEU, perplexity, BLEU and so on."""
    wins: dict[str, WinRate]
    """Over the first policy, by gold and by reward."""


def config_of_run(run: Path) -> EvaluateConfig:
    """The evaluation of a PPO run's policy against its start, by the run's own rewards, rules and judge.

    Where the prompts' file has a column `target`, as the embedded tasks' files do, answers are measured against it too.
    """
    ppo = load(PPOConfig, run / "config.yaml")
    kept = {
        name: getattr(ppo, name) for name in ("reward", "safety", "gold_judge", "rollout", "scoring", "seed", "learner")
    }
    prompts = ppo.prompts.model_copy(update={"path": ppo.prompts.held_out or ppo.prompts.path, "held_out": None})
    if "target" in read_rows(prompts.path, split=prompts.split)[0]:
        kept |= {"target": "target", "measures": ("bleu", "chrf", "rouge", "accuracy")}
    policies = {"start": ppo.policy, "trained": str(run / "policy")}
    where = {"run_dir": str(run / "stages" / "evaluation"), "timeouts": ppo.timeouts, "cluster": ppo.cluster}
    return EvaluateConfig(**kept, **where, policies=policies, prompts=prompts)


def prepare(config: EvaluateConfig) -> PreparedEvaluation:
    """Read tokenizer, prompts and targets, and check that the policies fit each other.

    Raises:
        UserError: names the key, folder or line, what was found and what was expected.
    """
    first, *others = config.policies.values()
    rivals = {name: path for name, path in config.policies.items() if path in others}
    models = {reward.name: reward.path for reward in config.reward if reward.kind == "model"}
    check_same_tokenizer(first, {**rivals, **models, "reference": config.reference or first})
    tokenizer = load_tokenizer(first)
    asked = config.prompts
    prompts = read_prompts(asked.path, tokenizer, max_tokens=asked.max_tokens, column=asked.column, split=asked.split)
    prompts = prompts[: asked.held_out_limit]
    if config.gold_judge is not None:
        load_function(config.gold_judge, key="gold_judge")
    return PreparedEvaluation(tokenizer, prompts, _targets(config, len(prompts)))


def run(config: EvaluateConfig, prepared: PreparedEvaluation, folder: RunFolder) -> list[Result]:
    """Generate, score, compare, and leave the folder complete: `answers.jsonl`, `summary.json`, a section of the report."""
    folder.expect(len(config.policies))
    cpus = max(config.rollout.workers.min, 2)
    with (
        folder.told_of_failure(),
        session(config.cluster, cpus=cpus, gpus=0, namespace=namespace_of(folder.path)),
    ):
        generated = {}
        for name, path in config.policies.items():
            folder.tell(f"sampling {name}")
            generated[name] = _answers(config, prepared, path, folder.path)
        folder.tell("scoring")
        scored = _score(config, prepared, generated, folder.path)
    results = [result_of(one, scored[0], prepared.targets, config) for one in scored]
    write_json_lines(folder.path / "answers.jsonl", _rows(prepared.prompts, scored, config.samples))
    folder.write_passages([section(results, prompts=len(prepared.prompts), samples=config.samples)])
    folder.finish({"policies": {result.name: _plain(result) for result in results}, "prompts": len(prepared.prompts)})
    return results


def result_of(one: ScoredAnswers, first: ScoredAnswers, targets: Sequence[str], config: EvaluateConfig) -> Result:
    """Everything that is said of one policy; values of several answers to a prompt are averaged before intervals are taken."""

    def per_prompt(values: Sequence[float]) -> list[float]:
        return [float(each) for each in np.reshape(values, (-1, config.samples)).mean(1)]

    means = {"kl": one.kl, "length": [float(n) for n in one.lengths]}
    if config.reward:
        means["reward"] = one.rewards
    means |= {name: one.parts[name] for name in (GOLD, UNSAFE) if name in one.parts}
    wins = {}
    for name in (GOLD, "reward"):
        if name in means and one is not first:
            against = first.parts[name] if name == GOLD else first.rewards
            labels = [float(np.sign(a - b) + 1) / 2 for a, b in zip(means[name], against, strict=True)]
            wins[name] = win_rate(per_prompt(labels), seed=config.seed)
    figures = {
        "distinct_1": texts.distinct(one.answers, 1),
        "distinct_2": texts.distinct(one.answers, 2),
        "self_bleu": texts.self_bleu(one.answers),
        "perplexity": float(np.exp(-sum(one.ref_log_probs) / max(1, sum(one.lengths)))),
        **_against_targets(one.answers, targets, config),
    }
    return Result(
        one.name, {name: interval(per_prompt(v), seed=config.seed) for name, v in means.items()}, figures, wins
    )


HEADS = {
    "gold": "gold",
    "reward": "reward",
    "kl": "KL, nats",
    "length": "tokens",
    "unsafe": "unsafe",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "self_bleu": "self-BLEU",
    "perplexity": "perplexity",
    "bleu": "BLEU",
    "chrf": "chrF",
    "rouge-1": "ROUGE-1",
    "rouge-2": "ROUGE-2",
    "rouge-l": "ROUGE-L",
    "accuracy": "accuracy",
}


def table(results: Sequence[Result]) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Column names, and a row for each policy."""
    names = [name for name in HEADS if name in results[0].means or name in results[0].figures]
    rivals = [name for name in (GOLD, "reward") if any(name in result.wins for result in results)]
    head = ("policy", *(f"wins by {name}" for name in rivals), *(HEADS[name] for name in names))
    rows = []
    for result in results:
        wins = [_win(result.wins[name]) if name in result.wins else "–" for name in rivals]
        cells = [_mean(result.means[name]) if name in result.means else f"{result.figures[name]:.3g}" for name in names]
        rows.append((result.name, *wins, *cells))
    return head, tuple(rows)


def section(results: Sequence[Result], *, prompts: int, samples: int) -> Passage:
    """The table with what its columns mean."""
    head, rows = table(results)
    text = (
        f"{prompts} prompts, {samples} answer{'s' if samples > 1 else ''} each. Wins: how often an answer is better than "
        f"{results[0].name}'s, ties counting half. In brackets 95% intervals by bootstrap over prompts. KL and perplexity are to "
        "and under the reference; distinct-n is the share of n-grams that differ, self-BLEU how alike answers are."
    )
    return Passage("Evaluation", text, head, rows)


def _win(won: WinRate) -> str:
    return f"{won.rate.mean:.1%} [{won.rate.low:.1%}, {won.rate.high:.1%}]"


def _mean(mean: Interval) -> str:
    return f"{mean.mean:.3g} [{mean.low:.3g}, {mean.high:.3g}]"


def _plain(result: Result) -> dict[str, Any]:
    """For JSON."""
    means = {name: {"mean": each.mean, "low": each.low, "high": each.high} for name, each in result.means.items()}
    wins = {
        name: {
            "rate": won.rate.mean,
            "low": won.rate.low,
            "high": won.rate.high,
            "wins": won.wins,
            "ties": won.ties,
            "losses": won.losses,
        }
        for name, won in result.wins.items()
    }
    return {**means, **result.figures, "win_rate": wins}


def _targets(config: EvaluateConfig, count: int) -> list[str]:
    if config.target is None:
        return []
    rows = read_rows(config.prompts.path, split=config.prompts.split)[:count]
    for number, row in enumerate(rows):
        if not isinstance(row.get(config.target), str):
            raise DataError(
                f"{config.prompts.path}:{number + 1}: {config.target} is {row.get(config.target)!r}; expected text (target)"
            )
    return [row[config.target] for row in rows]


def _against_targets(answers: Sequence[str], targets: Sequence[str], config: EvaluateConfig) -> dict[str, float]:
    wanted = [target for target in targets for _ in range(config.samples)]
    said = [answer.strip() for answer in answers]
    found: dict[str, float] = {}
    for measure in config.measures:
        value = getattr(texts, measure)(said, [target.strip() for target in wanted])
        found |= value if isinstance(value, dict) else {measure: value}
    return found


def _answers(config: EvaluateConfig, prepared: PreparedEvaluation, path: str, run_dir: Path) -> pa.RecordBatch:
    with generating(
        path,
        config.rollout,
        config.timeouts,
        run_dir,
        max_sequence=config.prompts.max_tokens + config.rollout.max_new_tokens,
        dtype=config.learner.dtype,
        seed=config.seed,
    ) as generators:
        return answers_to(prepared.prompts, generators, config.timeouts, samples=config.samples)


def _score(
    config: EvaluateConfig, prepared: PreparedEvaluation, generated: dict[str, pa.RecordBatch], run_dir: Path
) -> list[ScoredAnswers]:
    """Reward and reference over all policies' answers."""
    first = next(iter(config.policies.values()))
    kinds = scorer_kinds(config, policy=first, reference=config.reference or first)
    scored: dict[str, dict[str, Any]] = {name: {} for name in generated}
    for role, kind in kinds.items():
        with scoring(role, kind, config, run_dir) as worker:
            calls = {name: worker.score.remote(batch) for name, batch in generated.items()}
            told = Watch().wait(calls, timeout_s=config.timeouts.batch, doing=f"scoring ({role})")
        for name, columns in told.items():
            scored[name] |= columns
    return [_scored(name, batch, scored[name], prepared) for name, batch in generated.items()]


def _scored(
    name: str, batch: pa.RecordBatch, scored: dict[str, list[Any]], prepared: PreparedEvaluation
) -> ScoredAnswers:
    found = rows_of(batch)
    reference = [float(sum(each)) for each in scored["ref_log_probs"]]
    own = [float(sum(each)) for each in batch.column("rollout_log_probs").to_pylist()]
    rows = [dict(each) for each in scored["score_parts"]]
    return ScoredAnswers(
        name=name,
        answers=[prepared.tokenizer.decode(row.answer, skip_special_tokens=True) for row in found],
        lengths=[int(row.sampled.sum()) for row in found],
        kl=[a - b for a, b in zip(own, reference, strict=True)],
        ref_log_probs=reference,
        rewards=[float(each) for each in scored["score"]],
        parts={part: [row[part] for row in rows] for part in (rows[0] if rows else {})},
    )


def _rows(prompts: Sequence[Prompt], scored: Sequence[ScoredAnswers], samples: int) -> list[dict[str, Any]]:
    """Every answer with its scores."""
    return [
        {
            "prompt": prompt.text,
            "policy": one.name,
            "answer": one.answers[number * samples + sample],
            "kl": one.kl[number * samples + sample],
            "reward": one.rewards[number * samples + sample],
            **{part: values[number * samples + sample] for part, values in one.parts.items()},
        }
        for one in scored
        for number, prompt in enumerate(prompts)
        for sample in range(samples)
    ]
