"""What every stage reads before it starts: hub names are folders, an example shows what is learnt, notes say what is odd."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from rlhf_dist.config import DPOConfig, EvaluateConfig, RewardConfig, RLConfig, SFTConfig, load
from rlhf_dist.errors import DataError, ModelError, UserError
from rlhf_dist.models import folders, load_tokenizer
from rlhf_dist.stages import dpo, evaluate, reward, rl, sft
from rlhf_dist.stages.hub import resolved
from rlhf_dist.stages.stage_checkpoints import write_model
from tests.chats import ENDLESS, LLAMA3, chat_tokenizer
from tests.runs import SHAPE

ASKED = [{"role": "user", "content": "Why?"}]
EOT = 7


def policy(folder: Path, template: str = LLAMA3, *, scores: bool = False) -> str:
    tokenizer = chat_tokenizer(template)
    torch.manual_seed(0)
    shape = LlamaConfig(**SHAPE, vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=2, num_labels=1)
    (LlamaForSequenceClassification if scores else LlamaForCausalLM)(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_scorers_that_cannot_be_cut_are_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "Why?"}\n' * 64)
    tree = {
        "policy": policy(tmp_path / "policy"),
        "reward": policy(tmp_path / "reward", scores=True),
        "prompts": {"path": str(tmp_path / "p.jsonl")},
        "scoring": {"tensor_parallel": 2},
    }
    with pytest.raises(ModelError, match=r"scoring.tensor_parallel is 2, which does not divide its 1 key heads"):
        rl.prepare(RLConfig.model_validate(tree))
    evaluation = {key: value for key, value in tree.items() if key != "policy"} | {"policies": {"a": tree["policy"]}}
    with pytest.raises(ModelError, match=r"does not divide its 1 key heads"):
        evaluate.prepare(EvaluateConfig.model_validate(evaluation))


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with a policy and a reward model, each under a hub name and nowhere else."""
    root = tmp_path_factory.mktemp("hub")
    for name, scores in (("policy", False), ("reward", True)):
        entry = root / f"models--acme--{name}"
        policy(entry / "snapshots" / "12ab", scores=scores)
        (entry / "refs").mkdir()
        (entry / "refs" / "main").write_text("12ab")
    (root / "models--acme--reward" / "snapshots" / "12ab" / "reward.json").write_text('{"std": 2.0}')
    return root


@pytest.fixture
def files(tmp_path: Path, hub: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Writes a file of rows, on a machine that has the cache and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    folders._fetched.cache_clear()

    def write(name: str, *rows: object) -> str:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    return write


def demonstrations(files: Callable[..., str], answer: str = "So.") -> dict[str, Any]:
    rows = [{"messages": [*ASKED, {"role": "assistant", "content": f"{answer} {n}"}]} for n in range(3)]
    rows += [{"messages": [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "Thus."}]}]
    return {"path": files("d.jsonl", *rows), "held_out": 0.5}


def test_fine_tuning_by_a_hub_name_shows_what_is_learnt_last(files: Callable[..., str]) -> None:
    config = SFTConfig(model="acme/policy", data=demonstrations(files))
    prepared = sft.prepare(config)
    assert config.model == "acme/policy", "what is recorded is what the user wrote"
    assert "last learnt: <|eot_id|> (7); generation ends at <eos> (2), <|eot_id|> (7)" in prepared.example()
    assert prepared.encoder.ends.ids == (2, EOT)
    assert "\n" not in prepared.describe()


def test_comparisons_and_scores_show_where_they_end(files: Callable[..., str]) -> None:
    rows = [
        {"prompt": [{"role": "user", "content": f"Why {n}?"}], "chosen": "So.", "rejected": "No."} for n in range(4)
    ]
    data = [{"path": files("c.jsonl", *rows)}]
    shown = dpo.prepare(DPOConfig(model="acme/policy", data=data)).example()
    assert "|[o]|[.]|[<|eot_id|>]\nlast learnt: <|eot_id|>" in shown
    shown = reward.prepare(RewardConfig(model="acme/policy", data=data)).example()
    assert "|o|.|[<|eot_id|>]\nlast read for the score: <|eot_id|>" in shown
    shown = reward.prepare(RewardConfig(model="acme/policy", data=data, scores="token-mean")).example()
    assert "|[o]|[.]|[<|eot_id|>]" in shown


def test_a_file_of_all_kinds_is_read_by_the_stages_that_learn_from_it_and_the_rest_is_told(
    files: Callable[..., str],
) -> None:
    asked = [{"prompt": [{"role": "user", "content": f"Why {n}?"}], "annotator": "ann", "gold": None} for n in range(4)]
    rows = [{"kind": "comparisons", **one, "a": "So.", "b": "No.", "preference": 1.0, "margin": 0.0} for one in asked]
    rows += [{"kind": "scores", **one, "answer": "So.", "score": 4, "scale": [1, 5]} for one in asked]
    rows += [{"kind": "scores", **asked[0], "answer": "So.", "score": 4, "scale": [1, 5], "criterion": "kind"}]
    rows += [{"kind": "rankings", **one, "answers": ["So.", "No.", "Hm."]} for one in asked[:3]]
    rows += [{"kind": "comments", **asked[0], "answer": "So.", "comment": "short"}]
    rows += [{"kind": "skips", **asked[0], "a": "So.", "b": "No.", "comment": "both bad"}]
    path = files("all.jsonl", *rows)
    told = reward.prepare(RewardConfig(model="acme/policy", data=[{"path": path}])).describe().split("\n")
    assert told[0].startswith("11 judgements, aggregated to 4 comparisons, 4 scores, 3 rankings")
    assert f"{path}: left out: 1 comments, 1 skips, 1 of criteria kind" in told
    told = dpo.prepare(DPOConfig(model="acme/policy", data=[{"path": path}])).describe().split("\n")
    assert told[0].startswith("3 comparisons, 1 held out")
    assert f"{path}: left out: 5 scores, 3 rankings, 1 comments, 1 skips" in told


def test_kto_learns_from_single_answers_and_says_what_they_weigh(files: Callable[..., str]) -> None:
    rows = [{"prompt": f"Why {n}?", "a": "So.", "b": "No.", "preference": "a" if n else "tie"} for n in range(4)]
    rows += [{"prompt": f"How {n}?", "completion": "Thus.", "label": True} for n in range(3)]
    data = [{"path": files("c.jsonl", *rows)}]
    prepared = dpo.prepare(DPOConfig(model="acme/policy", data=data, loss="kto", held_out=0.2))
    told = prepared.describe().split("\n")
    answers = {units: len(part.units) for units, part in (("learnt", prepared.learnt), ("kept", prepared.kept))}
    assert sum(answers.values()) == 9
    assert told[0] == f"{answers['learnt']} answers, {answers['kept']} held out"
    assert re.match(r"\d desirable, \d undesirable, of weights 1 and [\d.]+: together 1.33 times as much$", told[1])
    assert told[2] == "left out: 1 ties, which call no answer good or bad"
    assert len(prepared.learnt.mismatched) == answers["learnt"]
    assert "A prompt with an answer" in prepared.example()
    ties = [{"path": files("t.jsonl", {**rows[0], "prompt": "x"}, rows[0])}]
    with pytest.raises(DataError, match="data has 2 comparisons, all of them ties; KTO expects"):
        dpo.prepare(DPOConfig(model="acme/policy", data=ties, loss="kto"))


def test_a_loss_without_a_reference_looks_for_none(files: Callable[..., str]) -> None:
    rows = [{"prompt": f"Why {n}?", "chosen": "So.", "rejected": "No."} for n in range(4)]
    config = DPOConfig(model="acme/policy", data=[{"path": files("c.jsonl", *rows)}], reference="nowhere/there")
    with pytest.raises(UserError, match="nowhere/there"):
        dpo.prepare(config)
    for loss in ("orpo", "simpo"):
        prepared = dpo.prepare(config.model_copy(update={"loss": loss, "reference": None}))
        assert "3 comparisons, 1 held out" in prepared.describe()
        assert not prepared.learnt.mismatched


def test_ppo_and_evaluation_resolve_all_their_models_and_show_a_prompt(files: Callable[..., str], hub: Path) -> None:
    prompts = {"path": files("p.jsonl", *({"prompt": ASKED} for _ in range(4))), "max_tokens": 60}
    tree = {"policy": "acme/policy", "reward": "acme/reward", "prompts": prompts}
    small = {
        "rl": {"prompts_per_iteration": 4},
        "rollout": {"max_new_tokens": 8},
        "learner": {"micro_batch_tokens": 512},
    }
    config = RLConfig.model_validate({**tree, **small})
    prepared = rl.prepare(config)
    assert prepared.eos_token_ids == (2, EOT)
    assert prepared.example().endswith(
        "last: \\n (" + str(prepared.prompts[0].tokens[-1]) + "); generation ends at <eos> (2), <|eot_id|> (7)"
    )
    found = resolved(config)
    assert {Path(found.policy).parents[1].name, Path(found.reward_models[0]).parents[1].name} == {
        "models--acme--policy",
        "models--acme--reward",
    }
    judged = EvaluateConfig.model_validate(
        {"policies": {"a": "acme/policy"}, "prompts": prompts, "reward": "acme/reward", "rollout": small["rollout"]}
    )
    assert "<|start_header_id|>|a|s|s" in evaluate.prepare(judged).example()


def test_what_is_odd_about_the_data_is_told(files: Callable[..., str], tmp_path: Path) -> None:
    model = policy(tmp_path / "m", ENDLESS)
    told = sft.prepare(SFTConfig(model=model, data=demonstrations(files, "a <|end|> b"))).describe().split("\n")
    assert (
        told[0].startswith("2 demonstrations") or told[0].startswith("3 demonstrations") or told[0].startswith("1 demo")
    )
    assert "d.jsonl: 3 rows with special tokens spelled out, taken as text" in told[1]
    assert told[2] == "the chat template puts no end token after an answer; <eos> is put there instead"


def test_a_saved_policy_says_what_ends_its_answers(tmp_path: Path) -> None:
    class Learner:
        def save(self, _: str, folder: Path) -> None:
            shutil.copytree(policy(tmp_path / "m"), folder, dirs_exist_ok=True)

    (tmp_path / "out").mkdir()
    write_model(Learner(), chat_tokenizer(LLAMA3), tmp_path / "out", (2, EOT))  # type: ignore[arg-type]
    told = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert told["eos_token_id"] == [2, EOT]
    assert load_tokenizer(str(tmp_path / "out")).chat_template == LLAMA3


def test_a_config_of_settings_about_data_is_read_from_yaml(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "model: m\ndata: {path: x, subset: main, special_tokens: true, too_long: truncate, chat_template_kwargs: {a: 1}}\n"
    )
    data = load(SFTConfig, tmp_path / "c.yaml", ["data.chat_template_kwargs.b=2"]).data
    assert (data.subset, data.special_tokens, data.too_long) == ("main", True, "truncate")
    assert data.chat_template_kwargs == {"a": 1, "b": 2}


def test_every_setting_that_names_a_model_is_resolved(files: Callable[..., str]) -> None:
    name, scores = "acme/policy", "acme/reward"
    judge = {"model": name, "prompt": "{comment}"}
    prompts = {"path": "p"}
    configs = [
        SFTConfig(model=name),
        DPOConfig(model=name, reference=name),
        RewardConfig.model_validate({"model": name, "policy": name, "prompts": prompts, "comment_judge": judge}),
        RLConfig.model_validate(
            {
                "policy": name,
                "reference": name,
                "critic": scores,
                "reward": [{"path": scores}, {"kind": "function", "name": "f", "path": "a.b:c"}],
                "safety": {"classifier": scores},
                "prompts": prompts,
            }
        ),
        EvaluateConfig.model_validate({"policies": {"a": name, "b": name}, "prompts": prompts, "reference": name}),
    ]
    files("here")
    for config in configs:
        assert "acme/" in config.model_dump_json()
        assert "acme/" not in resolved(config).model_dump_json().replace("--acme--", ""), type(config).__name__
