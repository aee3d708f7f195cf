"""The update on real torch modules with a plain optimiser in DeepSpeed's place, against PPO written out plainly."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from rlhf_dist.algorithms.advantages import gae
from rlhf_dist.algorithms.surrogates import Losses
from rlhf_dist.algorithms.value_losses import explained_variance_sums
from rlhf_dist.config import RL, Algorithm, Correction
from rlhf_dist.data.packing import Budget, MicroBatch, plan_micro_batches
from rlhf_dist.learner.experience import PackedExperience
from rlhf_dist.learner.objective import Now, RLObjective
from rlhf_dist.learner.policy_update import Models, Updated, update
from rlhf_dist.learner.recorder import Ranks, explained
from rlhf_dist.learner.rows import RankRows, to_experience
from rlhf_dist.learner.trained_model import finite_or_nan
from rlhf_dist.models import PolicyModel, ValueModel
from rlhf_dist.records import RowKey
from rlhf_dist.store.row import single_turn

SHAPE: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
KL_COEF, CLIP, LAM = 0.1, 0.02, 0.9


def objective(correction: Correction | None = None, **changes: Any) -> RLObjective:
    """PPO with the numbers above, but for `changes`."""
    rl = {name: value for name, value in changes.items() if name in RL.model_fields}
    own = {name: value for name, value in changes.items() if name not in rl}
    algorithm = Algorithm.model_validate({"gae_lambda": LAM, "clip_ratio": CLIP, "kl_coef": KL_COEF, **own})
    return RLObjective(algorithm, correction or Correction(), RL(**rl), longest=12)


def learn(
    trained: Models,
    batch: list[list[PackedExperience]],
    aim: RLObjective | None = None,
    *,
    reuse: bool = False,
    ranks: Ranks | None = None,
    **now: Any,
) -> Updated:
    """One update."""
    aim = aim or objective()
    told = Now(
        **{"kl_coef": aim.algorithm.kl_coef, "entropy_coef": aim.algorithm.entropy_coef, "ratio_is_one": reuse, **now}
    )
    return update(trained, batch, aim, told, ranks=ranks or Ranks())


class PlainTrained:
    """`TrainedModel`'s contract: gradients add up over `backward`, `step` applies and clears them."""

    device = torch.device("cpu")

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module
        self.optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
        self.norms: list[float] = []
        self.skipped = 0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self.module(*arguments, **options)

    def backward(self, loss: torch.Tensor) -> None:
        (loss * finite_or_nan(loss)).backward()

    @property
    def steps(self) -> int:
        return len(self.norms) + self.skipped

    def step(self) -> dict[str, float] | None:
        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1e9)
        if not math.isfinite(norm):
            self.optimizer.zero_grad()
            self.skipped += 1
            return None
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.norms.append(float(norm))
        return {"grad_norm": float(norm), "lr": 0.05 / len(self.norms)}

    def skip(self, steps: int) -> None:
        self.skipped += steps


def models(critic: str = "model") -> Models:
    torch.manual_seed(0)
    policy = PolicyModel(LlamaForCausalLM(LlamaConfig(**SHAPE)), value_head=critic == "value_head")
    if policy.value_head is not None:
        torch.nn.init.normal_(policy.value_head.weight, std=0.3)
    value = ValueModel(LlamaForSequenceClassification(LlamaConfig(**SHAPE, num_labels=1, pad_token_id=0)))
    return Models(PlainTrained(policy), PlainTrained(value) if critic == "model" else None)


def data(count: int = 8) -> RankRows:
    rng = np.random.default_rng(0)
    rows = [
        single_turn(rng.integers(1, 61, size=4), rng.integers(1, 61, size=rng.integers(2, 12))) for _ in range(count)
    ]
    lengths = [int(row.sampled.sum()) for row in rows]
    return RankRows(
        rows,
        [row.token_rewards(score) for row, score in zip(rows, rng.normal(size=count), strict=True)],
        [rng.normal(-4, 0.1, size=n).astype(np.float32) for n in lengths],
        [rng.normal(-4, 0.1, size=n).astype(np.float32) for n in lengths],
        [],
        np.zeros(count, dtype=bool),
        np.full(count, np.nan),
        np.arange(count) // 2,
        np.arange(count),
        [RowKey(3, number // 2, number % 2) for number in range(count)],
    )


def test_models_that_the_learner_asks_say_what_workers_would_have_written() -> None:
    aim, asked = objective(teacher_coef=0.1), models().policy.module

    def says(batch: Any) -> torch.Tensor:
        with torch.no_grad():
            return asked(batch)[0]

    written = packed(data(), 64, minis=2)
    for micro in (micro for mini in written for micro in mini):
        micro.ref_log_probs = says(micro.packed)
        micro.teacher_log_probs = micro.ref_log_probs
    left = packed(data(), 64, minis=2)
    for micro in (micro for mini in left for micro in mini):
        micro.ref_log_probs = micro.teacher_log_probs = torch.zeros(0)
    trained = models()
    trained.frozen = {"reference": says, "teacher": says}
    assert learn(trained, left, aim) == learn(models(), written, aim)


def micro_batches(lengths: list[int], tokens: int, row_tokens: int = 0) -> list[MicroBatch]:
    (micros,) = plan_micro_batches(lengths, Budget(1, tokens, row_tokens, hidden=32))
    return micros


def packed(rows: RankRows, tokens: int, row_tokens: int = 0, minis: int = 1) -> list[list[PackedExperience]]:
    """Mini-batches of neighbouring rows."""
    found = []
    for part in np.array_split(np.arange(len(rows.rows)), minis):
        micros = micro_batches([len(rows.rows[i].tokens) for i in part], tokens, row_tokens)
        chosen = [[[int(part[i]) for i in row] for row in micro] for micro in micros]
        found.append([to_experience(rows, micro, torch.device("cpu")) for micro in chosen])
    return found


def run(
    aim: RLObjective,
    *,
    tokens: int,
    row_tokens: int = 0,
    reuse: bool = False,
    critic: str = "model",
) -> tuple[Models, dict[str, float]]:
    trained = models(critic)
    return trained, learn(trained, packed(data(), tokens, row_tokens), aim, reuse=reuse).facts


def plain_outputs(trained: Models, tokens: np.ndarray, prompt: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probs, entropies and values of one row's answer, by the models' own layers."""
    ids = torch.tensor(tokens[None].astype(np.int64))
    policy = trained.policy.module
    hidden = policy.lm.model(input_ids=ids).last_hidden_state[0, prompt - 1 : -1]
    every = torch.log_softmax(hidden @ policy.lm.lm_head.weight.T, -1)
    log_probs, entropy = every.gather(1, ids[0, prompt:, None])[:, 0], -(every.exp() * every).sum(-1)
    if trained.critic is None:
        return log_probs, entropy, hidden @ policy.value_head.weight[0]
    classifier = trained.critic.module.classifier
    states = classifier.model(input_ids=ids).last_hidden_state[0, prompt - 1 : -1]
    return log_probs, entropy, states @ classifier.score.weight[0]


def difference_before(rows: RankRows, old: dict[int, torch.Tensor]) -> float:
    """Mean distance of the learner's and the engine's token probabilities, of the policy that generated."""
    each = [(old[i].exp() - torch.tensor(rows.rollout_log_probs[i]).exp()).abs() for i in old]
    return float(torch.cat(each).mean())


def plain_ppo(trained: Models, rows: RankRows, minis: list[list[int]], aim: RLObjective) -> dict[str, float]:
    """PPO as the papers write it, one row after the other, without packing, sums or reuse of anything of ours."""
    everything, settings = [index for mini in minis for index in mini], aim.algorithm
    outputs = {i: plain_outputs(trained, rows.rows[i].tokens, 4) for i in everything}
    old, values = ({i: out[part].detach() for i, out in outputs.items()} for part in (0, 2))
    raw, targets = {}, {}
    for i in everything:
        reward = torch.tensor(rows.rewards[i]) - KL_COEF * (old[i] - torch.tensor(rows.ref_log_probs[i]))
        advantage, after, found = 0.0, 0.0, []
        for t in reversed(range(len(reward))):
            advantage = float(reward[t]) + after - float(values[i][t]) + LAM * advantage
            after = float(values[i][t])
            found.append(advantage)
        raw[i] = torch.tensor(found[::-1])
        targets[i] = raw[i] + values[i]
    every = torch.cat([raw[i] for i in everything])
    seen: dict[str, list[torch.Tensor]] = {"pg": [], "entropy": [], "vf": [], "clipped": []}
    for _ in range(aim.rl.epochs):
        for mini in minis:
            loss, count = torch.zeros(()), sum(len(raw[i]) for i in mini)
            for i in mini:
                new, entropy, value = plain_outputs(trained, rows.rows[i].tokens, 4)
                advantages = (raw[i] - every.mean()) / every.std(unbiased=False)
                ratio = (new - old[i]).exp()
                pg = -torch.min(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages)
                near = values[i] + (value - values[i]).clamp(-settings.clip_value, settings.clip_value)
                vf = 0.5 * torch.max((value - targets[i]) ** 2, (near - targets[i]) ** 2)
                weight = (
                    settings.value_coef if trained.critic is None else 1.0
                )  # a critic of its own has its own optimiser
                loss = loss + (pg - settings.entropy_coef * entropy + weight * vf).sum() / count
                for name, each in (("pg", pg), ("entropy", entropy), ("vf", vf), ("clipped", pg > -ratio * advantages)):
                    seen[name].append(each.detach().float())
            loss.backward()
            for model in filter(None, (trained.policy, trained.critic)):
                model.step()
    error, total = (
        torch.cat([x[i] for i in everything]) for x in ({i: targets[i] - values[i] for i in everything}, targets)
    )
    return {
        "actor/pg_loss": float(torch.cat(seen["pg"]).mean()),
        "actor/entropy": float(torch.cat(seen["entropy"]).mean()),
        "actor/pg_clipfrac": float(torch.cat(seen["clipped"]).mean()),
        "critic/vf_loss": float(torch.cat(seen["vf"]).mean()),
        "critic/vf_explained_var": 1 - float(error.var(unbiased=False) / total.var(unbiased=False)),
        "training/rollout_probs_diff_mean": difference_before(rows, old),
        "critic/values/mean": float(torch.cat([values[i] for i in everything]).mean()),
        "critic/returns/mean": float(torch.cat([targets[i] for i in everything]).mean()),
        "objective/entropy": -float(sum(old[i].sum() for i in everything)) / len(everything),
    }


@pytest.mark.parametrize("critic", ["model", "value_head"])
def test_the_update_is_ppo_written_out_plainly(critic: str) -> None:
    settings = objective(epochs=2, mini_batches=2, entropy_coef=0.3, value_coef=0.7, clip_value=0.05)
    rows, ours, plain = data(), models(critic), models(critic)
    facts = learn(ours, packed(rows, 40, 30, minis=2), settings).facts
    expected = plain_ppo(plain, rows, [[0, 1, 2, 3], [4, 5, 6, 7]], settings)
    for name, model in (("actor", plain.policy), ("critic", plain.critic)):
        if model is not None:
            expected |= {f"{name}/grad_norm": sum(model.norms) / 4, f"{name}/lr": 0.05 / 4}
    assert 0 < facts["actor/pg_clipfrac"] < 1
    assert {name: facts[name] for name in expected} == pytest.approx(expected, abs=2e-5)
    for one, other in ((ours.policy, plain.policy), (ours.critic, plain.critic)):
        if one is not None:
            for (name, a), b in zip(one.module.named_parameters(), other.module.parameters(), strict=True):
                torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(("tokens", "row_tokens"), [(16, 0), (40, 0), (64, 32), (10_000, 48)])
@pytest.mark.parametrize("critic", ["model", "value_head"])
def test_the_update_does_not_depend_on_micro_batches_or_packing(tokens: int, row_tokens: int, critic: str) -> None:
    settings = objective(epochs=2, entropy_coef=0.01)
    one, one_facts = run(settings, tokens=10_000, critic=critic)
    other, other_facts = run(settings, tokens=tokens, row_tokens=row_tokens, critic=critic)
    for a, b in zip(one.policy.module.parameters(), other.policy.module.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    counted = {"actor/pg_clipfrac", "critic/vf_clipfrac"}  # a token on the bound may fall to either side
    assert other_facts.keys() == one_facts.keys()
    for name in one_facts.keys() - counted:
        assert other_facts[name] == pytest.approx(one_facts[name], abs=1e-4), name


def test_a_method_without_values_needs_no_critic_and_finds_its_groups_across_micro_batches() -> None:
    rows, trained = data(), models("none")
    batch = packed(rows, 16)
    assert len(batch[0]) > 1
    aim = objective(baseline="leave_one_out", whiten_advantages=False)
    facts = learn(trained, batch, aim, reuse=True).facts
    totals = [
        float((reward - KL_COEF * (own - ref)).sum())
        for reward, own, ref in zip(rows.rewards, rows.rollout_log_probs, rows.ref_log_probs, strict=True)
    ]
    found = {
        int(group): sorted(part.tolist())
        for micro in batch[0]
        for group in micro.groups.unique()
        for part in [
            torch.cat([m.advantages[torch.repeat_interleave(m.groups == group, m.lengths)] for m in batch[0]]).unique()
        ]
    }
    for group in range(4):
        first, second = totals[2 * group : 2 * group + 2]
        assert found[group] == pytest.approx(sorted([first - second, second - first]), abs=1e-5)
    assert not [name for name in facts if name.startswith("critic/")]
    assert math.isfinite(facts["actor/grad_norm"])


def test_advantages_returns_and_kl_are_those_of_the_formulas_on_the_whole_batch() -> None:
    rows = data()
    (mini,) = packed(rows, 40)
    trained = models()
    facts = learn(trained, [mini], reuse=True).facts
    raw = []
    for micro in mini:
        rewards = micro.rewards - KL_COEF * (micro.rollout_log_probs - micro.ref_log_probs)
        advantages, returns = gae(rewards, micro.values, micro.lengths, gamma=1.0, lam=LAM)
        torch.testing.assert_close(micro.returns, returns)
        raw.append(advantages)
    whole = torch.cat(raw)
    expected = (whole - whole.mean()) / whole.std(unbiased=False)
    torch.testing.assert_close(torch.cat([micro.advantages for micro in mini]), expected, atol=1e-4, rtol=1e-4)
    kl_sum = sum(float((a - b).sum()) for a, b in zip(rows.rollout_log_probs, rows.ref_log_probs, strict=True))
    assert facts["objective/kl"] == pytest.approx(kl_sum / 8, abs=1e-4)
    assert facts["objective/scores"] == pytest.approx(sum(float(r.sum()) for r in rows.rewards) / 8, abs=1e-5)
    assert facts["actor/ppo_kl"] == 0.0, "the ratio is one by construction in a single step"


@pytest.mark.parametrize("reuse", [True, False])
def test_the_engines_probabilities_are_compared_over_the_whole_batch(reuse: bool) -> None:
    rows, trained = data(), models()
    old = {i: plain_outputs(trained, row.tokens, 4)[0].detach() for i, row in enumerate(rows.rows)}
    batch = packed(rows, 40, minis=1 if reuse else 4)
    facts = learn(trained, batch, reuse=reuse).facts
    assert facts["training/rollout_probs_diff_mean"] == pytest.approx(difference_before(rows, old), abs=1e-6)


def test_where_all_returns_are_alike_nothing_isexplained() -> None:
    torch.manual_seed(0)
    values, returns = torch.randn(400) * 0.3, torch.full((400,), 0.7) + torch.randn(400) * 3e-8
    assert math.isnan(explained(explained_variance_sums(values, returns)))
    spread = 1e4 + torch.randn(400)
    assert explained(explained_variance_sums(spread, spread)) == pytest.approx(1.0)


def test_epochs_stop_early_once_the_policy_has_moved_too_far() -> None:
    _, free = run(objective(epochs=6), tokens=10_000)
    trained, bounded = run(objective(epochs=6, max_policy_kl=1e-9), tokens=10_000)
    assert free["actor/epochs"] == 6
    assert bounded["actor/epochs"] == 2
    assert [model.skipped for model in (trained.policy, trained.critic)] == [4, 4], "the schedule counts planned steps"


def test_an_epoch_is_measured_by_itself_and_not_with_those_before() -> None:
    means = [0.0, *(run(objective(epochs=epochs), tokens=10_000)[1]["actor/ppo_kl"] for epochs in (1, 2, 3, 4))]
    own = [number * means[number] - (number - 1) * means[number - 1] for number in (1, 2, 3, 4)]
    assert own[1] < own[2] < own[3]
    limit = (max(own[1], means[3]) + own[2]) / 2
    assert means[3] < limit, "over the whole update the third epoch would pass"
    _, facts = run(objective(epochs=6, max_policy_kl=limit), tokens=10_000)
    assert facts["actor/epochs"] == 3
    assert facts["actor/ppo_kl"] == pytest.approx(means[3], rel=1e-4), "told over all of them"


def test_good_answers_become_likelier_and_bad_ones_less_likely() -> None:
    rows = data()
    scores = [1.0, -1.0] * 4
    rows.rewards[:] = [row.token_rewards(score) for row, score in zip(rows.rows, scores, strict=True)]
    before = to_experience(rows, [[i] for i in range(8)], torch.device("cpu"))
    trained = models()
    with torch.no_grad():
        old = trained.policy(before.packed)[0]
    learn(trained, [[before]], reuse=True, kl_coef=0.0)
    with torch.no_grad():
        moved = trained.policy(before.packed)[0] - old
    sign = torch.repeat_interleave(torch.tensor(scores), before.lengths)
    assert float((moved * sign).sum()) > 0


def weights_of(trained: Models) -> list[torch.Tensor]:
    both = [model for model in (trained.policy, trained.critic) if model is not None]
    return [each.detach().clone() for model in both for each in model.module.parameters()]


def learnt(rows: RankRows, *, trained: Models, settings: RLObjective, minis: int, stop: bool = False) -> Updated:
    trained.stop_on_bad = stop
    return learn(trained, packed(rows, 10_000, minis=minis), settings)


COLUMNS = {
    "rewards": "scores",
    "rollout_log_probs": "the engine's log-probs",
    "ref_log_probs": "the reference's log-probs",
}


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("critic", ["model", "value_head"])
def test_a_row_that_is_not_finite_costs_its_mini_batch_alone_and_is_named(
    column: str, number: float, critic: str
) -> None:
    rows, clean, trained, other = data(), data(), models(critic), models(critic)
    getattr(rows, column)[1][-1] = number
    facts, found = learnt(rows, trained=trained, settings=objective(mini_batches=2, whiten_advantages=False), minis=2)
    assert [(each.what, each.samples, each.count) for each in found] == [
        (f"{COLUMNS[column]} are not finite", (rows.keys[1],), 1)
    ]
    assert facts["actor/skipped_steps"] == 1.0
    assert facts.get("critic/skipped_steps", 1.0) == 1.0
    assert all(math.isfinite(value) for value in facts.values())
    second = RankRows(*(part[4:] for part in vars(clean).values() if len(part) in (0, 8)))
    second.groups[:] -= 2
    second.places[:] -= 4
    learnt(second, trained=other, settings=objective(whiten_advantages=False), minis=1)
    for a, b in zip(weights_of(trained), weights_of(other), strict=True):
        assert torch.equal(a, b), "what is left is learnt as if the others had never been there"
    assert trained.policy.steps == 2, "the schedule goes on"


def test_one_bad_row_is_not_in_the_others_advantages() -> None:
    rows, trained = data(), models()
    rows.ref_log_probs[1][-1] = math.nan
    (first, second) = batch = packed(rows, 10_000, minis=2)
    learn(trained, batch, objective(mini_batches=2))
    assert bool(second[0].advantages.isfinite().all())
    assert int(first[0].advantages.isnan().sum()) == int(first[0].lengths[first[0].keys.index(rows.keys[1])])


@pytest.mark.parametrize("stop", [True, False])
@pytest.mark.parametrize(
    ("broken", "what"), [("critic", "the critic's values are"), ("policy", "the policy's log-probs before")]
)
def test_a_model_that_is_not_finite_moves_nothing(broken: str, what: str, stop: bool) -> None:
    trained = models()
    next(iter(getattr(trained, broken).module.parameters())).data[:] = math.nan
    before = weights_of(trained)
    facts, found = learnt(data(), trained=trained, settings=objective(epochs=2, mini_batches=2), minis=2, stop=stop)
    assert all(
        torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)) for a, b in zip(weights_of(trained), before, strict=True)
    )
    assert found[0].what.startswith(what)
    assert found[0].count == 4, "all samples of the mini-batch"
    assert facts["actor/skipped_steps"] == facts["critic/skipped_steps"] == (1.0 if stop else 4.0)
    assert all(math.isfinite(value) for value in facts.values())


class Explodes:
    """The first loss is no number."""

    calls = 0

    @classmethod
    def surrogate(cls, new: Any, old: Any, advantages: Any, lengths: Any) -> Losses:
        found = objective().surrogate(new, old, advantages, lengths)
        cls.calls += 1
        # Not times infinity: a loss that is just 0, as of normalised advantages at a ratio of 1, would be nan on some processors.
        return found._replace(loss=found.loss + math.inf) if cls.calls == 1 else found


def exploding(new: Any, old: Any, advantages: Any, lengths: Any) -> Losses:
    return Explodes.surrogate(new, old, advantages, lengths)


@pytest.mark.parametrize("critic", ["model", "value_head"])
def test_a_loss_that_is_not_finite_leaves_both_models_as_they_were(critic: str) -> None:
    Explodes.calls = 0
    trained = models(critic)
    before, batch = weights_of(trained), packed(data(), 10_000)
    told = learn(trained, batch, objective(surrogate=f"{__name__}:exploding"), reuse=True)
    assert all(torch.equal(a, b) for a, b in zip(weights_of(trained), before, strict=True))
    assert [each.what for each in told.found if not each.vague] == ["the policy's loss is inf"]
    assert told.facts["actor/skipped_steps"] == 1.0
    assert "actor/pg_loss" not in told.facts
    assert all(math.isfinite(value) for value in told.facts.values())
    after = learn(trained, batch, reuse=True)
    assert after.facts["actor/skipped_steps"] == 0.0
    plain = models(critic)
    learn(plain, packed(data(), 10_000), reuse=True)
    assert all(torch.equal(a, b) for a, b in zip(weights_of(trained), weights_of(plain), strict=True))


def test_where_the_critics_loss_explodes_the_policy_waits() -> None:
    trained = models()
    before, batch = weights_of(trained), packed(data(), 10_000)
    critic: Any = trained.critic
    plain = critic.backward
    critic.backward = lambda loss: plain(loss * math.inf)
    told = learn(trained, batch, reuse=True)
    assert all(torch.equal(a, b) for a, b in zip(weights_of(trained), before, strict=True))
    assert [(each.what, each.count) for each in told.found] == [("the norm of the critic's gradient is not finite", 8)]


def test_the_largest_ratio_is_told_and_finite() -> None:
    _, one = run(objective(), tokens=10_000)
    assert one["actor/ratio_max"] == 1.0
    _, moved = run(objective(epochs=3), tokens=10_000)
    assert moved["actor/ratio_max"] > 1.0
