"""A pipeline whose stages are made in no time, for all that is decided around them."""

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlhf_dist.config import PipelineConfig
from rlhf_dist.errors import WorkerLost
from rlhf_dist.run_folder.folder import RunFolder
from rlhf_dist.stages.inputs import inputs_of, keep_inputs


class Made:
    """A stage that makes of what it reads a model of which it can be told what it was made of."""

    def __init__(self, output: str) -> None:
        self.output, self.ran, self.resumed = output, 0, 0
        self.fails = False
        self.gold: list[float | None] = []

    def prepare(self, config: Any, resume: Path | None = None, inputs: Any = None) -> Any:
        self.resumed += resume is not None
        return SimpleNamespace(describe=lambda: "made", begin=None)

    def run(self, config: Any, prepared: Any, folder: RunFolder, shared: Any = None) -> None:
        self.ran += 1
        keep_inputs(config, folder.path)
        (folder.path / "checkpoints" / "step-000001" / "learner").mkdir(parents=True, exist_ok=True)
        if self.fails:
            raise WorkerLost("learner-0 died")
        made = folder.path / self.output
        made.mkdir(exist_ok=True)
        read = inputs_of(config, {})
        digests = {key: [file["digest"] for file in each["files"].values()] for key, each in read.items()}
        (made / "model.safetensors").write_text(json.dumps(digests))
        rows = [{"prompt": f"p{number}", "gold_after": gold} for number, gold in enumerate(self.gold)]
        (folder.path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder.path / "summary.json").write_text(json.dumps({"stage": folder.stage, "kl_end": float(self.ran)}))


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> dict[str, Made]:
    made = {"sft": Made("policy"), "reward": Made("reward_model"), "rl": Made("policy")}
    for name, each in made.items():
        module = f"rlhf_dist.stages.{name}"
        monkeypatch.setattr(f"{module}.prepare", each.prepare)
        monkeypatch.setattr(f"{module}.run", each.run)
    monkeypatch.setattr("rlhf_dist.stages.rl.read_inputs", lambda *_: ([], []))
    pipeline = "rlhf_dist.stages.pipeline"
    monkeypatch.setattr(f"{pipeline}.encoder_of", lambda _: SimpleNamespace(notes=list))
    monkeypatch.setattr(f"{pipeline}.session", lambda *_, **__: nullcontext())
    monkeypatch.setattr(f"{pipeline}._room_for_both", lambda _: False)
    monkeypatch.setattr(f"{pipeline}._held_at_once", lambda *_: 0.0)
    monkeypatch.setattr(f"{pipeline}.check_settings", lambda *_: None)
    monkeypatch.setattr(f"{pipeline}.resolved", lambda config: config)
    monkeypatch.setattr(f"{pipeline}.told_of_resume", lambda *_: [])
    return made


@pytest.fixture
def own(tmp_path: Path) -> PipelineConfig:
    (tmp_path / "start").mkdir()
    for name in ("start/config.json", "d.jsonl", "f.jsonl", "p.jsonl"):
        (tmp_path / name).write_text("{}\n")
    return PipelineConfig(
        policy=str(tmp_path / "start"),
        prompts={"path": str(tmp_path / "p.jsonl")},
        sft={"data": {"path": str(tmp_path / "d.jsonl")}},
        reward_model={"data": [{"path": str(tmp_path / "f.jsonl")}]},
    )
