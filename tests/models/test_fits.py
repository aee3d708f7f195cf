"""Room and roles by configs alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from rlhf_dist.errors import ModelError
from rlhf_dist.models import PolicyModel, check_models, pack
from rlhf_dist.models.attention import attention_note
from rlhf_dist.models.fits import positions_of, switching_length
from tests.models.families import folder_of

LOWER = "prompts.max_tokens"
FEW = {"original_max_position_embeddings": 9}


class Tokens:
    """A tokenizer of so many tokens."""

    def __init__(self, number: int) -> None:
        self._number = number

    def get_vocab(self) -> dict[str, int]:
        return {f"t{number}": number for number in range(self._number)}


def written(tmp_path: Path, name: str, **keys: Any) -> str:
    config = LlamaConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, **{"vocab_size": 97, **keys})
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path / name)
    return str(tmp_path / name)


def test_every_token_has_a_row_in_every_embedding(tmp_path: Path) -> None:
    policy, small, large = (written(tmp_path, str(rows), vocab_size=rows) for rows in (100, 96, 128))
    check_models([("policy", policy), ("reference", large)], Tokens(100), 10, lower=LOWER)
    check_models([("policy", policy), ("reference", policy)], Tokens(90), 10, lower=LOWER)
    with pytest.raises(ModelError, match=rf"policy {policy}: its embedding has 100 rows, its tokenizer 101 tokens"):
        check_models([("policy", policy)], Tokens(101), 10, lower=LOWER)
    with pytest.raises(ModelError, match=rf"critic {small}: its embedding has 96 rows, that of the policy .* 100"):
        check_models([("policy", policy), ("critic", small)], Tokens(90), 10, lower=LOWER)


@pytest.mark.parametrize(
    ("rope", "same"),
    [
        ({"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}, 64),
        ({"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}, None),
        ({"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}, None),
        ({"rope_type": "yarn", "factor": 4.0}, None),
        ({"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}, 32),
        (
            {
                "rope_type": "longrope",
                "short_factor": [1.0] * 8,
                "long_factor": [9.0] * 8,
                "original_max_position_embeddings": 9,
            },
            9,
        ),
    ],
)
def test_a_rope_that_switches_bounds_the_longest_sequence(
    rope: dict[str, Any], same: int | None, tmp_path: Path
) -> None:
    rope = {"rope_theta": 1e4, "original_max_position_embeddings": 32, **rope}
    path = written(tmp_path, "rope", max_position_embeddings=64, rope_parameters=rope)
    config = AutoConfig.from_pretrained(path)
    assert switching_length(config) == same
    check_models([("policy", path)], Tokens(97), same or 32, lower=LOWER)
    told = "has 64 positions" if same is None else f"treats sequences beyond {same} tokens otherwise"
    with pytest.raises(ModelError, match=rf"{told}.*Lower {LOWER}"):
        check_models([("policy", path)], Tokens(97), (same or 64) + 1, lower=LOWER)
    torch.manual_seed(0)
    model = PolicyModel(AutoModelForCausalLM.from_config(config))
    sequences = [np.arange(3, 3 + length, dtype=np.int32) % 97 for length in (9, (same or 40) + 3)]
    batch = pack(sequences, [range(8), range(8)], [[0], [1]])
    if same is None:
        assert model(batch)[0].shape == (16,)
    else:
        with pytest.raises(ModelError, match=rf"beyond {same} it is treated otherwise, and shorter neighbours with it"):
            model(batch)


@pytest.mark.parametrize(
    ("family", "positions"),
    [("gpt2", 128), ("opt", 128), ("mpt", 128), ("bloom", None), ("mamba", None), ("xlnet", None)],
)
def test_positions_are_known_under_any_name(family: str, positions: int | None) -> None:
    assert positions_of(AutoConfig.from_pretrained(folder_of(family))) == positions


@pytest.mark.parametrize("family", ["gpt2", "opt", "biogpt"])
def test_a_full_table_of_positions_has_room_for_padding(family: str) -> None:
    """Rows of several sequences are longer than the table; their padding must not be looked up beyond it."""
    model = PolicyModel(AutoModelForCausalLM.from_pretrained(folder_of(family)))
    sequences = [np.full(length, 5, dtype=np.int32) for length in (128, 3, 40, 100)]
    said = model(pack(sequences, [range(len(each) - 1) for each in sequences], [[0, 1], [2], [3]]))[0]
    assert torch.isfinite(said).all()


def test_kernels_that_are_not_there_are_told_by_the_config_alone() -> None:
    note = attention_note("policy", "a", AutoConfig.from_pretrained(folder_of("mistral")), "flash_attention_2")
    assert note is not None
    assert "computed by varlen instead of flash_attention_2 (learner.attention): the package flash-attn is not" in note
    note = attention_note("reward", "a", AutoConfig.from_pretrained(folder_of("gptj")), "sdpa")
    assert note == (
        "reward a: attention is computed by eager instead of sdpa (learner.attention): GPTJForCausalLM has no such kernel"
    )
    assert attention_note("policy", "a", AutoConfig.from_pretrained(folder_of("mistral")), "sdpa") is None


def test_a_folder_whose_architecture_says_nothing_is_taken_for_a_language_model(tmp_path: Path) -> None:
    path = written(tmp_path, "plain")
    config = Path(path) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"architectures": None}))
    check_models([("policy", path)], Tokens(97), 10, lower=LOWER)
