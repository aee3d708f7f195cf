"""What reward models learn from people: a known utility recovered, careless annotators, mixed feedback.

Everything is trained by the real stages. Judgements are simulated, so that what is right is known:

    utility    answers are words, each with a weight; people prefer the higher sum as Bradley and Terry say
    help desk  the demo's task, with its gold judge
"""

from __future__ import annotations

import json
import random
import statistics
import tempfile
from collections.abc import Sequence
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from contract import arguments, publish
from scipy.stats import kendalltau

from rlhf_dist.cluster.session import session
from rlhf_dist.config import Cluster, ModelReward, ModelShape, PipelineConfig, RewardConfig
from rlhf_dist.data.prompts import answer_tokens
from rlhf_dist.evaluation.calibration import expected_calibration_error, reliability_bins
from rlhf_dist.run_folder.console import Console
from rlhf_dist.run_folder.folder import RunFolder
from rlhf_dist.scoring.answers import Answers
from rlhf_dist.scoring.hosts import Here
from rlhf_dist.scoring.reward_models import LearnedReward
from rlhf_dist.stages import reward
from rlhf_dist.stages.pipeline import run as run_pipeline
from rlhf_dist.store.row import single_turn
from rlhf_dist.tasks.start_model import make_policy
from rlhf_dist.tasks.word_tokenizer import word_tokenizer

WORDS = [f"w{number}" for number in range(40)]
PROMPTS = [f"Say {number}:" for number in range(50)]
KINDS = ("comparisons", "scores", "comments")
LEARNER = {"zero_stage": 0, "micro_batch_tokens": 4096, "threads": 2}
PEOPLE = {"ann": 0.85, "bob": 0.85, "cat": 0.85, "dan": 0.5, "eve": 0.3}
"""Annotator to the probability of choosing what is better."""


class Utility:
    """Answers of a few words whose utility is the sum of the words' weights."""

    def __init__(self, folder: Path, seed: int) -> None:
        rng = random.Random(f"utility {seed}")
        self.weights = {word: rng.gauss(0, 0.7) for word in WORDS}
        self.tokenizer = word_tokenizer([*PROMPTS, *(f" {word}" for word in WORDS)])
        self.model = folder / "start"
        shape = ModelShape(hidden=64, layers=2, heads=2, positions=64)
        make_policy(shape, self.tokenizer, self.model, seed=seed)
        self.rng = rng

    def answer(self) -> str:
        return "".join(f" {self.rng.choice(WORDS)}" for _ in range(self.rng.randint(3, 8)))

    def of(self, answer: str) -> float:
        return sum(self.weights[word] for word in answer.split())

    def pair(self) -> tuple[str, str, float]:
        """Two answers, and how likely people prefer the first."""
        a, b = self.answer(), self.answer()
        return (a, b, 1 / (1 + exp(self.of(b) - self.of(a)))) if a != b else self.pair()

    def prompt(self) -> str:
        """Which says nothing, but splits may hold some out."""
        return self.rng.choice(PROMPTS)

    def held_out(self, n: int) -> list[tuple[str, str]]:
        return [(self.prompt(), self.answer()) for _ in range(n)]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def fit(config: RewardConfig) -> LearnedReward:
    """Train, and load what was saved."""
    folder = RunFolder(Path(config.run_dir), config, console=Console(), stage="reward")
    reward.run(config, reward.prepare(config), folder)
    path = str(Path(config.run_dir) / reward.OUTPUT)
    return LearnedReward(ModelReward(path=path, normalise=False), Here("cpu"), dtype="float32", batch_tokens=8192)


def scores(learnt: LearnedReward, tokenizer: Any, rows: Sequence[tuple[str, str]]) -> np.ndarray[Any, Any]:
    tokens = [single_turn(tokenizer(prompt)["input_ids"], answer_tokens(answer, tokenizer)) for prompt, answer in rows]
    return np.array(learnt.score(Answers(tokens, tokenizer))["reward"])


def recovery(root: Path, *, comparisons: int, seed: int) -> dict[str, float]:
    """Kendall's tau between scores and utility on new answers, and the calibration of predicted preferences."""
    task = Utility(root, seed)
    rows = [
        {"prompt": task.prompt(), "a": a, "b": b, "preference": label}
        for a, b, label in (task.pair() for _ in range(comparisons))
    ]
    config = utility_config(task, root, [write(root / "pairs.jsonl", rows)], seed, aggregate="none")
    learnt = fit(config)
    found = task.held_out(1000)
    tau = kendalltau(scores(learnt, task.tokenizer, found), [task.of(answer) for _, answer in found]).statistic
    pairs = [task.pair() for _ in range(4000)]
    firsts, seconds = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    gaps = [scores(learnt, task.tokenizer, [(PROMPTS[0], answer) for answer in side]) for side in (firsts, seconds)]
    predicted = 1 / (1 + np.exp(gaps[1] - gaps[0]))
    ece = expected_calibration_error(reliability_bins(predicted.tolist(), [pair[2] for pair in pairs]))
    return {"kendall_tau": float(tau), "ece": ece}


def utility_config(task: Utility, root: Path, files: list[str], seed: int, **changes: Any) -> RewardConfig:
    return RewardConfig(
        model=str(task.model),
        data=[{"path": file} for file in files],
        run_dir=str(root / "run"),
        seed=seed,
        epochs=4,
        batch_size=32,
        optimizer={"lr": 1e-3, "schedule": "cosine"},
        learner=LEARNER,
        **changes,
    )


def careless(root: Path, *, questions: int, seed: int) -> dict[str, float]:
    """Accuracy of reward models on what is really better, when two of five annotators are careless."""
    task, rng = Utility(root, seed), random.Random(seed)
    rows = []
    for _ in range(questions):
        (a, b, _), prompt = task.pair(), task.prompt()
        better = "a" if task.of(a) > task.of(b) else "b"
        for name, reliability in PEOPLE.items():
            said = better if rng.random() < reliability else ("b" if better == "a" else "a")
            rows.append({"prompt": prompt, "a": a, "b": b, "preference": said, "annotator": name})
    file = write(root / "crowd.jsonl", rows)
    pairs = [task.pair()[:2] for _ in range(3000)]
    right = np.array([task.of(a) > task.of(b) for a, b in pairs])
    found = {}
    for how in ("majority", "dawid-skene"):
        learnt = fit(utility_config(task, root / how, [file], seed, aggregate=how))
        first, second = (
            scores(learnt, task.tokenizer, [(PROMPTS[0], pair[side]) for pair in pairs]) for side in (0, 1)
        )
        found[how.replace("-", "_")] = float(((first > second) == right).mean())
    report = (root / "dawid-skene" / "run" / "sections.json").read_text()
    named = {row[0] for section in json.loads(report) for row in section["rows"] if row[-1] == "suspected careless"}
    return {**found, "named_rightly": float(named == {"dan", "eve"})}


def mixed(root: Path, *, judgements: int, iterations: int) -> dict[str, dict[str, float]]:
    """The gold score that PPO reaches against reward models of each kind of feedback, and of all, at equal numbers."""
    third = judgements // 3
    amounts = {kind: {kind: judgements} for kind in KINDS} | {"mixed": dict.fromkeys(KINDS, third)}
    return {kind: told_by(demo(root / kind, iterations, task=task), root / kind) for kind, task in amounts.items()}


def demo(path: Path, iterations: int, *, task: dict[str, int], **changes: Any) -> PipelineConfig:
    """The demo at reduced size, with other feedback."""
    tree = yaml.safe_load((Path(__file__).parents[1] / "configs" / "demo.yaml").read_text())
    tree["task"] |= {"demonstrations": 2048, **dict.fromkeys(KINDS, 0), **task}
    tree["rl"]["iterations"] = iterations
    for key, value in changes.items():
        tree[key] = {**tree.get(key, {}), **value} if isinstance(value, dict) else value
    return PipelineConfig.model_validate({**tree, "run_dir": str(path)})


def told_by(config: PipelineConfig, path: Path) -> dict[str, float]:
    """What a pipeline's summary says."""
    run_pipeline(config, path, Console())
    summary = json.loads((path / "summary.json").read_text())
    return {
        "gold": summary["gold_score_after"],
        "gold at start": summary["gold_score_before"],
        "wins over SFT": summary["gold_win_rate"],
        "KL": summary["kl_end"],
    }


def long(found: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """One row per figure."""
    return [{"of": of, "figure": name, "value": value} for of, each in found.items() for name, value in each.items()]


def main() -> None:
    options = arguments(__doc__)
    quick = options.quick
    figures: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, session(Cluster(), cpus=4, gpus=0, namespace="rlhf/reward_models"):
        root = Path(folder)
        figures |= recovery(root / "recovery", comparisons=128 if quick else 8000, seed=0)
        seeds = [
            careless(root / f"careless-{n}", questions=48 if quick else 1200, seed=n) for n in range(1 if quick else 3)
        ]
        for name in seeds[0]:
            figures[f"careless_{name}"] = statistics.mean(each[name] for each in seeds)
        rows += long({f"careless, seed {n}": each for n, each in enumerate(seeds)})
        if not quick:
            feedback = mixed(root / "mixed", judgements=3000, iterations=20)
            figures |= {f"gold_from_{kind}": each["gold"] for kind, each in feedback.items()}
            rows += long({f"PPO against {kind}": each for kind, each in feedback.items()})
    publish("reward_models", figures, rows, options.json)


if __name__ == "__main__":
    main()
