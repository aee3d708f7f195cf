"""A folder's ends are what any of its files says, under a hub name too, and a saved policy says them itself."""

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from rlhf_dist.errors import ModelError
from rlhf_dist.models import check_same_tokenizer, ends_of, eos_token_ids, folders, load_tokenizer, resolve, write_ends
from tests.chats import CHATML, ENDLESS, LLAMA3, chat_tokenizer


def model(folder: Path, template: str | None = LLAMA3, *, generation: Any = None, **config: Any) -> Path:
    chat_tokenizer(template).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


EOS, EOT, END = 2, 7, 13


@pytest.mark.parametrize(
    ("template", "generation", "config", "expected"),
    [
        (None, None, {}, {EOS}),
        (LLAMA3, None, {}, {EOS, EOT}),
        (ENDLESS, {"eos_token_id": [END, EOS]}, {}, {EOS, END}),
        (LLAMA3, {"eos_token_id": END}, {}, {EOS, EOT, END}),
        (LLAMA3, {"eos_token_id": None}, {"eos_token_id": [EOS, END]}, {EOS, EOT, END}),
        (None, None, {"text_config": {"eos_token_id": END}}, {EOS, END}),
        (None, None, {"eos_token_id": 40}, {EOS}),
        (None, {"eos_token_id": 40}, {}, {EOS, 40}),
        (None, {"eos_token_id": 99_999}, {"eos_token_id": -1}, {EOS}),
    ],
)
def test_an_engine_stops_at_whatever_a_folder_calls_an_end(
    template: str | None, generation: Any, config: dict[str, Any], expected: set[int], tmp_path: Path
) -> None:
    found = ends_of(str(model(tmp_path / "m", template, generation=generation, **config)))
    assert set(found.ids) == expected
    assert len(found.ids) == len(expected)
    assert (found.text, found.chat) == (EOS, EOT if template == LLAMA3 else None)


def test_a_broken_generation_config_is_named(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    for text, told in (("{", "not valid JSON"), ("[]", "found list; expected a mapping")):
        (folder / "generation_config.json").write_text(text)
        with pytest.raises(ModelError, match=f"generation_config.json: {told}"):
            ends_of(str(folder))


def test_a_saved_base_model_carries_the_ends_of_its_template_and_keeps_what_else_it_said(tmp_path: Path) -> None:
    folder = model(tmp_path / "m", generation={"eos_token_id": EOS, "temperature": 0.6})
    write_ends(folder, eos_token_ids(str(folder)))
    assert json.loads((folder / "generation_config.json").read_text()) == {
        "eos_token_id": [EOS, EOT],
        "temperature": 0.6,
    }
    (folder / "generation_config.json").unlink()
    write_ends(folder, [EOT, EOS, EOT])
    assert json.loads((folder / "generation_config.json").read_text()) == {"eos_token_id": [EOS, EOT]}
    from transformers import GenerationConfig

    assert GenerationConfig.from_pretrained(folder).eos_token_id == [EOS, EOT]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of a machine without network that has `acme/tiny`."""
    root = tmp_path / "hub"
    name = root / "models--acme--tiny"
    model(name / "snapshots" / "0123abc", generation={"eos_token_id": [EOS, END]})
    (name / "snapshots" / "0123abc" / "reward.json").write_text('{"std": 2.0}')
    (name / "refs").mkdir()
    (name / "refs" / "main").write_text("0123abc")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(root))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    folders._fetched.cache_clear()
    return root


def test_a_name_on_the_hub_is_a_folder_with_all_its_files(hub: Path) -> None:
    from rlhf_dist.scoring.reward_file import read_reward_file

    folder = resolve("acme/tiny")
    assert Path(folder) == hub / "models--acme--tiny" / "snapshots" / "0123abc"
    assert resolve(folder) == folder
    assert set(eos_token_ids("acme/tiny")) == {EOS, EOT, END}
    assert read_reward_file(folder).std == 2.0
    assert load_tokenizer("acme/tiny").chat_template == LLAMA3
    shutil.rmtree(hub)
    assert resolve("acme/tiny") == folder, "asked once"


@pytest.mark.parametrize("name", ["acme/other", "acme/ti ny", "a--b/c"])
def test_a_name_that_cannot_be_fetched_is_one_sentence(name: str, hub: Path) -> None:
    with pytest.raises(ModelError, match=f"{name}: no such folder, and it cannot be fetched from the hub: [^\n]+$"):
        resolve(name)


@pytest.mark.parametrize("path", ["/no/where", "./a/b", "a/b/c", "tiny", "~/m"])
def test_a_path_is_no_name(path: str) -> None:
    with pytest.raises(ModelError, match="no such folder; expected a Hugging Face model folder"):
        resolve(path)


def test_models_that_end_answers_differently_do_not_go_together(tmp_path: Path) -> None:
    own, same, bare = (
        str(model(tmp_path / name, template)) for name, template in (("a", LLAMA3), ("b", LLAMA3), ("c", None))
    )
    other = str(model(tmp_path / "d", CHATML))
    check_same_tokenizer(own, {"reference": same, "reward": bare})
    with pytest.raises(
        ModelError, match=r"reward .*d ends an assistant's turn with <\|im_end\|>, the policy .*<\|eot_id\|>"
    ):
        check_same_tokenizer(own, {"reference": same, "reward": other})


@pytest.mark.parametrize("config", [[1], "x", 3])
def test_a_config_of_another_form_is_named(config: Any, tmp_path: Path) -> None:
    folder = model(tmp_path / "m", text_config=config)
    with pytest.raises(ModelError, match="config.json: text_config is .*; expected a mapping"):
        ends_of(str(folder))
    (folder / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="config.json: found list; expected a mapping"):
        ends_of(str(folder))
