"""The sweep over all causal families of transformers, vLLM in: half an hour (`--soak`)."""

import json
from pathlib import Path

import pytest

from tests.benchmarks.test_contract import run

SECONDS = 3600


@pytest.mark.soak
@pytest.mark.timeout(SECONDS)
def test_no_family_is_silently_wrong(tmp_path: Path) -> None:
    done = run("architectures", "--json", tmp_path / "found.json", timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "found.json").read_text())["figures"]
    assert figures["wrong"] == 0, done.stdout
    assert figures["right"] + figures["remedied"] > 100
    assert figures["vllm_equal"] > 20
