"""Models cut over two processes say what they say in one, and what happens when one of the processes does not go on."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from transformers import (
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
)

from rlhf_dist.config import FunctionReward, ModelReward, Safety
from rlhf_dist.errors import ModelError, WorkerLost
from rlhf_dist.models import PackedBatch, load_policy, load_tokenizer, pack
from rlhf_dist.models.host_copy import of_this_process
from rlhf_dist.models.tensor_parallel import check_can_be_cut
from rlhf_dist.models.wrapped import RowLayout
from rlhf_dist.scoring.functions import RuleReward
from rlhf_dist.scoring.hosts import Here, Spread
from rlhf_dist.scoring.reference import AskedPolicy, ReferenceScorer
from rlhf_dist.scoring.reward import RewardScorer
from rlhf_dist.store.row import Row, single_turn
from tests.runs import SHAPE, Folders

WAIT_S = 30
FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, {"attention_bias": True}),
    "qwen": (
        Qwen3Config,
        Qwen3ForCausalLM,
        Qwen3ForSequenceClassification,
        {"tie_word_embeddings": True, "head_dim": 32},
    ),
}


@pytest.fixture(scope="module")
def models(folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Policies and ensembles of two reward models, whose heads two processes can share."""
    root = tmp_path_factory.mktemp("cut")
    torch.manual_seed(3)
    tokenizer = load_tokenizer(str(folders.policy))
    for family, (config, lm, classifier, more) in FAMILIES.items():
        shape = {
            **SHAPE,
            **more,
            "num_key_value_heads": 2,
            "vocab_size": 2 * (len(tokenizer) // 2 + 1),
            "pad_token_id": 0,
        }
        lm(config(**shape)).save_pretrained(root / family / "policy")
        classifier(config(**shape, num_labels=2)).save_pretrained(root / family / "reward")
    return root


@pytest.fixture(scope="module")
def cut() -> Iterator[Spread]:
    made = Spread(2)
    yield made
    made.close()


class Weigher:
    """Says how many numbers its process holds of a policy."""

    layout = RowLayout.PACKED

    def __init__(self, path: str, *, device: str, processes: int) -> None:
        self.module = load_policy(path, dtype=torch.float32, processes=processes)

    def __call__(self, _: PackedBatch) -> torch.Tensor:
        return torch.tensor(float(sum(of_this_process(each).numel() for each in self.module.parameters())))


NOTHING = pack([], [], [])


def rows() -> list[Row]:
    draws = np.random.default_rng(0)
    return [
        single_turn(draws.integers(3, 400, size=5), draws.integers(3, 400, size=draws.integers(1, 20)))
        for _ in range(9)
    ]


def said_by(host: Any, folder: Path, tokenizer: str, patch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """What a reference says, and a reward actor with an ensemble and a function."""
    for module in ("reference", "reward"):
        patch.setattr(f"rlhf_dist.scoring.{module}.host_of", lambda *_: host)
    shared: dict[str, Any] = {"dtype": "float32", "batch_tokens": 64, "device": "cpu"}
    reference = ReferenceScorer(str(folder / "policy"), temperature=0.7, plain=True, **shared)
    rewards = (
        ModelReward(path=str(folder / "reward"), combine="min"),
        FunctionReward(kind="function", name="length", path="tests.scoring.rules:length_of"),
    )
    reward = RewardScorer(rewards, Safety(), tokenizer, **shared)
    found = {**reference.score(rows()), **reward.score(rows())}
    reference.offload()
    reward.offload()
    reference.reload()
    reward.reload()
    assert {**reference.score(rows()), **reward.score(rows())} == found
    for _, component in reward._weighted:
        if isinstance(component, RuleReward):
            component.close()
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_models_cut_over_two_processes_say_what_they_do_in_one(
    family: str, models: Path, folders: Folders, cut: Spread, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (said_by(host, models / family, str(folders.policy), monkeypatch) for host in (Here("cpu"), cut))
    assert one.keys() == two.keys() == {"ref_log_probs", "plain_log_probs", "score", "score_parts"}
    for name in ("ref_log_probs", "plain_log_probs"):
        for alone, together in zip(one[name], two[name], strict=True):
            np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(two["score"], one["score"], atol=1e-5)
    for alone, together in zip(one["score_parts"], two["score_parts"], strict=True):
        assert dict(together) == pytest.approx(dict(alone), abs=1e-5)


def test_each_process_holds_a_part(models: Path, cut: Spread) -> None:
    """Of a tied model all but the norms."""
    whole = sum(each.numel() for each in load_policy(str(models / "qwen" / "policy"), dtype=torch.float32).parameters())
    part = cut.load(Weigher, path=str(models / "qwen" / "policy"))
    assert float(part(NOTHING)) == pytest.approx(whole / 2, rel=0.02)


def test_what_a_process_raises_is_raised_here_and_ends_them(cut: Spread, tmp_path: Path) -> None:
    pids = [process.pid for process in cut._children._living.values()]
    assert len(pids) == 2
    with pytest.raises(ModelError, match=f"{tmp_path}"):
        cut.load(AskedPolicy, path=str(tmp_path), dtype="float32", attention="sdpa")
    with pytest.raises(WorkerLost, match="have ended"):
        cut.offload()
    deadline = time.monotonic() + WAIT_S
    while any(psutil.pid_exists(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("family", "processes", "told"),
    [
        ("gpt2", 2, "no tensor-parallel plan for the family 'gpt2'; expected 1, a family that has one"),
        ("llama", 4, "does not divide its 2 attention heads and its 2 key heads"),
    ],
)
def test_what_cannot_be_cut_is_refused_by_its_config(family: str, processes: int, told: str) -> None:
    config = {"gpt2": GPT2Config(), "llama": LlamaConfig(num_attention_heads=2, num_key_value_heads=2)}[family]
    with pytest.raises(ModelError, match=f"there: scoring.tensor_parallel is {processes}.*{told}"):
        check_can_be_cut("there", config, processes)
    check_can_be_cut("there", LlamaConfig(), 8)
