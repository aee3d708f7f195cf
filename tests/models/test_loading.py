"""Folders that lack something, or hold something else than is wanted: one sentence, before a random weight is used."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

from rlhf_dist.config import Learner, Lora, Optimizer
from rlhf_dist.errors import ModelError
from rlhf_dist.learner.model_spec import ModelSpec
from rlhf_dist.models import PolicyModel, ValueModel, load_policy, load_value_model, read_config
from tests.models.families import folder_of
from tests.models.test_wrapped import SHAPE

WEIGHTS = "model.safetensors"
Change = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


def changed(tmp_path: Path, change: Change, family: str = "mistral") -> str:
    """A folder whose weights were changed, as by whoever saved them."""
    folder = tmp_path / "model"
    shutil.copytree(folder_of(family), folder)
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})
    return str(folder)


def with_config(tmp_path: Path, family: str = "mistral", **keys: object) -> str:
    folder = tmp_path / "model"
    shutil.copytree(folder_of(family), folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))
    return str(folder)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model.", "_fsdp_wrapped_module.", "actor."])
def test_foreign_prefixes_are_named(prefix: str, tmp_path: Path) -> None:
    path = changed(tmp_path, lambda found: {f"{prefix}{name}": tensor for name, tensor in found.items()})
    with pytest.raises(ModelError, match=rf"start at random.*take the prefix '{prefix}' off the names"):
        load_policy(path, dtype=torch.float32)


@pytest.mark.parametrize("family", ["mistral", "qwen3_moe", "opt"])
def test_a_weight_that_is_not_in_the_file_is_named(family: str, tmp_path: Path) -> None:
    def without_a_layer(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor for name, tensor in found.items() if "layers.1." not in name}

    path = changed(tmp_path, without_a_layer, family)
    with pytest.raises(ModelError, match=r"weights are not in the file, e.g. .*layers\.1\..*start at random"):
        load_policy(path, dtype=torch.float32)


def test_a_layer_that_the_config_does_not_know_is_named(tmp_path: Path) -> None:
    path = with_config(tmp_path, num_hidden_layers=1)
    with pytest.raises(ModelError, match=r"layers that its config does not know, e.g. model.layers.1"):
        load_policy(path, dtype=torch.float32)


def test_adapters_that_were_saved_in_a_models_place_are_named(tmp_path: Path) -> None:
    def adapters(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
        return {name: next(iter(found.values()))[:4].clone()}

    with pytest.raises(ModelError, match="holds adapters: merge them"):
        load_policy(changed(tmp_path, adapters), dtype=torch.float32)


def test_a_policy_with_a_value_head_beside_it_is_still_a_policy(tmp_path: Path) -> None:
    path = changed(tmp_path, lambda found: {**found, "v_head.summary.weight": torch.zeros(1, 64)})
    assert load_policy(path, dtype=torch.float32) is not None


def test_a_tied_head_is_not_missed(tmp_path: Path) -> None:
    LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True)).save_pretrained(tmp_path)
    lm = load_policy(str(tmp_path), dtype=torch.float32)
    assert lm.lm_head.weight is lm.model.embed_tokens.weight


@pytest.mark.parametrize("family", ["mistral", "gemma2"])
def test_every_role_has_the_head_that_it_needs(family: str) -> None:
    policy, reward = str(folder_of(family)), str(folder_of(family, "reward"))
    with pytest.raises(ModelError, match="whose head gives scores; expected a causal language model"):
        load_policy(reward, dtype=torch.float32)
    with pytest.raises(ModelError, match="no head for rewards; expected a trained reward model"):
        load_value_model(policy, dtype=torch.float32)
    with pytest.raises(ModelError, match="whose head gives scores"):
        ModelSpec(reward, "policy", Optimizer(), 10).build(Learner())
    assert isinstance(ModelSpec(policy, "value", Optimizer(), 10).build(Learner()), ValueModel)


def test_a_new_head_is_new_and_nothing_else(tmp_path: Path) -> None:
    """An ensemble may start from one reward model; its body must still be the file's."""
    reward = folder_of("mistral", "reward")
    several = load_value_model(str(reward), dtype=torch.float32, heads=3, new_head=True)
    one = AutoModelForSequenceClassification.from_pretrained(reward, dtype=torch.float32)
    assert several.score.out_features == 3
    for name, parameter in one.model.named_parameters():
        assert torch.equal(parameter, several.model.get_parameter(name)), name
    torch.manual_seed(5)
    first = load_value_model(str(folder_of("mistral")), dtype=torch.float32, new_head=True).score.weight
    torch.manual_seed(5)
    second = load_value_model(str(folder_of("mistral")), dtype=torch.float32, new_head=True).score.weight
    assert torch.equal(first, second), "every rank draws the same"
    path = changed(tmp_path, lambda found: {**found, "model.norm.weight": torch.ones(32)})
    with pytest.raises(ModelError, match=r"model.norm.weight|size mismatch|shape"):
        load_value_model(path, dtype=torch.float32, new_head=True)


@pytest.mark.parametrize("damage", ["cut", "header", "empty"])
def test_damaged_files_are_one_sentence(damage: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folder_of("mistral"), folder)
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(
        {"cut": data[: len(data) // 2], "header": b"\xff" * 99 + data[99:], "empty": b""}[damage]
    )
    with pytest.raises(ModelError, match="cannot be read as a Hugging Face model") as caught:
        load_policy(str(folder), dtype=torch.float32)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            "is quantised .gptq.; expected weights in float32",
        ),
        ({"model_type": "nobody_knows_it"}, "cannot read its config"),
        ({"hidden_size": "many"}, "cannot read its config"),
    ],
)
def test_configs_that_cannot_be_trained_are_refused(keys: dict[str, object], told: str, tmp_path: Path) -> None:
    path = with_config(tmp_path, **keys)
    with pytest.raises(ModelError, match=told):
        read_config(path)


@pytest.mark.parametrize("family", ["gemma3", "llama4", "qwen3_5"])
def test_a_model_of_several_parts_is_refused(family: str, tmp_path: Path) -> None:
    from transformers import AutoConfig

    AutoConfig.for_model(family).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"model of several parts \(.*vision_config.*expected a model of text alone"):
        read_config(str(tmp_path))


@pytest.mark.parametrize("attention", ["flash_attention_2", "sdpa"])
def test_kernels_that_are_not_there_are_replaced_and_that_is_said(
    attention: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = load_policy(str(folder_of("gptj")), dtype=torch.float32, attention=attention)
    assert model.config._attn_implementation == "eager"
    assert "attention is computed by eager" in caplog.text


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "olmoe"])
def test_adapted_experts_are_saved_and_published(family: str, tmp_path: Path) -> None:
    """peft wraps the two tensors of a layer's experts one around the other."""
    from rlhf_dist.learner.published import Merged, collected
    from rlhf_dist.learner.saving import save_model
    from tests.learner.test_published import Sharded

    spec = ModelSpec(str(folder_of(family)), "policy", Optimizer(), 10, lora=Lora(rank=2))
    module = spec.build(Learner())
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    weights = Merged(Sharded(module.lm, spec.lora))
    state = collected(weights, [name for name, _ in weights.shapes()], dtype=torch.float32, keep=True)
    save_model(module.lm, state, tmp_path)
    ids = torch.arange(3, 15)[None]
    read = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    torch.testing.assert_close(read(ids).logits, module.eval().lm(ids).logits, atol=1e-4, rtol=1e-4)
    plain = AutoModelForCausalLM.from_pretrained(folder_of(family), dtype=torch.float32).eval()
    assert (plain(ids).logits - read(ids).logits).abs().max() > 1e-2


def test_an_adapter_beside_merged_weights_is_refused(tmp_path: Path) -> None:
    """transformers would put it on top of what has it already."""
    folder = tmp_path / "model"
    shutil.copytree(folder_of("mistral"), folder)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"]}')
    with pytest.raises(
        ModelError, match=r"adapter_config.json is beside .*move its files away if it is merged already"
    ):
        load_policy(str(folder), dtype=torch.float32)


@pytest.mark.parametrize(
    ("left", "told"),
    [
        ("pytorch_model.bin", r"expected weights as \*.safetensors; found pytorch_model.bin, which is not read"),
        (None, r"expected weights as \*.safetensors; found none"),
        ("model-00001-of-00002.safetensors", "no model.safetensors and no model.safetensors.index.json"),
    ],
)
def test_other_files_of_weights_are_named(left: str | None, told: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folder_of("mistral"), folder)
    (folder / WEIGHTS).unlink()
    if left:
        (folder / left).write_bytes(b"x")
    with pytest.raises(ModelError, match=told):
        load_policy(str(folder), dtype=torch.float32)


@pytest.mark.parametrize("name", ["lm_head.bias", "score.weight", "score.bias"])
def test_a_head_that_would_be_left_out_is_named(name: str, tmp_path: Path) -> None:
    path = changed(tmp_path, lambda found: {**found, name: torch.ones(1, 64)})
    with pytest.raises(ModelError, match=rf"the file has {name}, for which the model of its config has no place"):
        load_policy(path, dtype=torch.float32)


def test_a_reward_model_may_keep_its_old_head_but_not_lose_its_own(tmp_path: Path) -> None:
    for name, fits in (("lm_head.weight", True), ("score.bias", False)):
        folder = tmp_path / name
        shutil.copytree(folder_of("mistral", "reward"), folder)
        save_file({**load_file(folder / WEIGHTS), name: torch.ones(1)}, folder / WEIGHTS, metadata={"format": "pt"})
        if fits:
            assert load_value_model(str(folder), dtype=torch.float32) is not None
        else:
            with pytest.raises(ModelError, match="the file has score.bias"):
                load_value_model(str(folder), dtype=torch.float32)


def test_weights_of_another_shape_are_named_with_both(tmp_path: Path) -> None:
    path = with_config(tmp_path, intermediate_size=48)
    with pytest.raises(ModelError, match=r"down_proj.weight has the shape \[64, 64\] in the file, and \[64, 48\] by"):
        load_policy(path, dtype=torch.float32)


@pytest.mark.parametrize("keys", [{"return_dict": False}, {"output_attentions": True}, {"output_hidden_states": True}])
def test_what_a_forward_returns_does_not_hang_on_the_config(keys: dict[str, bool], tmp_path: Path) -> None:
    PolicyModel(load_policy(with_config(tmp_path, **keys), dtype=torch.float32))


def test_recomputing_is_refused_where_a_family_cannot() -> None:
    from rlhf_dist.errors import ConfigError

    spec = ModelSpec(str(folder_of("jetmoe")), "policy", Optimizer(), 10)
    with pytest.raises(ConfigError, match="learner.gradient_checkpointing is true, but JetMoe.* expected false"):
        spec.build(Learner(gradient_checkpointing=True))


@pytest.mark.parametrize("targets", [("q_proj", "nope"), ("lm_head",), ("gate_up_proj", "down_proj", "up")])
def test_targets_that_no_module_is_called_are_named(targets: tuple[str, ...]) -> None:
    from rlhf_dist.errors import ConfigError

    with pytest.raises(
        ConfigError, match=r"lora.targets (has '(nope|up|gate_up_proj)'|is \['lm_head'\]; expected modules other)"
    ):
        ModelSpec(str(folder_of("mistral")), "policy", Optimizer(), 10, lora=Lora(targets=targets)).build(Learner())


@pytest.mark.parametrize("start", ["policy", "reward"])
def test_the_adapter_of_a_reward_model_has_its_head(start: str, tmp_path: Path) -> None:
    from peft import PeftModel

    from rlhf_dist.learner.adapters import save_adapter
    from rlhf_dist.learner.published import Merged, collected
    from rlhf_dist.learner.saving import save_model
    from tests.learner.test_published import Sharded

    lora = Lora(rank=2)
    torch.manual_seed(0)
    module = ModelSpec(str(folder_of("mistral", start)), "value", Optimizer(), 10, lora=lora).build(Learner())
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_B" in name or "score" in name:
                parameter.normal_(std=0.2)
    own = {
        name: each.detach()
        for name, each in module.classifier.named_parameters()
        if ".lora_" in name or "score" in name
    }
    save_adapter(module.classifier, own, lora, tmp_path / "adapter")
    weights = Merged(Sharded(module.classifier, lora))
    state = collected(weights, [name for name, _ in weights.shapes()], dtype=torch.float32, keep=True)
    save_model(module.classifier, state, tmp_path / "merged")
    ids = torch.arange(3, 15)[None]
    trained = module.eval().classifier(ids).logits
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(merged(ids).logits, trained, atol=1e-5, rtol=1e-5)
    labels = module.classifier.num_labels
    base = AutoModelForSequenceClassification.from_pretrained(folder_of("mistral", start), num_labels=labels)
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(adapted(ids).logits, trained, atol=1e-5, rtol=1e-5)


def test_a_reward_model_that_pads_with_its_end_is_saved_to_be_read_at_its_end(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folder_of("mistral", "reward"), folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token_id": 2, "eos_token_id": 2}))
    module = ModelSpec(str(folder), "value", Optimizer(), 10).build(Learner())
    assert module.classifier.config.pad_token_id is None
    ids = torch.tensor([[5, 6, 2]])
    whole = module.eval().classifier.score(module.classifier.model(ids).last_hidden_state)[0, -1]
    torch.testing.assert_close(module.classifier(ids).logits[0], whole)


@pytest.mark.parametrize("number", [float("nan"), float("-inf")])
def test_a_weight_that_is_not_finite_is_named_before_anything_is_computed_with_it(
    number: float, tmp_path: Path
) -> None:
    def spoilt(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found["model.layers.1.mlp.up_proj.weight"][3, 4] = number
        return found

    with pytest.raises(
        ModelError, match=r"1 of its weights hold NaN or infinity, e.g. model.layers.1.mlp.up_proj.weight"
    ):
        load_policy(changed(tmp_path, spoilt), dtype=torch.float32)


def test_large_weights_are_finite_though_their_sum_and_all_that_comes_from_them_is_not(tmp_path: Path) -> None:
    def enlarged(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return found | {"model.norm.weight": torch.full((64,), 3e38)}

    lm = load_policy(changed(tmp_path, enlarged), dtype=torch.float32)
    with pytest.raises(ModelError, match=r"says of a short text is not finite, though its weights are"):
        PolicyModel(lm)
