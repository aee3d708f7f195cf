import pytest

from rlhf_dist.cluster.allocator import NAMES, growing


def test_segments_grow_unless_the_user_has_settings_of_his_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    assert growing() == {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:512")
    assert growing() == {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:512"}
