"""The store as its callers see it: coroutines in one process, objects kept by value instead of in Ray's object store."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from rlhf_dist.errors import NumbersError, StoreError
from rlhf_dist.records import Failure, PromptTask, RowKey, Sample
from rlhf_dist.store.actor import Store
from rlhf_dist.store.experience import ExperienceIndex
from rlhf_dist.store.row import rollout_batch
from rlhf_dist.store.schema import written_by
from rlhf_dist.store.weights import Moved, Sent

TASKS = [PromptTask(0, prompt, (1, 2), 2) for prompt in range(2)]


@pytest.fixture(autouse=True)
def objects_are_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.put", lambda value: value)
    monkeypatch.setattr("rlhf_dist.store.actor.Store._show_forever", lambda self: asyncio.sleep(0))


def with_store(play: Callable[[Store], Coroutine[Any, Any, None]], **bounds: Any) -> None:
    async def whole() -> None:
        await play(Store(ExperienceIndex(batch_rows=4, **{"scorers": ("reward", "reference"), **bounds})))

    asyncio.run(asyncio.wait_for(whole(), 20))


def rows(keys: list[RowKey]) -> pa.RecordBatch:
    return rollout_batch([Sample(key, (1, 2), (3,), (-0.5,), "stop", ((0, 1),)) for key in keys])


def rewards(count: int) -> pa.RecordBatch:
    columns = {"score": [1.0] * count, "score_parts": [[("reward", 1.0)]] * count}
    return pa.RecordBatch.from_pydict(columns, schema=written_by("reward"))


def references(count: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"ref_log_probs": [[-1.0]] * count}, schema=written_by("reference"))


COLUMNS = {"reward": rewards, "reference": references}


async def begun(store: Store) -> list[RowKey]:
    """Two prompts submitted, leased to `a`, and their rows written."""
    return await begun_by(store, "a")


async def begun_by(store: Store, worker: str) -> list[RowKey]:
    await store.submit(TASKS)
    await store.publish(0, [], None)
    keys = [key for task in await store.next_prompts(worker, 10, 1) for key in task.row_keys()]
    await store.append(worker, rows(keys))
    return keys


def test_a_batch_goes_from_prompts_to_rows_to_columns_and_is_taken_whole_and_freed() -> None:
    async def play(store: Store) -> None:
        keys = await begun(store)
        assert (await store.sizes())["experience"] > 0
        for scorer, made in COLUMNS.items():
            assert await store.take(0, 0.01) is None
            views = await store.next_rows("s", scorer, False, 1)
            await store.add_column("s", scorer, [view.key for view in views], made(len(views)))
        found = await store.take(0, 1)
        assert [view.key for view in found] == keys
        await store.consume(0)
        assert await store.sizes() == {"experience": 0, "weights": 0}
        assert (await store.status())["rows"] == 0

    with_store(play)


def test_rows_without_a_score_are_told_and_not_handed_out_until_they_are_consumed() -> None:
    async def play(store: Store) -> None:
        keys, why = await begun(store), Failure("r", "no", "p", "a")
        await store.next_rows("s", "reward", False, 1)
        await store.add_column("s", "reward", keys, rewards(4), {keys[3]: why})
        assert [view.key for view in await store.take(0, 1)] == keys[:3]
        assert await store.failures(0) == {keys[3]: why}
        await store.consume(0)
        assert await store.failures(0) == {}
        assert (await store.status())["rows"] == 0

    with_store(play, scorers={"reward": 1})


def test_columns_that_are_not_the_writers_are_refused() -> None:
    async def play(store: Store) -> None:
        await begun(store)
        views = await store.next_rows("s", "reward", False, 1)
        with pytest.raises(StoreError, match=r"reward wrote columns \['ref_log_probs'\]; expected \['score'"):
            await store.add_column("s", "reward", [view.key for view in views], references(4))
        halves = rewards(4).cast(pa.schema([("score", pa.float64()), written_by("reward").field("score_parts")]))
        with pytest.raises(StoreError, match="reward wrote columns"):
            await store.add_column("s", "reward", [view.key for view in views], halves)
        with pytest.raises(StoreError, match="rollout wrote columns"):
            await store.append("a", rewards(4))

    with_store(play)


def test_rows_that_nobody_leased_to_the_writer_are_refused() -> None:
    async def play(store: Store) -> None:
        await store.submit(TASKS)
        await store.publish(0, [], None)
        with pytest.raises(StoreError, match="which is not leased to it"):
            await store.append("b", rows([RowKey(0, 0, 0)]))

    with_store(play)


def test_a_waiting_worker_is_served_as_soon_as_a_version_admits_it_and_an_idle_wait_ends_empty() -> None:
    async def play(store: Store) -> None:
        assert await store.next_prompts("a", 10, 0.01) == []
        waiting = asyncio.create_task(store.next_prompts("a", 10, 10))
        await store.submit(TASKS)
        await asyncio.sleep(0.05)
        assert not waiting.done(), "no version was published"
        await store.publish(0, [], None)
        assert await waiting == TASKS

    with_store(play)


def test_a_lost_workers_prompts_and_rows_go_to_others() -> None:
    async def play(store: Store) -> None:
        await store.submit(TASKS)
        await store.publish(0, [], None)
        lost = await store.next_prompts("a", 2, 1)
        await store.release("a")
        again = await store.next_prompts("b", 10, 1)
        assert {key for task in again for key in task.row_keys()} == {key for task in TASKS for key in task.row_keys()}
        with pytest.raises(StoreError, match="not leased to it"):
            await store.append("a", rows(lost[0].row_keys()))

    with_store(play)


def test_a_call_that_a_dead_worker_left_waiting_is_granted_nothing() -> None:
    async def play(store: Store) -> None:
        left = asyncio.create_task(store.next_prompts("a", 10, 0.3))
        left_rows = asyncio.create_task(store.next_rows("s", "reward", False, 0.3))
        await asyncio.sleep(0.01)
        await store.release("a")
        await store.release("s")
        keys = await begun_by(store, "b")
        assert await left == await left_rows == []
        assert [view.key for view in await store.next_rows("t", "reward", False, 1)] == keys

    with_store(play)


def test_two_workers_share_what_is_queued() -> None:
    async def play(store: Store) -> None:
        await store.submit(TASKS)
        await store.publish(0, [], None)
        first, second = [await store.next_prompts(worker, 100, 1) for worker in "ab"]
        assert [task.prompt_id for task in first] == [0]
        assert [task.prompt_id for task in second] == [1]

    with_store(play, sharers=2)


def test_facts_of_workers_add_up_until_they_are_taken() -> None:
    async def play(store: Store) -> None:
        await store.report("a", {"gen_s": 1.0, "samples": 2})
        await store.report("a", {"gen_s": 0.5})
        await store.report("b", {"gen_s": 3.0})
        assert await store.take_facts() == {"a": {"gen_s": 1.5, "samples": 2}, "b": {"gen_s": 3.0}}
        assert await store.take_facts() == {}

    with_store(play)


def test_scorers_are_given_and_a_row_is_whole_when_all_of_them_have_written() -> None:
    async def play(store: Store) -> None:
        await begun(store)
        views = await store.next_rows("s", "reward", False, 1)
        await store.add_column("s", "reward", [view.key for view in views], rewards(4))
        assert [set(view.slices) for view in await store.take(0, 1)] == [{"rollout", "reward"}] * 4

    with_store(play, scorers=("reward",))


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_do_not_enter_and_their_row_is_named(number: float) -> None:
    bad = {
        "score": {"score": [1.0, number], "score_parts": [[("reward", 1.0)]] * 2},
        "score_parts": {"score": [1.0] * 2, "score_parts": [[("reward", 1.0)], [("reward", 1.0), ("length", number)]]},
    }

    async def play(store: Store) -> None:
        await store.submit(TASKS)
        await store.publish(0, [], None)
        keys = [key for task in await store.next_prompts("a", 10, 1) for key in task.row_keys()]
        samples = [Sample(key, (1, 2), (3, 4), (-0.5, -0.5), "stop", ((0, 2),)) for key in keys]
        spoilt = rollout_batch([*samples[:2], spoil(samples[2]), samples[3]])
        with pytest.raises(
            NumbersError, match="a wrote a rollout_log_probs .*answer 0 to prompt 1 in iteration 0; exp"
        ):
            await store.append("a", spoilt)
        assert (await store.status())["generating"] == 4, "nothing of it was accepted"
        await store.append("a", rollout_batch(samples))
        views = await store.next_rows("b", "reward", False, 1)
        own = [view.key for view in views][:2]
        for name, columns in bad.items():
            batch = pa.RecordBatch.from_pydict(columns, schema=written_by("reward"))
            with pytest.raises(NumbersError, match=f"b wrote a {name} that is not finite, of answer 1 to prompt 0"):
                await store.add_column("b", "reward", own, batch)

    def spoil(sample: Sample) -> Sample:
        return replace(sample, log_probs=(-0.5, number))

    with_store(play)


class _Rank:
    """A learner rank's `weight_buckets`: tables stand for themselves."""

    weight_buckets: Any

    def __init__(self, tables: list[str], sent: Sent) -> None:
        self.weight_buckets, self.tables, self.sent = self, tables, sent
        self.base: Any = "not asked"

    def options(self, **_: Any) -> "_Rank":
        return self

    async def remote(self, partial: bool, base: Any) -> AsyncIterator[Any]:
        self.base = base
        told: asyncio.Future[Sent] = asyncio.get_running_loop().create_future()
        told.set_result(self.sent)
        for ref in (*self.tables, told):
            yield ref


def test_buckets_that_ranks_sent_in_turn_stand_in_the_models_order() -> None:
    async def play(store: Store) -> None:
        ranks = [
            _Rank(["t0", "t3"], Sent([["a", "b"], ["f"]], 3, [], Moved(4.0, 4.0, 4.0))),
            _Rank(["t1", "t4"], Sent([["c"], ["g"]], 2, [], Moved(4.0, 0.0, 0.0))),
            _Rank(["t2"], Sent([["d", "e"]], 2)),
        ]
        facts = await store.publish(3, ranks, None)
        assert facts == {
            "weights/bytes": 7.0,
            "weights/spilled_bytes": 0.0,
            "weights/lora_kept": pytest.approx(0.5**0.5),
        }
        (manifest,) = await store.newest_weights(False)
        assert (manifest.names, manifest.buckets) == (tuple("abcdefg"), ("t0", "t1", "t2", "t3", "t4"))
        assert [rank.base for rank in ranks] == [None] * 3
        await store.publish(4, ranks, None, False, 2)
        assert [rank.base for rank in ranks] == [("t0", "t3"), ("t1", "t4"), ("t2",)], (
            "each has its own to compare with"
        )
        (newest,) = await store.newest_weights(True)
        assert (newest.version, newest.base) == (4, manifest)
        await store.publish(5, ranks, None, False, 2)
        assert [rank.base for rank in ranks] == [None] * 3

    with_store(play)


def test_what_the_cluster_spilled_before_this_run_is_not_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter([100, 100, 130, None, 140])
    monkeypatch.setattr("rlhf_dist.store.actor.spilled_bytes", lambda: next(told))

    async def play(store: Store) -> None:
        found = [(await store.publish(version, [], None))["weights/spilled_bytes"] for version in range(4)]
        assert found == [0.0, 30.0, 0.0, 10.0]

    with_store(play)


def test_a_version_whose_weights_are_not_finite_is_not_published() -> None:
    async def play(store: Store) -> None:
        with pytest.raises(NumbersError, match="weight version 3: 1 tensors are not finite, e.g. lm_head.weight"):
            await store.publish(3, [_Rank(["t"], Sent([["lm_head.weight"]], 4, ["lm_head.weight"]))], None)
        assert await store.newest_version() == -1

    with_store(play)
