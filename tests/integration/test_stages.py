"""SFT, reward models, DPO and its like on the real learner, at reduced size."""

import json
import math
import shutil
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf_dist.checkpoint import checkpoints, verify
from rlhf_dist.cluster.session import namespace_of
from rlhf_dist.config import DPOConfig, Job, ModelReward, RewardConfig, SFTConfig
from rlhf_dist.data.prompts import answer_tokens
from rlhf_dist.errors import ConfigError, ModelError
from rlhf_dist.models import load_policy
from rlhf_dist.run_folder.console import Console
from rlhf_dist.run_folder.folder import RunFolder
from rlhf_dist.scoring.answers import Answers
from rlhf_dist.scoring.hosts import Here
from rlhf_dist.scoring.reward_file import read_reward_file
from rlhf_dist.scoring.reward_models import LearnedReward
from rlhf_dist.stages import dpo, reward, sft
from rlhf_dist.stages.supervised import SharedLearner
from rlhf_dist.store.row import single_turn
from rlhf_dist.tasks.helpdesk import build_tokenizer, gold_score, preferences, ratings
from tests.runs import Folders, metrics

LEARNER = {"zero_stage": 0, "micro_batch_tokens": 2048, "threads": 1}
FAST = {"lr": 3e-3, "warmup": 0.0}
SMALL = {"engine": "transformers", "max_new_tokens": 12, "max_concurrent": 32}


pytestmark = pytest.mark.usefixtures("ray_session")


def run(stage: Any, config: Job, path: Path, *shared: SharedLearner, listener: Any = None) -> dict[str, Any]:
    """A whole stage; it goes on from the newest checkpoint in its folder, if there is one."""
    prepared = stage.prepare(config, path if checkpoints(path) else None)
    folder = RunFolder(path, config, console=Console(), stage=stage.__name__.rpartition(".")[2])
    folder.listeners += [listener] if listener else []
    stage.run(config, prepared, folder, *shared)
    assert "<svg" in (path / "report.html").read_text()
    return json.loads((path / "summary.json").read_text())


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def losses(path: Path, key: str) -> list[float]:
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [row[key] for row in rows if key in row]


def test_lora_fine_tuning_learns_goes_on_bit_for_bit_and_its_adapter_is_the_merged_model(
    folders: Folders, tmp_path: Path
) -> None:
    rows = [{"prompt": f"Customer: {n % 7}\nAgent:", "completion": " Hello! Have a nice day!"} for n in range(96)]
    config = SFTConfig(
        model=str(folders.policy),
        data={"path": write(tmp_path / "d.jsonl", rows), "held_out": 0.3, "max_tokens": 64},
        epochs=8,
        batch_size=16,
        optimizer={"lr": 2e-2, "warmup": 0.0, "schedule": "cosine"},
        lora={"rank": 4, "alpha": 8, "dropout": 0.05},
        checkpoint_every=9,
        learner={**LEARNER, "ranks": 2, "zero_stage": 3},
    )
    with closing(SharedLearner()) as shared:
        summary = run(sft, config, tmp_path / "run", shared)
        interrupted = shutil.copytree(tmp_path / "run", tmp_path / "interrupted", ignore=ignored)
        (interrupted / "checkpoints" / "step-000027" / "state.json").write_text("{}")
        prepared = sft.prepare(config, interrupted)
        assert "going on after step 18 (not from what is newer: " in prepared.describe()
        assert "step-000027/state.json: missing or changed" in prepared.describe()
        run(sft, config, interrupted, shared)
    assert metrics(interrupted) == metrics(tmp_path / "run")
    for file in ("model.safetensors", "adapter/adapter_model.safetensors"):
        assert (interrupted / "policy" / file).read_bytes() == (tmp_path / "run" / "policy" / file).read_bytes()
    assert [each.name for each in checkpoints(interrupted)] == ["step-000027", "step-000018"]
    first, last = losses(tmp_path / "run", "train/loss")[0], losses(tmp_path / "run", "eval/loss")[-1]
    # The frozen random head lets no hidden state say these words at less than 4.93 nats; it starts at 6.18.
    assert last < first - 0.9
    assert summary["eval_perplexity"] == pytest.approx(math.exp(summary["eval_loss"]))
    assert min(losses(tmp_path / "run", "train/grad_norm")) > 0
    verify(tmp_path / "run" / "policy")

    from peft import PeftModel

    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "policy")
    adapted = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(folders.policy), tmp_path / "run" / "policy" / "adapter"
    )
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, atol=1e-4, rtol=0)
    start = load_policy(str(folders.policy), dtype=torch.float32).model.embed_tokens.weight
    assert torch.equal(merged.model.embed_tokens.weight, start), "what is frozen has not moved"


ignored = shutil.ignore_patterns("policy", "summary.json", "report.html")
"""What a run that is interrupted has not written yet."""


@pytest.fixture(scope="module")
def comment_judge(folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A judge that has learnt to rate comments, as the demo's does."""
    root = tmp_path_factory.mktemp("judge")
    config = SFTConfig(
        model=str(folders.policy),
        data={"path": write(root / "d.jsonl", ratings(1200, 0)), "max_tokens": 64},
        epochs=3,
        batch_size=32,
        optimizer=FAST,
        learner=LEARNER,
    )
    run(sft, config, root / "run")
    return str(root / "run" / "policy")


def test_one_reward_model_learns_from_every_kind_of_feedback(
    folders: Folders, comment_judge: str, tmp_path: Path
) -> None:
    rng = Random(0)

    def gold(row: dict[str, str], side: str) -> float:
        return gold_score(row["prompt"], row[side])

    pairs = preferences(500, 0)
    crowd = [
        {"prompt": row["prompt"], "a": row["chosen"], "b": row["rejected"], "preference": vote, "annotator": name}
        for row in preferences(80, 1)
        for name, right in (("ann", 0.9), ("bob", 0.9), ("cat", 0.9), ("eve", 0.2))
        if (vote := "a" if (gold(row, "chosen") > gold(row, "rejected")) == (rng.random() < right) else "b")
    ]
    scores = [
        {"prompt": r["prompt"], "answer": r["chosen"], "score": 1 + 4 * gold(r, "chosen")} for r in preferences(200, 2)
    ]
    said = {True: "Very good. It is kind.", False: "Bad. It makes no sense."}
    comments = [
        {"prompt": r["prompt"], "answer": r[side], "comment": said[gold(r, side) > 0.5]}
        for r in preferences(60, 3)
        for side in ("chosen", "rejected")
    ]
    ranked = [
        {
            "prompt": r["prompt"],
            "answers": sorted([r["chosen"], r["rejected"], " Hello!"], key=lambda a: -gold_score(r["prompt"], a)),
        }
        for r in preferences(60, 4)
    ]
    kinds = {"comparisons": pairs, "scores": scores, "comments": comments, "rankings": ranked}
    data = [{"path": write(tmp_path / f"{kind}.jsonl", rows), "kind": kind} for kind, rows in kinds.items()]
    data[1]["scale"] = [1, 5]
    config = RewardConfig(
        model=str(folders.policy),
        policy=str(folders.policy),
        prompts={"path": str(folders.prompts), "max_tokens": 40},
        data=[*data, {"path": write(tmp_path / "crowd.jsonl", crowd)}],
        comment_judge={"model": comment_judge, "prompt": "Comment: {comment}\nRating:"},
        aggregate="dawid-skene",
        compare_scale=2.0,
        heads=2,
        models=2,
        normalise_on=32,
        epochs=4,
        batch_size=32,
        optimizer=FAST,
        learner=LEARNER,
        rollout=SMALL,
    )
    path = tmp_path / "run"
    summary = run(reward, config, path)
    assert summary["accuracy"] > 0.6
    assert summary["disagreement"] > 0
    first, *_, last = losses(path, "train/comparisons/loss")
    assert last < first
    labels = {
        row["comment"]: row["label"] for row in map(json.loads, (path / "comments.jsonl").read_text().splitlines())
    }
    assert labels[said[True]] > labels[said[False]] + 0.2, "the judge read them"

    report = (path / "report.html").read_text()
    for text in ("Calibration", "suspected careless", "Krippendorff", "crowd (comparisons)", "Rewards of the policy"):
        assert text in report, text
    model = path / "reward_model"
    verify(model)
    for member in (model, model / "member-1"):
        assert AutoModelForSequenceClassification.from_pretrained(member).config.num_labels == 2
    file = read_reward_file(str(model))
    assert file.members == (".", "member-1")
    learnt = LearnedReward(ModelReward(path=str(model)), Here("cpu"), dtype="float32", batch_tokens=512)
    tokenizer = build_tokenizer()
    good, bad = (
        np.mean(_scores(learnt, tokenizer, [(r["prompt"], r[side]) for r in pairs[:80]]))
        for side in ("chosen", "rejected")
    )
    assert good > bad


def _scores(learnt: LearnedReward, tokenizer: Any, rows: list[tuple[str, str]]) -> list[float]:
    tokens = [single_turn(tokenizer(prompt)["input_ids"], answer_tokens(answer, tokenizer)) for prompt, answer in rows]
    return learnt.score(Answers(tokens, tokenizer))["reward"]


def test_direct_preference_optimisation_makes_the_preferred_answer_likelier_though_a_rank_dies(
    folders: Folders, tmp_path: Path
) -> None:
    rows = [
        {"prompt": f"Customer: {n}\nAgent:", "chosen": " Hello!", "rejected": " My cat likes boxes."} for n in range(64)
    ]
    config = DPOConfig(
        model=str(folders.policy),
        data=[{"path": write(tmp_path / "p.jsonl", rows)}],
        epochs=2,
        batch_size=16,
        held_out=0.1,
        optimizer=FAST,
        checkpoint_every=2,
        learner={**LEARNER, "ranks": 2, "zero_stage": 2, "sequence_parallel": 2},
    )
    told: list[dict[str, Any]] = []

    def kill_once(status: dict[str, Any]) -> None:
        import ray

        if status["iteration"] == 5 and not any(each["iteration"] == 5 for each in told):
            ray.kill(ray.get_actor("learner-1", namespace_of(tmp_path / "run")))
        told.append(status)

    summary = run(dpo, config, tmp_path / "run", listener=kill_once)
    (restarting,) = [each for each in told if each["state"] == "restarting"]
    assert restarting["cause"].startswith("learner-1 died while ")
    assert [row["iteration"] for row in metrics(tmp_path / "run")] == [*range(6)]
    assert summary["accuracy"] == 1.0
    assert summary["margin"] > 0.1
    assert losses(tmp_path / "run", "train/loss")[0] == pytest.approx(math.log(2), abs=1e-3), (
        "it starts as its reference"
    )


def test_every_other_loss_makes_what_people_want_likelier(folders: Folders, tmp_path: Path) -> None:
    """KTO from thumbs beside comparisons; a reference is asked only where there is one."""
    asked = [f"Customer: {n}\nAgent:" for n in range(48)]
    pairs = [{"prompt": each, "chosen": " Hello!", "rejected": " My cat likes boxes."} for each in asked]
    thumbs = [{"prompt": row["prompt"], "completion": row["rejected"], "label": False} for row in pairs[:24]]
    data = [{"path": write(tmp_path / "p.jsonl", pairs)}, {"path": write(tmp_path / "t.jsonl", thumbs)}]
    with closing(SharedLearner()) as shared:
        for loss in ("ipo", "kto", "orpo", "simpo"):
            config = DPOConfig(
                model=str(folders.policy),
                data=data if loss == "kto" else data[:1],
                loss=loss,
                epochs=2,
                batch_size=24,
                held_out=0.2,
                optimizer=FAST,
                learner={**LEARNER, "ranks": 2, "micro_batch_tokens": 256},
            )
            told: list[str] = []
            path = tmp_path / loss
            summary = run(dpo, config, path, shared, listener=lambda status, told=told: told.append(status["state"]))
            assert ("asking the reference" in told) == (loss in ("ipo", "kto")), loss
            assert summary["accuracy"] == 1.0, loss
            assert losses(path, "eval/loss")[-1] < losses(path, "train/loss")[0], loss
            assert losses(path, "train/margin")[-1] > losses(path, "train/margin")[0], loss
    assert losses(tmp_path / "kto", "train/loss")[0] == pytest.approx(0.5 * 3.5 / 3, rel=0.1)
    assert losses(tmp_path / "kto", "train/reference_point")[0] == pytest.approx(0, abs=1e-3)
    assert losses(tmp_path / "kto", "train/desirable/accuracy")[-1] == 1.0


def test_what_cannot_be_trained_is_refused_before_anything_starts(folders: Folders, tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", [{"prompt": f"p{n}", "completion": " x" * 70} for n in range(4)])
    config = SFTConfig(model=str(folders.policy), data={"path": path, "held_out": 0.5}, learner=LEARNER)
    with pytest.raises(ModelError, match="has 128 positions; the longest sequence would have 1"):
        sft.prepare(config)
    short = write(tmp_path / "s.jsonl", [{"prompt": f"p{n}", "completion": " x" * 20} for n in range(4)])
    small = {**config.model_dump(), "data": {"path": short, "held_out": 0.5}, "learner": {"micro_batch_tokens": 8}}
    with pytest.raises(ConfigError, match="micro_batch_tokens is 8; expected at least"):
        sft.prepare(SFTConfig.model_validate(small))
    scores = write(tmp_path / "f.jsonl", [{"prompt": "q", "answer": "x", "score": 1}])
    with pytest.raises(ConfigError, match="a file of scores: .*DPO learns from comparisons"):
        dpo.prepare(DPOConfig(model=str(folders.policy), data=[{"path": scores, "kind": "scores"}]))
    with pytest.raises(ConfigError, match="data has nothing; KTO learns from comparisons and scores"):
        dpo.prepare(DPOConfig(model=str(folders.policy), loss="kto"))
