"""Where models are, on this node and on others."""

from contextlib import suppress
from pathlib import Path

import huggingface_hub
import pytest

from rlhf_dist.errors import ModelError
from rlhf_dist.models import folders, load_tokenizer, read_config, resolve
from rlhf_dist.tasks.helpdesk import build_tokenizer
from tests.models.families import folder_of

REVISION = "0123456789abcdef0123456789abcdef01234567"


def test_what_another_node_fetched_is_looked_for_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver names a folder of its own cache; a node without it fetches the same revision."""
    cache = tmp_path / "cache"
    here = cache / "models--acme--small" / "snapshots" / REVISION
    here.parent.mkdir(parents=True)
    here.symlink_to(folder_of("mistral"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    folders._fetched.cache_clear()
    there = f"/nodes/driver/hub/models--acme--small/snapshots/{REVISION}"
    assert Path(resolve(there)) == here
    assert read_config(there).model_type == "mistral"
    with pytest.raises(ModelError, match="acme/other: no such folder, and it cannot be fetched from the hub"):
        resolve(there.replace("small", "other"))
    with pytest.raises(ModelError, match="no such folder; expected a Hugging Face model folder"):
        resolve("/nodes/driver/models/small")


@pytest.mark.parametrize("damage", ["null", "[]", "{}", '"x"', "1", "[" * 100_000, "\xff\xfe"])
@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "config.json"])
def test_a_tokenizer_folder_that_is_damaged_in_any_way_is_refused_or_read(
    file: str, damage: str, tmp_path: Path
) -> None:
    build_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    load_tokenizer(str(tmp_path))
    (tmp_path / file).write_bytes(damage.encode("latin-1"))
    with suppress(ModelError):  # an empty object is a config that says nothing
        load_tokenizer(str(tmp_path))
