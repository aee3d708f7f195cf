"""Keys of earlier versions: told where somebody writes them, moved where a run of then has written them."""

from pathlib import Path

import pytest
import yaml

from rlhf_dist.config import Algorithm, PipelineConfig, RLConfig, dump, keys, load
from rlhf_dist.config.files import MOVED
from rlhf_dist.errors import ConfigError

MINIMAL = "policy: p\nreward: r\nprompts: {path: x}\n"
OF_A_RUN = """
policy: p
reference: null
reward: [{name: reward, weight: 1.0, kind: model, path: r, combine: mean, std_coef: 1.0, normalise: true}]
critic: null
gold_judge: rlhf_dist.data.helpdesk:gold_score
prompts: {path: x, max_tokens: 32}
run_dir: runs/ppo
seed: 3
restarts: 3
telemetry: {}
timeouts: {}
cluster: {}
rollout: {max_new_tokens: 64, samples_per_prompt: 2}
"""
"""What every version has written, shortened where everything is a default."""
BY_CRITIC = """
learner: {critic: value_head}
ppo: {iterations: 7, prompts_per_iteration: 32, epochs: 2, mini_batches: 2, clip_value: 0.3, kl_coef: 0.1, kl_target: 6.0,
  kl_horizon: 9000, entropy_coef: 0.01, value_coef: 0.4, whiten_advantages: true, score_clip: 5.0, missing_eos_penalty: 1.0,
  max_policy_kl: 0.2, ptx_coef: 0.0, ptx_batch: 16, stop_on: {kl_above: 9.0}}
advantage: {kind: gae, gamma: 0.99, gae_lambda: 0.9}
surrogate: {kind: clip, clip_ratio: 0.15}
"""
WITHOUT_CRITIC = """
learner: {critic: none}
ppo: {iterations: 7, prompts_per_iteration: 32, kl_coef: 0.1, whiten_advantages: false}
advantage: {kind: leave_one_out}
surrogate: {kind: clip, clip_ratio: 0.15}
"""
BEFORE_SECTIONS = """
learner: {critic: model}
ppo: {iterations: 7, prompts_per_iteration: 32, clip_ratio: 0.1, gamma: 0.9, gae_lambda: 0.8}
"""


def test_a_run_of_then_is_read_as_the_same_settings(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(OF_A_RUN + BY_CRITIC)
    config = load(RLConfig, file)
    assert config.algorithm == Algorithm(
        gamma=0.99,
        gae_lambda=0.9,
        clip_ratio=0.15,
        clip_value=0.3,
        kl_coef=0.1,
        kl_target=6.0,
        kl_horizon=9000,
        entropy_coef=0.01,
        value_coef=0.4,
        score_clip=5.0,
        missing_eos_penalty=1.0,
    )
    a = config.algorithm
    assert (a.method, a.baseline, a.aggregate, a.kl_in) == ("ppo", "critic", "token_mean", "reward")
    rl = config.rl
    assert (rl.iterations, rl.epochs, rl.max_policy_kl, rl.ptx_batch, rl.stop_on.kl_above) == (7, 2, 0.2, 16, 9.0)
    assert (config.run_dir, config.seed) == ("runs/ppo", 3)
    assert config.gold_judge == "rlhf_dist.tasks.helpdesk:gold_score"
    file.write_text(dump(config))
    assert load(RLConfig, file) == config


def test_leave_one_out_of_then_stays_what_it_was(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(OF_A_RUN + WITHOUT_CRITIC)
    config = load(RLConfig, file)
    assert config.algorithm == Algorithm(
        baseline="leave_one_out", whiten_advantages=False, kl_coef=0.1, clip_ratio=0.15
    )
    assert config.algorithm.aggregate == "token_mean", "and not that of the method rloo"
    file.write_text(OF_A_RUN + BEFORE_SECTIONS)
    before = load(RLConfig, file).algorithm
    assert (before.clip_ratio, before.gamma, before.gae_lambda) == (0.1, 0.9, 0.8)


@pytest.mark.parametrize("old", MOVED)
def test_a_key_of_then_says_what_it_is_called_now(old: str, tmp_path: Path) -> None:
    file, new = tmp_path / "c.yaml", MOVED[old]
    kind = PipelineConfig if old == "judge" else RLConfig
    value = {"advantage.kind": "gae", "surrogate.kind": "clip", "ppo": {"epochs": 2}, "judge": {"epochs": 2}}.get(
        old, 1
    )
    told = rf"`{old}` is now `{new}`" if old != "ppo" else "`ppo.epochs` is now `rl.epochs`"
    tree = yaml.safe_load(MINIMAL)
    *parents, leaf = old.split(".")
    (tree.setdefault(parents[0], {}) if parents else tree)[leaf] = value
    file.write_text(yaml.safe_dump(tree))
    with pytest.raises(ConfigError, match=rf"^{file}: keys of an earlier version: {told}"):
        load(kind, file)
    file.write_text(MINIMAL)
    key = "ppo.epochs" if old == "ppo" else old
    with pytest.raises(ConfigError, match=rf"^--set {key}=1: {told}$"):
        load(kind, file, [f"{key}=1"])


def test_all_moved_keys_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(MINIMAL + "ppo: {epochs: 2, kl_coef: 0.1}\nadvantage: {kind: leave_one_out}\n")
    with pytest.raises(ConfigError) as told:
        load(RLConfig, file)
    for sentence in (
        "`ppo.kl_coef` is now `algorithm.kl_coef`",
        "`ppo.epochs` is now `rl.epochs`",
        "`advantage.kind` is now `algorithm.baseline` (here leave_one_out)",
    ):
        assert str(told.value).count(sentence) == 1
    file.write_text(MINIMAL + "advantage: {kind: gae}\n")
    with pytest.raises(ConfigError, match=r"`advantage.kind` is now `algorithm.baseline` \(here critic\)"):
        load(RLConfig, file)


@pytest.mark.parametrize("change", ["advantage={kind: leave_one_out}", "advantage.gama=1", "surrogate={}"])
def test_a_section_that_is_no_more_is_told(change: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(MINIMAL)
    with pytest.raises(ConfigError, match=r"`(advantage|surrogate)` is now part of `algorithm`$"):
        load(RLConfig, file, [change])


def test_every_moved_key_is_there_now() -> None:
    known = {*keys(RLConfig), *keys(PipelineConfig)}
    assert [new for new in MOVED.values() if new not in known] == []
