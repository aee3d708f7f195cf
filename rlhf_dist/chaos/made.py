"""What a run under faults needs and its config does not name: a tiny policy, prompts, a server."""

from __future__ import annotations

from pathlib import Path

from rlhf_dist.chaos.schedule import iterations
from rlhf_dist.config import ModelShape, RLConfig
from rlhf_dist.config.chaos import OWN_SERVER, ChaosConfig
from rlhf_dist.files import write_json_lines
from rlhf_dist.tasks.helpdesk import build_tokenizer, train_prompts
from rlhf_dist.tasks.start_model import make_policy

SHAPE = ModelShape(hidden=64, layers=2, heads=2, positions=128)
PROMPTS = 256


def run_config(config: ChaosConfig, folder: Path, *, url: str, faults: int, seed: int) -> RLConfig:
    """The RL run that faults are done to, with what it lacks made in a folder.

    Args:
        config: of the chaos.
        folder: where to make things.
        url: of chaos's own server.
        faults: how many there will be.
        seed: of the schedule, and of the policy that is made.
    """
    tree = {name: getattr(config, name) for name in RLConfig.model_fields}
    if not config.policy:
        make_policy(SHAPE, build_tokenizer(), folder / "policy", seed=seed)
        write_json_lines(folder / "prompts.jsonl", ({"prompt": text} for text in train_prompts()[:PROMPTS]))
        tree["policy"] = str(folder / "policy")
        tree["prompts"] = config.prompts.model_copy(update={"path": str(folder / "prompts.jsonl")})
    tree["reward"] = tuple(
        each.model_copy(update={"url": url}) if each.kind == "remote" and each.url == OWN_SERVER else each
        for each in config.reward
    )
    tree["rl"] = config.rl.model_copy(update={"iterations": iterations(faults, gap=config.chaos.gap)})
    tree["experience"] = config.experience.model_copy(update={"keep": True})
    return RLConfig(**{**tree, "run_dir": str(folder / "run")})
