import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rlhf_dist.config import (
    ChaosConfig,
    DPOConfig,
    EvaluateConfig,
    Job,
    PipelineConfig,
    RewardConfig,
    RLConfig,
    Section,
    SFTConfig,
    dump,
    keys,
    load,
    override,
)
from rlhf_dist.config.files import _apply
from rlhf_dist.errors import ConfigError

CONFIGS = Path(__file__).parent.parent / "configs"
KINDS = {
    "demo": PipelineConfig,
    "pipeline": PipelineConfig,
    "sft": SFTConfig,
    "reward": RewardConfig,
    "dpo": DPOConfig,
    "evaluate": EvaluateConfig,
    "chaos": ChaosConfig,
}
MINIMAL = "policy: a\nreward: b\nprompts: {path: p.jsonl}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(MINIMAL)
    return path


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.name)
def test_shipped_configs_load_and_survive_a_round_trip(path: Path, tmp_path: Path) -> None:
    offline = path.stem in ("kto", "orpo", "simpo")
    kind = (
        PipelineConfig if path.parent.name == "scenarios" else DPOConfig if offline else KINDS.get(path.stem, RLConfig)
    )
    config = load(kind, path)
    (tmp_path / "again.yaml").write_text(dump(config))
    assert load(kind, tmp_path / "again.yaml") == config


BAD = {
    "rl.itertions=3": r"unknown key `rl.itertions`; did you mean `rl.iterations`\?",
    "advantage={kind: leave_one_out}": "`advantage` is now part of `algorithm`",
    "reward=[{kind: function, name: a, path: 'a:b', function: x}]": r"unknown key `reward.0.function`",
    "reward=[{kind: function, name: a}]": r"key `reward.0.path` is missing; expected `package.module:function`",
    "algorithm.gama=0.1": r"unknown key `algorithm.gama`; did you mean `algorithm.gamma`\?",
    "reward=[{path: a, wieght: 1}]": r"unknown key `reward.0.wieght`; did you mean `reward.weight`\?",
    "rollout.temperature=0.005": "`rollout.temperature` is 0.005; expected: .*greater than or equal to 0.01",
    "rollout.top_p=0.9": "rollout.top_p is 0.9 and rollout.top_k 0; expected 1 and 0, since PPO's ratio and KL",
    "rollout.top_k=50": "rollout.top_p is 1 and rollout.top_k 50; expected 1 and 0",
    "prompts.too_long=cut": "`prompts.too_long` is 'cut'; expected: .*'refuse', 'truncate' or 'leave_out'",
    "rl.iterations=many": r"`rl.iterations` is 'many'; expected: .*integer",
    "algorithm.gamma=1.5": r"`algorithm.gamma` is 1.5; expected: .*less than or equal to 1",
    "algorithm.method=gpro": r"`algorithm.method` is 'gpro'; expected: .*'grpo'",
    "learner.critic=none": "algorithm.baseline critic needs values; learner.critic is none, expected a critic",
    "algorithm.baseline=none + learner.critic=model": "none needs no critic; learner.critic is model, expected none",
    "algorithm.baseline=leave_one_out": "rollout.samples_per_prompt is 1, expected at least 2",
    "learner.zero_stage=4": r"`learner.zero_stage` is 4; expected: .*0, 1, 2 or 3",
    "experience.max_staleness=1": r"`experience.max_staleness` is 1",
    "rollout.workers={min: 3, max: 2}": r"`rollout.workers` is .*; expected: min at most max, found min 3 above max 2",
    "rollout.workers=many": r"`rollout.workers` is 'many'; expected: a number of workers, or {min: A, max: B}",
    "rollout.workers={mn: 1, max: 2}": r"unknown key `rollout.workers.mn`; did you mean `rollout.workers.min`",
    "cluster.placement=colocated + rollout.workers=2": "rollout.workers is 2 to 2, expected .* at most",
    "cluster.placement=colocated + rollout.tensor_parallel=2": "tensor_parallel 2, expected .* at most learner.ranks = 1",
    "weights.transport=cuda_ipc": "transport cuda_ipc with cluster.placement disaggregated; expected colocated",
    "weights.transport=cuda_ipc + cluster.placement=colocated + weights.delta_every=4": "delta_every 4; expected 0",
    "cluster.gpu_share=0.5 + rollout.tensor_parallel=2": "tensor_parallel is 2 beside cluster.gpu_share 0.5; expected gpu_share",
    "experience.capacity_rows=3": "capacity_rows is 3; expected at least 64, the rows of",
    "algorithm.kl_target=1 + algorithm.kl_horizon=63": "kl_horizon is 63; expected at least the 64 samples of an",
    "algorithm.kl_target=1 + algorithm.kl_coef=0": "kl_coef is 0 beside algorithm.kl_target 1; expected 1e-06 to 1000",
    "algorithm.kl_target=1 + algorithm.kl_coef=2000": "kl_coef is 2000 beside algorithm.kl_target 1; expected 1e-06 to",
    "learner.policy.lr=.nan": "`learner.policy.lr` is nan; expected: .*finite number",
    "algorithm.entropy_coef=.inf": "`algorithm.entropy_coef` is inf; expected: .*finite number",
    "safety.cap=-.inf": "`safety.cap` is -inf; expected: .*finite number",
    "rl.stop_on.kl_above=.inf": "`rl.stop_on.kl_above` is inf; expected: .*finite number",
    "reward=[{path: a, weight: .nan}]": "`reward.0.weight` is nan; expected: .*finite number",
    "learner.policy.betas=[1.0, 0.9]": "`learner.policy.betas.0` is 1.0; expected: .*less than 1",
    "reward=[{path: a, weight: -1, combine: min}]": "combine mean beside a weight below 0, found min beside -1",
    "reward=[{path: a, weight: 0}, {kind: function, name: f, path: 'a:b'}]": "no model that it could start from",
    "rl.mini_batches=65": r"rl.mini_batches is 65, more than the 64 prompts",
    "learner.micro_batch_tokens=100": r"micro_batch_tokens is 100; expected at least .* = 640",
    "learner.ranks=65": r"a batch has 64 prompts for learner.ranks 65",
    "prompts=3": r"`prompts` is 3; expected",
    "reward=[{kind: model, path: a}, {kind: model, path: b}]": "reward has 'reward' twice; expected a name of its own",
    "reward=[{path: a, name: unsafe}]": "reward has a component 'unsafe'; expected another name",
    "reward=[{path: a, name: unsafe_length}]": "reward has a component 'unsafe_length'; expected another name",
    "reward=[{path: a}, {path: b, name: reward_disagreement}]": "component 'reward_disagreement'; expected another name",
    "reward=[{path: a, name: gold}]": "reward has a component 'gold' of weight 1; expected weight 0",
    "reward=[{path: a}, {path: b, name: gold, weight: 0}] + gold_judge='a:b'": "component 'gold' beside gold_judge",
    "reward=[{path: a, weight: 0}]": "reward has no component with a weight",
    "reward=[{kind: function, name: r, path: nowhere}]": "`reward.0.path` is 'nowhere'",
    "reward=[{kind: function, name: r, path: 'a:b'}]": "reward has no model that it could start from; expected a critic",
    "rl.ptx_coef=0.1": "rl.ptx_coef is 0.1, but demonstrations is null",
    "rl.stop_on.gold_drop=0.1": "gold_drop needs a gold_judge, or a reward of weight 0 named 'gold'",
    "safety.forbidden=['(']": r"`safety.forbidden` is .*regular expressions; '\(' is none",
    "safety={shortest: 5, longest: 2}": "shortest at most longest, found 5 above 2",
    "policy.path=x": r"--set policy.path=x: policy is a value, not a section",
    "nonsense": r"--set nonsense: expected key.sub=value",
}


@pytest.mark.parametrize("override", BAD)
def test_mistakes_name_file_key_value_and_what_was_expected(override: str, file: Path) -> None:
    with pytest.raises(ConfigError, match=BAD[override]):
        load(RLConfig, file, override.split(" + "))


def test_an_evaluation_refuses_the_names_that_ppo_refuses(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("policies: {a: b}\nprompts: {path: p}\ngold_judge: 'a:b'\n")
    for name in ("unsafe", "x_disagreement", "gold"):
        with pytest.raises(ConfigError, match=f"reward has a component '{name}'"):
            load(EvaluateConfig, tmp_path / "c.yaml", [f"reward=[{{path: a, name: {name}, weight: 0}}]"])


def test_value_head_with_a_critic_model_is_a_contradiction(file: Path) -> None:
    with pytest.raises(ConfigError, match="critic names a model but learner.critic is value_head"):
        load(RLConfig, file, ["critic=c", "learner.critic=value_head"])


IDLE = {
    RLConfig: {
        "learner.value.lr=0.1 + learner.critic=value_head": "`learner.value.lr` is 0.1, .*; expected `learner.policy`",
        "algorithm.value_coef=0.9": "is 0.9, which has no effect here; expected it beside learner.critic value",
        "rl.max_policy_kl=0.1": "expected it beside `rl.epochs` above 1",
        "rl={max_policy_kl: 0.1}": "`rl.max_policy_kl` is 0.1",
        "algorithm.kl_horizon=9999": "expected `algorithm.kl_target` beside it",
        "rl.ptx_batch=3": "expected it beside `rl.ptx_coef`",
        "demonstrations={path: d}": "`demonstrations.path` is 'd', .*; expected it beside `rl.ptx_coef`",
        "rl.stop_on.patience=2": "expected it beside `rl.stop_on.gold_drop`",
        "rl.stop_on.ratio_above=2": "the policy of an only step is the old one",
        "rl.stop_on.policy_kl_above=2": "the policy of an only step is the old one",
        "rl.stop_on.then=roll_back": "expected it beside a band",
        "rl.stop_on.kl_above=2 + rl.stop_on.roll_backs=2": "expected it beside `rl.stop_on.then: roll_back`",
        "algorithm.gate_temperature=2": "expected `algorithm.surrogate: soft_gate`",
    },
    SFTConfig: {
        "learner.policy.lr=0.1": "`learner.policy.lr` is 0.1, which has no effect here; expected `optimizer`",
        "learner.value.lr=0.1": "expected `optimizer`",
        "learner.critic=value_head": "only PPO has a critic",
        "telemetry.trace_iterations=[1]": "only PPO is traced",
    },
    RewardConfig: {"rollout.samples_per_prompt=8": "answers each prompt once", "learner.policy.lr=1": "`optimizer`"},
    DPOConfig: {
        "learner.policy.lr=0.1": "expected `optimizer`",
        "loss=orpo + beta=0.1": "`beta` is 0.1, .*; expected it beside `loss: sigmoid or ipo or kto or simpo`",
        "loss=kto + label_smoothing=0.1": "expected it beside `loss: sigmoid or simpo`",
        "loss=simpo + reference=a": "expected it beside `loss: sigmoid or ipo or kto`",
        "gamma=0.1": "expected it beside `loss: simpo`",
        "odds_coef=0.2": "expected it beside `loss: orpo`",
        "desirable_weight=2": "expected it beside `loss: kto`",
        "loss=ipo + undesirable_weight=2": "expected it beside `loss: kto`",
        "loss=orpo + desirable_above=0.7": "expected it beside `loss: kto`",
    },
    EvaluateConfig: {
        "rollout.samples_per_prompt=8": "`rollout.samples_per_prompt` is 8, which has no effect here; expected `samples`",
        "prompts.held_out=q": "expected `prompts.path`",
        "learner.policy.lr=0.1": "nothing is trained",
        "restarts=1": "expected `rollout.max_restarts`",
        "scoring.reward_workers=2": "one worker scores",
    },
}
ENOUGH = {
    RLConfig: MINIMAL,
    EvaluateConfig: "policies: {a: b}\nprompts: {path: p}\n",
    **dict.fromkeys((SFTConfig, RewardConfig, DPOConfig), "model: a\n"),
}


@pytest.mark.parametrize(("kind", "changes"), [(kind, each) for kind, cases in IDLE.items() for each in cases])
def test_what_has_no_effect_is_refused_wherever_it_is_written(kind: type[Job], changes: str, tmp_path: Path) -> None:
    path, told = tmp_path / "c.yaml", IDLE[kind][changes]
    path.write_text(ENOUGH[kind])
    plain = load(kind, path)
    with pytest.raises(ConfigError, match=f"--set: .*{told}"):
        load(kind, path, changes.split(" + "))
    with pytest.raises(ConfigError, match=f"--set: .*{told}"):
        override(plain, changes.split(" + "))
    tree = yaml.safe_load(ENOUGH[kind])
    for each in changes.split(" + "):
        _apply(tree, each)
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(ConfigError, match=f"c.yaml: .*{told}"):
        load(kind, path)
    # What a run wrote has everything, and is read again.
    path.write_text(dump(kind.model_validate(tree)))
    load(kind, path)


def test_what_an_override_leaves_without_effect_is_no_mistake_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(MINIMAL + "learner: {value: {lr: 0.1}}\nrl: {epochs: 2, max_policy_kl: 0.1}\n")
    changed = load(RLConfig, path, ["learner.critic=value_head", "rl.epochs=1", "rl.max_policy_kl=null"])
    assert changed.learner.critic == "value_head"
    assert load(PipelineConfig, CONFIGS / "demo.yaml", ["learner.critic=value_head"]).learner.value.lr == 5e-4


def test_each_preference_loss_has_its_papers_numbers(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("model: a\n")
    for loss, beta in {"sigmoid": 0.1, "ipo": 0.1, "kto": 0.1, "simpo": 2.0}.items():
        assert load(DPOConfig, file, [f"loss={loss}"]).scale == beta
    assert load(DPOConfig, file, ["loss=simpo"]).target_margin == 1.0
    assert load(DPOConfig, file, ["loss=simpo", "beta=3", "gamma=0"]).target_margin == 0.0
    assert load(DPOConfig, file, ["loss=orpo"]).odds_coef == 0.1
    with pytest.raises(
        ConfigError, match="gamma is 0.5 beside beta 0.1, which asks for 5 nats between .*at most 2 beta"
    ):
        load(DPOConfig, file, ["loss=simpo", "beta=0.1", "gamma=0.5"])


def test_missing_keys_and_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("policy: a\nprompts: {path: x}\n")
    with pytest.raises(ConfigError, match=r"c.yaml: reward has no component with a weight; expected at least one"):
        load(RLConfig, tmp_path / "c.yaml")
    with pytest.raises(ConfigError, match="none.yaml: no such config file"):
        load(RLConfig, tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(ConfigError, match="found list; expected a mapping"):
        load(RLConfig, tmp_path / "list.yaml")


BAD_YAML = {
    b"a: [\n": "not valid YAML",
    b"\xffa: 1": "not valid YAML",
    b"a: 2020-99-99": "not valid YAML: month must be",
    b"[" * 3000: "nested too deep",
    b"learner:\n  ranks: 1\n  ranks: 2": "`ranks` is there twice\n.*line 3",
    b"a: !!python/object/apply:os.getcwd []": "not valid YAML",
}


@pytest.mark.parametrize("text", BAD_YAML)
def test_what_yaml_cannot_be_is_one_message_with_the_files_name(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_bytes(text)
    with pytest.raises(ConfigError, match=f"bad.yaml: .*{BAD_YAML[text]}"):
        load(RLConfig, tmp_path / "bad.yaml")


def test_overrides_reach_deep_keys_and_read_numbers(file: Path) -> None:
    config = load(RLConfig, file, ["learner.policy.lr=1e-5", "rollout.stop=[a, b]", "algorithm.kl_target=null"])
    assert config.learner.policy.lr == 1e-5
    assert config.rollout.stop == ("a", "b")


def test_rows_that_are_scored_together_fit_a_pass_and_leave_work_for_others(file: Path) -> None:
    def together(*changes: str) -> int:
        return load(RLConfig, file, [*changes]).scored_together

    assert together() == 16, "of 64 samples"
    assert together("rl.prompts_per_iteration=1000", "scoring.batch_tokens=6400") == 20
    assert together("scoring.batch_tokens=1") == together("rl.prompts_per_iteration=1") == 1
    assert together("scoring.reward_workers=7", "rollout.workers=3") == 16


def test_what_an_earlier_version_wrote_is_read_as_what_it_is_called_now(tmp_path: Path) -> None:
    file = tmp_path / "old.yaml"
    now = yaml.safe_load(dump(RLConfig.model_validate(yaml.safe_load(MINIMAL))))
    old = {name: value for name, value in now.items() if name not in ("rl", "algorithm", "correction")}
    old |= {
        "ppo": {"clip_ratio": 0.1, "gamma": 0.9, "iterations": 7, "kl_coef": 0.3},
        "advantage": {"kind": "gae", "gae_lambda": 0.8},
        "surrogate": {"kind": "clip", "clip_ratio": 0.2},
        "gold_judge": "rlhf_dist.data.helpdesk:gold_score",
    }
    file.write_text(yaml.safe_dump(old))
    config = load(RLConfig, file)
    algorithm = config.algorithm
    assert (algorithm.baseline, algorithm.surrogate, config.rl.iterations) == ("critic", "clip", 7)
    assert (algorithm.clip_ratio, algorithm.gamma, algorithm.gae_lambda, algorithm.kl_coef) == (0.1, 0.9, 0.8, 0.3)
    assert config.gold_judge == "rlhf_dist.tasks.helpdesk:gold_score"
    assert load(RLConfig, file, ["algorithm.clip_ratio=0.3"]).algorithm.clip_ratio == 0.3


def everybody(kind: type[Section] = Section) -> list[type[Section]]:
    """Every section and config that there is."""
    return [*dict.fromkeys([kind, *(each for below in kind.__subclasses__() for each in everybody(below))])]


def test_every_setting_says_what_it_means() -> None:
    undescribed = [
        f"{kind.__name__}.{name}"
        for kind in everybody()
        for name, field in kind.model_fields.items()
        if not field.description and not (isinstance(field.annotation, type) and issubclass(field.annotation, Section))
    ]
    assert undescribed == []
    assert {"learner.policy.lr", "algorithm.gae_lambda", "reward.normalise", "lora.rank"} <= {
        *keys(RLConfig),
        *keys(SFTConfig),
    }


def test_no_setting_is_declared_twice() -> None:
    """A field of two sections is declared in what they share, unless it means or defaults to something else in each."""
    homes: dict[tuple[str, ...], list[str]] = {}
    for kind in everybody():
        for name in kind.__annotations__.keys() & kind.model_fields.keys():
            field = kind.model_fields[name]
            homes.setdefault((name, repr(field.annotation), field.description or "", repr(field.default)), []).append(
                kind.__name__
            )
    assert {key[0]: kinds for key, kinds in homes.items() if len(kinds) > 1} == {}


def test_every_command_has_a_run_folder_of_its_own_name() -> None:
    found = {kind.folder: kind for kind in everybody() if "folder" in kind.__dict__}
    assert sorted(found) == ["chaos", "dpo", "evaluation", "reward", "rl", "sft"]
    assert SFTConfig(model="a").run_dir == "runs/sft"
    assert SFTConfig(model="a", run_dir="here").run_dir == "here"
    assert all(issubclass(kind, Job) for kind in (RLConfig, PipelineConfig, EvaluateConfig, RewardConfig, DPOConfig))
    assert not issubclass(PipelineConfig, RLConfig)


@pytest.mark.parametrize("module", ["rlhf_dist.config", "rlhf_dist.cli"])
def test_config_and_command_line_import_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'ray', 'vllm', 'deepspeed', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
