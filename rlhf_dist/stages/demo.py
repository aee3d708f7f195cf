"""The demo: SFT, reward model and PPO on the embedded help desk, from random weights to a judged policy."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from rlhf_dist.cluster.placement import lay_out
from rlhf_dist.cluster.session import namespace_of, session
from rlhf_dist.config import DemoConfig, PPOConfig, Prompts
from rlhf_dist.data import helpdesk
from rlhf_dist.data.prompts import read_rows
from rlhf_dist.learner.rank import ModelSpec
from rlhf_dist.stages.ppo import run as run_ppo
from rlhf_dist.stages.supervised import (
    LearnerPlace,
    Stage,
    demonstrations,
    fit,
    preference_pairs,
    reward_loss,
    sft_loss,
    steps_of,
)
from rlhf_dist.telemetry.console import Console
from rlhf_dist.telemetry.run_folder import RunFolder, write_aside

GOLD_JUDGE = "rlhf_dist.data.helpdesk:gold_score"


def run(config: DemoConfig, path: Path, console: Console, *, resume: bool = False) -> RunFolder:
    """Run the three stages; the folder holds the PPO run, and the earlier stages under `stages/`.

    Args:
        config: the demo's settings.
        path: the run folder.
        console: where to speak.
        resume: skip stages whose model is there, and go on from PPO's newest checkpoint.
    """
    console.say("[bold]The help desk:[/] writing prompts, demonstrations and preferences")
    sizes = helpdesk.Sizes(
        prompts=config.prompt_count,
        held_out=config.prompts.held_out_limit,
        demonstrations=config.sft.examples,
        preferences=config.reward_model.examples,
    )
    data = helpdesk.write(path / "data", sizes=sizes, seed=config.seed)
    sft, reward = path / "stages" / "sft", path / "stages" / "reward"
    tokenizer = helpdesk.build_tokenizer()
    if not (resume and reward.is_dir()):
        needed, _ = lay_out(config, gpus=False).totals()  # PPO's, so that a cluster too small for it is refused now
        with session(config.cluster, cpus=needed, gpus=0, namespace=namespace_of(path)):
            start = make_policy(config, tokenizer, path / "stages" / "start")
            done = [_fit(_sft(config, tokenizer, data, start, sft), config, path, tokenizer, console)]
            done.append(_fit(_reward(config, tokenizer, data, sft, reward), config, path, tokenizer, console))
        write_aside(path / "stages.json", json.dumps(done, indent=2))
    ppo = ppo_config(config, path, policy=sft, reward=reward, data=data)
    folder = RunFolder(path, ppo, console=console)
    with console.progress("PPO against the reward model", ppo.ppo.iterations):
        run_ppo(ppo, folder, resume=resume)
    return folder


def make_policy(config: DemoConfig, tokenizer: Any, folder: Path) -> Path:
    """Write a small Llama with random weights and its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # it would run through our own

    shape = config.model
    torch.manual_seed(config.seed)
    llama = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=8 * shape.hidden // 3 // 8 * 8,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=shape.positions,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(llama).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def ppo_config(config: DemoConfig, path: Path, *, policy: Path, reward: Path, data: helpdesk.Paths) -> PPOConfig:
    """The demo's PPO part as a config of its own, so that `rlhf-dist ppo RUN/config.yaml` runs it again."""
    kept = {name: getattr(config, name) for name in PPOConfig.model_fields}
    prompts = Prompts(
        **{**config.prompts.model_dump(), "path": str(data.prompts), "held_out": str(data.held_out), "column": "prompt"}
    )
    made = {"policy": str(policy), "reward": str(reward), "prompts": prompts, "run_dir": str(path)}
    return PPOConfig(**{**kept, **made, "gold_judge": GOLD_JUDGE})


def _sft(config: DemoConfig, tokenizer: Any, data: helpdesk.Paths, start: Path, save_to: Path) -> Stage:
    rows = demonstrations(read_rows(str(data.demonstrations)), tokenizer)
    spec = ModelSpec(str(start), "policy", config.sft.optimizer, steps_of(config.sft, len(rows.units)))
    return Stage("sft", "SFT on demonstrations", spec, rows, sft_loss, config.sft, save_to)


def _reward(config: DemoConfig, tokenizer: Any, data: helpdesk.Paths, start: Path, save_to: Path) -> Stage:
    settings = config.reward_model
    rows = preference_pairs(read_rows(str(data.preferences)), tokenizer)
    spec = ModelSpec(str(start), "value", settings.optimizer, steps_of(settings, len(rows.units)))
    return Stage("reward", "Reward model from preference pairs", spec, rows, reward_loss, settings, save_to)


def _fit(stage: Stage, config: DemoConfig, path: Path, tokenizer: Any, console: Console) -> dict[str, Any]:
    """Train one supervised stage; returns what the report says about it."""
    began = time.perf_counter()
    cluster = config.cluster
    place = LearnerPlace(
        config.learner, config.model.hidden, 0.0, config.seed, config.timeouts, path, cluster.interface
    )
    with console.progress(stage.title, stage.spec.total_steps):
        facts = fit(stage, place, tokenizer, console.advance)
    seconds = time.perf_counter() - began
    console.say(f"  held out: {', '.join(f'{key} {value:.3f}' for key, value in facts.items())} ({seconds:.0f} s)")
    return {"stage": stage.name, "seconds": seconds, "metrics": facts}
