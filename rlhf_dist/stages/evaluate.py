"""Policies against each other: every one answers the same prompts, and all answers are scored alike."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from rlhf_dist.cluster.placement import engines_of
from rlhf_dist.cluster.session import namespace_of, session
from rlhf_dist.cluster.watch import Watch
from rlhf_dist.config import EvaluateConfig, RLConfig, load
from rlhf_dist.data.encoder import Encoder
from rlhf_dist.data.example_view import view
from rlhf_dist.data.prompts import read_prompts
from rlhf_dist.data.tables import read_table
from rlhf_dist.errors import DataError
from rlhf_dist.evaluation.results import Result, ScoredAnswers, plain, result_of, table
from rlhf_dist.files import shown, write_json_lines
from rlhf_dist.models import check_same_tokenizer
from rlhf_dist.records import Prompt
from rlhf_dist.run_folder.folder import RunFolder
from rlhf_dist.run_folder.names import CONFIG, POLICY
from rlhf_dist.run_folder.passages import Passage
from rlhf_dist.stages.fitting import check_stage
from rlhf_dist.stages.generation import answers_to, generating
from rlhf_dist.stages.hub import resolved
from rlhf_dist.stages.scoring import check_columns, check_functions, scorer_kinds, scoring, told_of_rows
from rlhf_dist.stages.supervised import encoder_of
from rlhf_dist.store.row import rows_of

OUTPUT = "answers.jsonl"
"""Every answer with its scores."""


@dataclass(frozen=True)
class PreparedEvaluation:
    """What could be read and checked before a process is started."""

    encoder: Encoder
    prompts: list[Prompt]
    targets: list[str]
    """What each prompt's answer should be; empty where nothing says so."""

    def describe(self) -> str:
        """A line for people, and one for each thing about the data that they should know."""
        told = f"{len(self.prompts)} prompts" + (" with targets" if self.targets else "")
        return "\n".join([told, *self.encoder.notes()])

    def example(self) -> str:
        """The first prompt, as the engines are given it."""
        return view(self.encoder, self.prompts[0].tokens, (), title="A prompt as the engines are given it", mark="")


def config_of_run(run: Path) -> EvaluateConfig:
    """The evaluation of an RL run's policy against its start, by the run's own rewards, rules and judge.

    Where the prompts' file has a column `target`, as the embedded tasks' files do, answers are measured against it too.
    """
    ppo = load(RLConfig, run / CONFIG)
    kept = {
        name: getattr(ppo, name)
        for name in ("reward", "safety", "reference", "gold_judge", "rollout", "scoring", "seed", "learner")
    }
    prompts = ppo.prompts.model_copy(update={"path": ppo.prompts.held_out or ppo.prompts.path, "held_out": None})
    if "target" in read_table(prompts)[0][1]:
        kept |= {"target": "target", "measures": ("bleu", "chrf", "rouge", "accuracy")}
    policies = {"start": ppo.policy, "trained": str(run / POLICY)}
    where = {"run_dir": str(run / "stages" / "evaluation"), "timeouts": ppo.timeouts, "cluster": ppo.cluster}
    return EvaluateConfig(**kept, **where, policies=policies, prompts=prompts)


def prepare(config: EvaluateConfig) -> PreparedEvaluation:
    """Read tokenizer, prompts and targets, and check that the policies fit each other.

    Raises:
        UserError: names the key, folder or line, what was found and what was expected.
    """
    config = resolved(config)
    first, *others = config.policies.values()
    rivals = {name: path for name, path in config.policies.items() if path in others}
    models = {reward.name: reward.path for reward in config.reward if reward.kind == "model"}
    check_same_tokenizer(first, {**rivals, **models, "reference": config.reference or first})
    encoder = encoder_of(first)
    longest = config.prompts.max_tokens + config.rollout.max_new_tokens
    roles = {"policy": config.policies.values(), "reference": [config.reference or first], "reward": models.values()}
    folders = [(role, path) for role, paths in roles.items() for path in paths]
    check_stage(config, folders, encoder, longest)
    prompts = read_prompts(config.prompts, encoder)[: config.prompts.held_out_limit]
    check_functions(config)
    check_columns(config, config.prompts.path, prompts)
    return PreparedEvaluation(encoder, prompts, _targets(config, prompts))


def run(config: EvaluateConfig, prepared: PreparedEvaluation, folder: RunFolder) -> None:
    """Generate, score, compare, and leave the folder complete: `answers.jsonl`, `summary.json`, a section of the report."""
    config = resolved(config)
    folder.expect(len(config.policies))
    parts = config.scoring.tensor_parallel
    scorer = {"cpus": 1, "gpus": parts, "processes": 1 + parts * (parts > 1)}  # they come after the engines, one by one
    needs = {key: max(need, scorer[key]) for key, need in engines_of(config.rollout).items()}
    with folder.told_of_failure(), session(config.cluster, **needs, namespace=namespace_of(folder.path)):
        generated = {}
        for name, path in config.policies.items():
            folder.tell(f"sampling {name}")
            generated[name] = _answers(config, prepared, path, folder.path)
        folder.tell("scoring")
        scored = _score(config, prepared, generated, folder.path)
    results = [result_of(one, scored[0], prepared.targets, config) for one in scored]
    write_json_lines(folder.path / OUTPUT, _rows(prepared.prompts, scored, config.samples))
    folder.write_passages(
        [passage(results, prompts=len(prepared.prompts), samples=config.samples, truncated=config.rollout.truncated)]
    )
    folder.finish({"policies": {result.name: plain(result) for result in results}, "prompts": len(prepared.prompts)})


def passage(results: Sequence[Result], *, prompts: int, samples: int, truncated: bool = False) -> Passage:
    """The table with what its columns mean."""
    head, rows = table(results)
    text = (
        f"{prompts} prompts, {samples} answer{'s' if samples > 1 else ''} each. Wins: how often an answer is better than "
        f"{results[0].name}'s, ties counting half; at equal length: what a regression on the answers' lengths leaves of it; the "
        "longer wins: how often the longer of two answers is the better one. In brackets 95% intervals over prompts, Clopper and "
        "Pearson's of rates and by bootstrap of other means; open: the interval does not decide. KL to the reference is that of "
        "the distributions that answers are drawn from (rollout.temperature), perplexity is the reference's at temperature 1; "
        "distinct-n is the share of n-grams that differ, self-BLEU how alike answers are."
    )
    if truncated:
        text += (
            " There is no KL, since answers were drawn with rollout.top_p or top_k: log-probs of a truncated distribution less "
            "those of a whole one are no distance, not even of a policy from itself."
        )
    return Passage("Evaluation", text, head, rows)


def _targets(config: EvaluateConfig, prompts: Sequence[Prompt]) -> list[str]:
    if config.target is None:
        return []
    rows = read_table(config.prompts)
    found = []
    for where, row in (rows[prompt.id] for prompt in prompts):
        if not isinstance(row.get(config.target), str):
            raise DataError(f"{where}: {config.target} is {shown(row.get(config.target))}; expected text (target)")
        found.append(row[config.target])
    return found


def _answers(config: EvaluateConfig, prepared: PreparedEvaluation, path: str, run_dir: Path) -> pa.RecordBatch:
    with generating(
        path,
        config.rollout,
        config.timeouts,
        run_dir,
        max_sequence=config.prompts.max_tokens + config.rollout.max_new_tokens,
        learner=config.learner,
        seed=config.seed,
    ) as generators:
        return answers_to(prepared.prompts, generators, config.timeouts, samples=config.samples)


def _score(
    config: EvaluateConfig, prepared: PreparedEvaluation, generated: dict[str, pa.RecordBatch], run_dir: Path
) -> list[ScoredAnswers]:
    """Reward and reference over all policies' answers."""
    first = next(iter(config.policies.values()))
    kinds = scorer_kinds(config, policy=first, reference=config.reference or first)
    kinds["reward"] = told_of_rows(config, kinds["reward"], prepared.prompts)
    scored: dict[str, dict[str, Any]] = {name: {} for name in generated}
    for role, kind in kinds.items():
        with scoring(role, kind, config, run_dir) as worker:
            calls = {name: worker.score.remote(batch) for name, batch in generated.items()}
            told = Watch().wait(calls, timeout_s=config.timeouts.batch, doing=f"scoring ({role})")
        for name, columns in told.items():
            scored[name] |= columns
    return [
        _scored(name, batch, scored[name], prepared, truncated=config.rollout.truncated)
        for name, batch in generated.items()
    ]


def _scored(
    name: str,
    batch: pa.RecordBatch,
    scored: dict[str, list[Any]],
    prepared: PreparedEvaluation,
    *,
    truncated: bool,
) -> ScoredAnswers:
    found = rows_of(batch)
    reference = [float(sum(each)) for each in scored["ref_log_probs"]]
    own = [float(sum(each)) for each in batch.column("rollout_log_probs").to_pylist()]
    rows = [dict(each) for each in scored["score_parts"]]
    names = dict.fromkeys(name for row in rows for name in row)
    return ScoredAnswers(
        name=name,
        answers=[prepared.encoder.tokenizer.decode(row.answer, skip_special_tokens=True) for row in found],
        lengths=[int(row.sampled.sum()) for row in found],
        # The policy's log-probs are those of what was drawn from, the reference's those of its whole distribution.
        kl=None if truncated else [a - b for a, b in zip(own, reference, strict=True)],
        plain_log_probs=[float(sum(each)) for each in scored["plain_log_probs"]],
        rewards=[float(each) for each in scored["score"]],
        parts={part: [row.get(part, float("nan")) for row in rows] for part in names},
    )


def _messages(prompt: Prompt) -> dict[str, Any]:
    """The chat that a prompt was, if it was one."""
    columns = json.loads(prompt.source) if prompt.source else {}
    return {"messages": columns["prompt_messages"]} if "prompt_messages" in columns else {}


def _rows(prompts: Sequence[Prompt], scored: Sequence[ScoredAnswers], samples: int) -> list[dict[str, Any]]:
    """Every answer with its scores."""
    return [
        {
            "prompt": prompt.shown,
            **_messages(prompt),
            "policy": one.name,
            "answer": one.answers[number * samples + sample],
            "kl": None if one.kl is None else one.kl[number * samples + sample],
            "reward": one.rewards[number * samples + sample],
            "parts": {part: values[number * samples + sample] for part, values in one.parts.items()},
        }
        for one in scored
        for number, prompt in enumerate(prompts)
        for sample in range(samples)
    ]
