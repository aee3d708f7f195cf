"""The loop itself: real formulas and settings, and parts that do what the test says and check what they are asked."""

import math
from typing import Any

import pyarrow as pa
import pytest

from rlhf_dist.config import RLConfig
from rlhf_dist.controller import Probing, train, worker_facts
from rlhf_dist.data.prompts import PromptSampler
from rlhf_dist.errors import WaitTimeout, WeightError
from rlhf_dist.gathering import take
from rlhf_dist.learner.objective import RLObjective
from rlhf_dist.parts import Parts
from rlhf_dist.records import Failure, Prompt, RowKey, Sample
from rlhf_dist.steering import State
from rlhf_dist.store.experience import RowView
from rlhf_dist.store.row import rollout_batch
from rlhf_dist.store.schema import EXPERIENCE

PROMPTS = [Prompt(n, (1, 2), f"p{n}") for n in range(4)]


def config(**changes: Any) -> RLConfig:
    tree: dict[str, Any] = {
        "policy": "a",
        "reward": "b",
        "prompts": {"path": "p"},
        "rl": {"iterations": 3, "prompts_per_iteration": 2},
        "algorithm": {"kl_coef": 0.1},
        "weights": {"probe_every": 2},
    }
    for key, value in changes.items():
        tree[key] = {**tree.get(key, {}), **value}
    return RLConfig.model_validate(tree)


def scored(iteration: int, tasks: list[Any], gold: float) -> pa.RecordBatch:
    keys = [RowKey(iteration, task.prompt_id, 0) for task in tasks]
    rollout = rollout_batch([Sample(key, (1, 2), (3, 4), (-0.5, -0.5), "stop", ((iteration, 2),)) for key in keys])
    columns = {
        "score": [1.0] * len(keys),
        "score_parts": [[("gold", gold)]] * len(keys),
        "ref_log_probs": [[-1.0, -1.0]] * len(keys),
    }
    arrays = [*rollout.columns, *(pa.array(columns[name], EXPERIENCE.field(name).type) for name in columns)]
    return pa.RecordBatch.from_arrays(arrays, schema=EXPERIENCE)


class World:
    """Store, fleet, learner and watch in one: calls are logged in order, and references are their own results."""

    def __init__(self, *, kl: float = 4.0, golds: tuple[float, ...] = (0.5,) * 9, whole: bool = True) -> None:
        self.calls: list[Any] = []
        self.updates: list[dict[str, Any]] = []
        self.kl, self.golds, self.whole = kl, golds, whole
        self.ready = {"rollout-0": self}
        self.restarts, self.wanted, self.decoded = 0, 1, -0.51
        self.size = type("Size", (), {"fewest": 1, "most": 1})
        self.tasks: list[Any] = []
        self.told: list[str] = []
        self.say = self.told.append

    # store
    def __getattr__(self, method: str) -> Any:
        def remote(*arguments: Any) -> Any:
            self.calls.append((method, *arguments))
            if method == "submit":
                self.tasks = arguments[0]
            return (method, *arguments)

        return type("Method", (), {"remote": staticmethod(remote)})

    # watch
    def one(self, name: str, ref: Any, *, timeout_s: float, doing: str) -> Any:
        if ref[0] == "take":
            views = [RowView(RowKey(task.iteration, task.prompt_id, 0), 4, {}) for task in self.tasks]
            return views if self.whole else None
        return {
            "take_facts": {"rollout-0": {"gen_s": 1.0, "pull_s": 0.5, "probe_diff": 1e-5, "probe_k3_max": 2e-9}},
            "status": {"queued": 2},
            "failures": {RowKey(0, 1, 0): Failure("r", "why", "prompt", "answer")},
        }.get(ref[0])

    # fleet
    def states(self) -> dict[str, str]:
        return {"rollout-0": "ready"}

    def resize(self, wanted: int) -> None:
        self.calls.append(("resize", wanted))

    # learner
    def update(self, rows: Any, objective: Any, now: Any) -> dict[str, float]:
        self.calls.append(("update",))
        self.updates.append({"objective": objective, "rows": len(rows), **vars(now)})
        return {"objective/kl": self.kl, "objective/rlhf_reward": 0.5}

    def probe(self, tokens: Any, *, temperature: float, version: int) -> list[float]:
        self.calls.append(("probe", version))
        assert temperature == 1.0
        return [-7.0, -0.5, self.decoded]

    def publish(self, store: Any, version: int, *, probe_tokens: Any) -> dict[str, float]:
        self.calls.append(("publish", version, probe_tokens))
        return {"weights/bytes": 10.0}

    # turns
    def to_learner(self) -> None:
        self.calls.append(("to_learner",))

    def to_others(self) -> None:
        self.calls.append(("to_others",))

    def parts(self) -> Parts:
        return Parts(self, self, {}, self, self, self, self)

    # memory
    def back(self, learner: Any, updates: int) -> None:
        self.calls.append(("back", updates))


def run(world: World, settings: RLConfig, monkeypatch: pytest.MonkeyPatch, state: State | None = None) -> Any:
    reports: list[Any] = []

    def read(parts: Any, rows: Any, *, timeout_s: float) -> pa.RecordBatch:
        iteration = world.tasks[0].iteration
        return scored(iteration, world.tasks, world.golds[iteration])

    monkeypatch.setattr("rlhf_dist.controller.read", read)
    monkeypatch.setattr("rlhf_dist.gathering.read", read)
    sampler = PromptSampler(PROMPTS, batch=2, samples=1, seed=0)
    state = state or State.start(settings.algorithm)
    stopped = train(
        world.parts(),
        sampler,
        settings,
        probing=Probing([1, 2], 0.01),
        report=lambda iteration, metrics, batch, failures: reports.append(
            (iteration, dict(metrics), batch.num_rows, state.iteration)
        ),
        state=state,
    )
    return stopped, reports, state


def test_an_iteration_submits_takes_updates_publishes_and_consumes_in_that_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    stopped, reports, state = run(world, config(), monkeypatch)
    assert stopped is None
    first = [call[0] for call in world.calls[: world.calls.index(("resize", 1)) + 1]]
    assert first == [
        "to_others", "submit", "take", "to_learner", "update", "publish", "consume", "take_facts", "resize",
    ]  # fmt: skip
    assert [call[1:] for call in world.calls if call[0] == "publish"] == [(1, None), (2, (1, 2, 3, 4)), (3, None)]
    assert [call[1] for call in world.calls if call[0] == "consume"] == [0, 1, 2]
    assert [(iteration, rows, at) for iteration, _, rows, at in reports] == [(0, 2, 1), (1, 2, 2), (2, 2, 3)]
    assert [update["seed"] for update in world.updates] == [0, 1, 2]
    assert world.updates[0]["objective"] == RLObjective.of(config())
    assert state.iteration == 3


def test_the_kl_coefficient_follows_its_target_and_goes_on_where_a_run_is_resumed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adaptive = config(algorithm={"kl_target": 2.0, "kl_horizon": 20})
    world = World(kl=4.0)
    _, reports, state = run(world, adaptive, monkeypatch)
    # Twice the target is clipped to +20 %; two samples of a horizon of 20 make it 2 % an iteration.
    step = math.exp(0.02)
    assert [update["kl_coef"] for update in world.updates] == pytest.approx([0.1, 0.1 * step, 0.1 * step**2])
    assert [each[1]["actor/reward_kl_penalty_coeff"] for each in reports] == [u["kl_coef"] for u in world.updates]
    assert state.kl_coef == pytest.approx(0.1 * step**3)
    resumed = World()
    run(resumed, adaptive, monkeypatch, State(2, 0.3))
    assert [(update["kl_coef"], update["seed"]) for update in resumed.updates] == [(0.3, 2)]
    fixed = World()
    run(fixed, config(), monkeypatch)
    assert {update["kl_coef"] for update in fixed.updates} == {0.1}


def test_a_probe_that_was_not_compared_has_no_difference() -> None:
    world = World()
    assert worker_facts(world.parts(), timeout_s=1)["weights/probe_diff"] == 1e-5
    world.one = lambda *_, **__: {"rollout-0": {"gen_s": 1.0}}
    assert "weights/probe_diff" not in worker_facts(world.parts(), timeout_s=1)


def test_an_engine_that_decodes_otherwise_than_the_learner_reads_is_stopped_before_the_update(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    world.decoded = -0.6
    with pytest.raises(
        WeightError, match=r"^weight version 1: .* a sample of 4 tokens .* by 0.05 nats .* at most 0.01"
    ):
        run(world, config(), monkeypatch)
    assert [call[0] for call in world.calls if call[0] in ("update", "probe")] == ["update", "probe"]


def test_metrics_hold_what_every_part_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    _, reports, _ = run(World(), config(), monkeypatch)
    told = reports[1][1]
    expected = {
        "objective/kl": 4.0,
        "weights/version": 2.0,
        "weights/bytes": 10.0,
        "weights/probe_diff": 1e-5,
        "weights/probe_k3_max": 2e-9,
        "weights/decode_diff": pytest.approx(0.005),
        "timing_s/gen": 1.0,
        "fleet/workers/ready": 1.0,
        "fleet/restarts": 0.0,
        "training/off_policy/trajectory_staleness/max": 0.0,
        "critic/score/mean": 1.0,
    }
    assert {name: told[name] for name in expected} == expected


def test_a_run_ends_when_its_gold_score_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = RLConfig.model_validate(
        {
            **config().model_dump(mode="json"),
            "gold_judge": "a:b",
            "rl": {"iterations": 9, "prompts_per_iteration": 2, "stop_on": {"gold_drop": 0.2, "patience": 1}},
        }
    )
    stopped, reports, state = run(World(golds=(0.5, 0.6, 0.3, 0.9)), settings, monkeypatch)
    assert len(reports) == 3
    assert "gold_drop" in stopped
    assert state.gold == pytest.approx([0.5, 0.6, 0.3])


def test_a_batch_that_is_not_whole_in_time_says_where_its_rows_are() -> None:
    with pytest.raises(
        WaitTimeout, match=r"no whole batch of iteration 3 within 7 s; rows are: {'queued': 2}; rollout"
    ):
        take(World(whole=False).parts(), 3, config(timeouts={"batch": 7}))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"rl": {"epochs": 2}}, False),
        ({"rl": {"mini_batches": 2}}, False),
        ({"weights": {"wire_dtype": "bfloat16"}}, False),
        ({"weights": {"wire_dtype": "float32"}}, True),
        ({"rollout": {"temperature": 0.7}}, True),
    ],
)
def test_the_ratio_is_one_where_one_step_sees_the_policy_that_generated(
    changes: dict[str, Any], expected: bool
) -> None:
    assert config(**changes).ratio_is_one == expected


def test_an_update_that_leaves_a_band_is_undone_before_it_is_published_so_often_in_a_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(kl=4.0)
    bands = {"then": "roll_back", "kl_above": 3.5, "roll_backs": 2}
    settings = config(rl={"iterations": 9, "prompts_per_iteration": 2, "stop_on": bands})
    stopped, reports, state = run(world, settings, monkeypatch)
    undone = [call[:2] for call in world.calls if call[0] in ("back", "publish")]
    assert undone == [("back", 2), ("publish", 1), ("back", 2), ("publish", 2), ("back", 2), ("publish", 3)]
    assert (
        stopped
        == "objective/kl is 4, above rl.stop_on.kl_above = 3.5, after 2 roll-backs in a row (rl.stop_on.roll_backs)"
    )
    assert [metrics["actor/rolled_back"] for _, metrics, *_ in reports] == [1.0, 1.0, 1.0]
    assert world.told[0].endswith("the update is undone, roll-back 1 in a row")
    assert state.iteration == 3, "it goes on with the next prompts"


def test_an_iteration_within_its_bands_ends_the_count_of_roll_backs(monkeypatch: pytest.MonkeyPatch) -> None:
    bands = {"then": "roll_back", "kl_above": 3.5, "roll_backs": 2}
    settings = config(rl={"iterations": 4, "prompts_per_iteration": 2, "stop_on": bands})
    state = State(0, 0.1, rolled_back=2)
    stopped, _, _ = run(World(kl=1.0), settings, monkeypatch, state)
    assert stopped is None
    assert state.rolled_back == 0


def test_samples_without_a_score_are_counted_and_told_before_they_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    settings = config(scoring={"quarantine": 3})
    _, reports, _ = run(world, settings, monkeypatch)
    asked = [call[:2] for call in world.calls if call[0] in ("failures", "consume")]
    assert asked == [(name, iteration) for iteration in range(3) for name in ("failures", "consume")]
    assert [metrics["reward/quarantined"] for _, metrics, *_ in reports] == [1.0] * 3
    assert "reward/quarantined" not in run(World(), config(), monkeypatch)[1][0][1]
