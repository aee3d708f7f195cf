from dataclasses import replace

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_dist.config import Lora, RLConfig
from rlhf_dist.planning.learning import SAVE, UPDATE, Parts, learner_phases
from rlhf_dist.planning.memory import memory, work_of
from rlhf_dist.planning.sizes import ModelSize, model_size

SIZE = ModelSize(
    parameters=1_000_000, layers=4, hidden=64, intermediate=176, attention=64, kv_elements=512, vocabulary=1000
)
SIZES = dict.fromkeys(("policy", "reference", "reward", "critic"), SIZE)


def config(**sections: object) -> RLConfig:
    return RLConfig.model_validate({"policy": "a", "reward": "b", "prompts": {"path": "p"}, **sections})


def learner_memory(settings: RLConfig, sizes: dict[str, ModelSize]) -> Parts:
    return learner_phases(work_of(settings, sizes, gpus=False), settings.learner)[UPDATE]


@pytest.mark.parametrize(
    ("stage", "weights", "gradients", "optimiser"),
    [(1, 1, 1, 4), (2, 1, 4, 4), (3, 4, 4, 4)],
)
def test_zero_divides_what_its_paper_says(stage: int, weights: int, gradients: int, optimiser: int) -> None:
    found = learner_memory(config(learner={"zero_stage": stage, "ranks": 4, "precision": "bf16"}), SIZES)
    both = 2_000_000  # policy and critic
    assert found["parameters"] == both * 2 / weights
    assert found["gradients"] == both * 4 / gradients
    assert found["optimiser"] == both * 12 / optimiser


@pytest.mark.parametrize("ranks", [1, 4, 32])
def test_model_states_are_what_deepspeed_itself_estimates(ranks: int) -> None:
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    def states(stage: int) -> float:
        learner = {"zero_stage": stage, "ranks": ranks, "precision": "bf16"}
        found = learner_memory(config(learner=learner, rl={"prompts_per_iteration": 64}), SIZES)
        return found["parameters"] + found["gradients"] + found["optimiser"]

    both = 2_000_000  # policy and critic
    told = {"num_gpus_per_node": ranks, "cpu_offload": False}
    assert states(3) == estimate_zero3_model_states_mem_needs(both, 0, cpu_offload_params=False, **told)[1]
    # It counts gradients in 16 bits beside those in fp32; here they are a bucket's, which buffers have.
    assert states(2) == estimate_zero2_model_states_mem_needs(both, **told)[1] - 2 * both / ranks


def test_checkpointing_and_smaller_micro_batches_shrink_activations_only() -> None:
    plain = learner_memory(config(), SIZES)
    less = learner_memory(config(learner={"gradient_checkpointing": True}), SIZES)
    half = learner_memory(config(learner={"micro_batch_tokens": 4096}), SIZES)
    assert less["activations"] < plain["activations"]
    assert half["activations"] == plain["activations"] / 2
    for part in ("parameters", "gradients", "optimiser"):
        assert plain[part] == less[part] == half[part]


def test_ranks_that_share_rows_have_a_part_of_the_activations_and_all_the_rest() -> None:
    apart = learner_memory(config(learner={"ranks": 2, "attention": "varlen"}), SIZES)
    shared = learner_memory(config(learner={"ranks": 2, "attention": "varlen", "sequence_parallel": 2}), SIZES)
    assert shared["activations"] == apart["activations"] / 2
    assert {**shared, "activations": 0, "head": 0} == {**apart, "activations": 0, "head": 0}


def test_models_that_learners_only_ask_are_cut_over_the_ranks_whatever_the_stage() -> None:
    shared = {"zero_stage": 1, "ranks": 4, "precision": "bf16"}
    plain, held = learner_memory(config(learner=shared), SIZES), {"reference_on": "learner"}
    asked = learner_memory(config(learner=shared, scoring=held), SIZES)
    assert asked == {**plain, "asked models": 1_000_000 * 2 / 4}
    on_host = learner_memory(config(learner=shared, scoring={**held, "frozen_on_host": True}), SIZES)
    assert on_host == {**plain, "asked models (host)": 1_000_000 * 2 / 4}


def test_layers_of_a_model_that_is_only_asked_are_gathered_in_a_buffer_of_their_own() -> None:
    wide = replace(SIZE, parameters=10**9, hidden=4096)
    shared = {"zero_stage": 1, "ranks": 4, "precision": "bf16"}
    asked = learner_memory(config(learner=shared, scoring={"reference_on": "learner"}), {**SIZES, "reference": wide})
    assert asked["ZeRO's buffers"] == 2 * 2 * 12 * 4096**2, "two layers"


def test_a_scorer_over_several_gpus_holds_its_part_and_the_embeddings() -> None:
    one = memory("reference", config(), SIZES, gpu_bytes=10**9)
    two = memory("reference", config(scoring={"tensor_parallel": 2}), SIZES, gpu_bytes=10**9)
    assert two == {**one, "parameters": 4 * (64 * 1000 + (1_000_000 - 64 * 1000) / 2)}
    assert memory("reference", config(scoring={"tensor_parallel": 2}), SIZES) == one, "on CPUs all of it is on the node"


def test_tensor_parallelism_splits_engines_and_the_kv_cache_has_its_closed_form() -> None:
    own = {"engine": "transformers"}
    one = memory("rollout", config(rollout=own), SIZES)
    two = memory("rollout", config(rollout={"tensor_parallel": 2}), SIZES, gpu_bytes=10**9)
    assert two["parameters"] == one["parameters"] / 2
    # 64 samples of 512 + 128 tokens, 512 elements of 4 bytes per token.
    assert one["KV cache"] == 64 * 640 * 512 * 4


def test_vllm_takes_the_share_of_a_gpu_that_it_is_granted_and_at_least_a_samples_cache() -> None:
    for fraction in (0.25, 0.9):
        eager = {"gpu_memory_fraction": fraction, "compile": False}
        found = memory("rollout", config(rollout=eager), SIZES, gpu_bytes=10**9)
        assert sum(found.values()) == fraction * 10**9
    tiny = memory("rollout", config(rollout={"compile": False}), SIZES, gpu_bytes=1000.0)
    assert tiny == {"parameters": 4 * 10**6, "KV cache": 640 * 512 * 4}


def test_parameters_are_counted_without_allocating_and_equal_the_model() -> None:
    llama = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=99
    )
    size = model_size(llama, kind="policy")
    assert size.parameters == sum(parameter.numel() for parameter in LlamaForCausalLM(llama).parameters())
    assert (size.kv_elements, size.attention) == (2 * 2 * 64, 64)


@pytest.mark.parametrize("targets", [("all-linear",), ("q_proj", "down_proj")])
def test_adapters_are_counted_without_allocating_as_peft_makes_them(targets: tuple[str, ...]) -> None:
    from rlhf_dist.learner.adapters import adapt, adapted_layers

    lora = Lora(rank=3, targets=targets)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 99}
    size = model_size(LlamaConfig(**shape, num_attention_heads=4, num_key_value_heads=2), kind="policy", lora=lora)
    lm = LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=4, num_key_value_heads=2))
    assert (size.parameters, size.adapters > 0) == (sum(each.numel() for each in lm.parameters()), True)
    own = {name: each.numel() for name, each in lm.named_parameters()}
    adapt(lm, lora)
    assert size.adapters == sum(each.numel() for each in lm.parameters() if each.requires_grad)
    assert size.adapted == sum(own[name] for name in adapted_layers(lm))


def test_gradients_and_optimiser_are_those_of_adapters_and_the_wire_carries_what_they_change() -> None:
    size = replace(SIZE, adapters=10_000, adapted=600_000)
    settings = config(learner={"lora": {}, "precision": "bf16", "zero_stage": 1})
    found = learner_memory(settings, dict.fromkeys(SIZES, size))
    assert (found["parameters"], found["gradients"], found["optimiser"]) == (2 * 2_020_000, 4 * 20_000, 12 * 20_000)
    versions = memory("store", settings, dict.fromkeys(SIZES, size))["weight versions"]
    assert versions == 2 * (1_000_000 + 3 * 600_000), "a complete version, two of what changes, and one on its way"


def test_a_rank_that_holds_versions_for_its_engine_has_one_whole() -> None:
    shared = {"zero_stage": 3, "ranks": 2, "precision": "bf16"}
    plain, beside = learner_memory(config(learner=shared), SIZES), {"cluster": {"placement": "colocated"}}
    held = learner_memory(config(learner=shared, weights={"transport": "cuda_ipc"}, **beside), SIZES)
    assert held == {**plain, "held version": SIZES["policy"].parameters * 2}


def test_a_save_copies_states_only_where_there_are_checkpoints() -> None:
    def copied(**sections: object) -> float:
        settings = config(learner={"ranks": 2, "precision": "bf16"}, **sections)
        phases = learner_phases(work_of(settings, SIZES, gpus=True), settings.learner)
        return phases[SAVE]["copy to be written (host)"]

    assert copied() == 1_000_000 * 2 / 2, "the policy alone"
    assert copied(checkpoint_every=5) == 2_000_000 * (2 + 12) / 2, "policy and critic, masters and moments"


def test_weights_that_ranks_hold_are_not_in_the_object_store_but_with_the_ranks() -> None:
    shared, transport = {"ranks": 2, "precision": "bf16"}, {"transport": "sharded_rdt"}
    lent, sent = config(learner=shared, weights=transport), config(learner=shared)
    three = 3 * SIZES["policy"].parameters * 2
    assert learner_memory(lent, SIZES) == {**learner_memory(sent, SIZES), "held version": three / 2}
    assert [memory("store", each, SIZES)["weight versions"] for each in (lent, sent)] == [0, three]
