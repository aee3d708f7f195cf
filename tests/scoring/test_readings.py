"""Where and how models of other people's training are read: as their own forward does."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from rlhf_dist.config import ModelReward
from rlhf_dist.scoring.answers import Answers
from rlhf_dist.scoring.hosts import Here
from rlhf_dist.scoring.reward_models import LearnedReward
from rlhf_dist.scoring.safety import Classifier
from rlhf_dist.store.row import single_turn
from rlhf_dist.tasks.word_tokenizer import word_tokenizer
from tests.models.families import folder_of

ROWS = [single_turn((5, 6, 7), (8, 9, 2)), single_turn((5,), (10, 11)), single_turn((4, 4), (2,))]


def reward_of(folder: Path, **keys: Any) -> Path:
    shutil.copytree(folder_of("mistral", "reward"), folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))
    return folder


@pytest.mark.parametrize("pad", [0, 2])
def test_a_reward_model_from_elsewhere_is_read_before_its_padding(pad: int, tmp_path: Path) -> None:
    """Some pad with the token that ends answers, and were never trained to be read there."""
    folder = reward_of(tmp_path / "model", pad_token_id=pad, eos_token_id=2)
    own = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    found = LearnedReward(ModelReward(path=str(folder)), Here("cpu"), dtype="float32", batch_tokens=64)
    with torch.no_grad():
        expected = [own(torch.tensor([row.tokens.tolist()])).logits[0] for row in ROWS]
    said = torch.from_numpy(found.members(Answers(ROWS, None)))
    torch.testing.assert_close(said.float(), torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_a_reward_model_of_ours_is_read_at_the_last_token(tmp_path: Path) -> None:
    folder = reward_of(tmp_path / "model", pad_token_id=2, eos_token_id=2)
    elsewhere = LearnedReward(ModelReward(path=str(folder)), Here("cpu"), dtype="float32", batch_tokens=64)
    (folder / "reward.json").write_text("{}")
    ours = LearnedReward(ModelReward(path=str(folder)), Here("cpu"), dtype="float32", batch_tokens=64)
    differ = abs(ours.members(Answers(ROWS, None)) - elsewhere.members(Answers(ROWS, None))).max(1) > 1e-6
    assert differ.tolist() == [True, False, True], "where an answer ends with what the model pads with"


@pytest.mark.parametrize("kind", ["multi_label_classification", "single_label_classification"])
def test_a_classifier_of_several_verdicts_gives_each_its_own_probability(kind: str, tmp_path: Path) -> None:
    """BERT's kind: no end of sequence, positions that a long text has to fit into, labels that do not exclude each other."""
    tokenizer = word_tokenizer(["a b c d"])
    tokenizer.eos_token = None
    tokenizer.model_max_length = int(1e30)
    tokenizer.save_pretrained(tmp_path)
    labels = {"id2label": {0: "rude", 1: "unsafe"}, "label2id": {"rude": 0, "unsafe": 1}}
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=24, problem_type=kind, **labels, **shape)
    model = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        model.classifier.bias.copy_(torch.tensor([4.0, 2.0]))
    model.save_pretrained(tmp_path)
    (found,) = Classifier(str(tmp_path), device="cpu").probabilities([("a b " * 40, "c d")])
    assert found == pytest.approx(0.88 if kind.startswith("multi") else 0.12, abs=0.03)
