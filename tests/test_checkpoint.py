from pathlib import Path

import pytest

from rlhf_dist.checkpoint import complete_or_absent, steps, verify
from rlhf_dist.errors import ModelError


def write(folder: Path, text: str = "weights") -> None:
    with complete_or_absent(folder) as aside:
        (aside / "sub").mkdir()
        (aside / "sub" / "model.bin").write_text(text)
        (aside / "config.json").write_text("{}")


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "step-000001"

    def interrupted() -> None:
        with complete_or_absent(target) as aside:
            (aside / "half").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not target.exists()
    write(target)
    verify(target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000001"]


def test_a_failed_rewrite_leaves_the_old_folder_untouched(tmp_path: Path) -> None:
    target = tmp_path / "policy"
    write(target, "old")

    def interrupted() -> None:
        with complete_or_absent(target):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    verify(target)
    assert (target / "sub" / "model.bin").read_text() == "old"
    write(target, "new")
    assert (target / "sub" / "model.bin").read_text() == "new"


@pytest.mark.parametrize("name", ["sub/model.bin", "config.json"])
def test_any_changed_or_missing_file_is_found(name: str, tmp_path: Path) -> None:
    write(tmp_path / "c")
    file = tmp_path / "c" / name
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(ModelError, match=f"{name}: missing or changed"):
        verify(tmp_path / "c")
    file.unlink()
    with pytest.raises(ModelError, match=f"{name}: missing or changed"):
        verify(tmp_path / "c")


def test_a_folder_without_digests_is_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="expected a complete checkpoint"):
        verify(tmp_path)


def test_what_people_put_beside_checkpoints_is_none(tmp_path: Path) -> None:
    here = tmp_path / "checkpoints"
    for name in ("step-000003", "step-000003.bak", "step-4 (copy)", "step-", "step-1000000"):
        write(here / name)
    (here / "step-000009").write_text("a file")
    assert steps(tmp_path) == {1000000: here / "step-1000000", 3: here / "step-000003"}
