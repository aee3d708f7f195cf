"""The index under hypothesis: whatever happens in whatever order, each row is consumed exactly once and none is lost."""

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rlhf_dist.errors import RewardError, StoreError
from rlhf_dist.records import Failure, PromptTask, RowKey
from rlhf_dist.store.experience import ExperienceIndex

PROMPTS, SAMPLES, CHUNK = 3, 2, 4
SCORERS = ("reward", "reference", "process-reward")
MAY_FAIL = {"reward": 2, "reference": 0, "process-reward": 2}
WORKERS = st.sampled_from(["a", "b", "c"])


class Life(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.index = ExperienceIndex(batch_rows=PROMPTS * SAMPLES, chunk_rows=CHUNK, scorers=MAY_FAIL)
        self.iteration = 0
        self.failed: dict[RowKey, Failure] = {}
        self.names = {worker: worker for worker in "abc"}
        """Who works in each place now."""
        self.held: dict[str, list[RowKey]] = {}
        self.scoring: dict[tuple[str, str], list[list[RowKey]]] = {}
        self.consumed: list[RowKey] = []
        self.taken = False
        self._next()

    def _next(self) -> None:
        self.index.submit([PromptTask(self.iteration, prompt, (1,), SAMPLES) for prompt in range(PROMPTS)])
        self.index.publish(self.iteration)

    @rule(worker=WORKERS, limit=st.integers(1, 6))
    def lease(self, worker: str, limit: int) -> None:
        tasks = self.index.lease_prompts(self.names[worker], limit)
        self.held.setdefault(worker, []).extend(key for task in tasks for key in task.row_keys())

    @rule(worker=WORKERS, count=st.integers(1, 4))
    def write(self, worker: str, count: int) -> None:
        keys, self.held[worker] = self.held.get(worker, [])[:count], self.held.get(worker, [])[count:]
        self.index.append(self.names[worker], object(), keys, [5] * len(keys))

    @rule(worker=WORKERS)
    def write_what_is_not_ours(self, worker: str) -> None:
        stranger = RowKey(self.iteration, 99, 0)
        with pytest.raises(StoreError, match="not leased to it"):
            self.index.append(self.names[worker], object(), [stranger], [5])

    @rule(worker=WORKERS, scorer=st.sampled_from(SCORERS), patient=st.booleans())
    def lease_rows(self, worker: str, scorer: str, patient: bool) -> None:
        keys = [view.key for view in self.index.lease_rows(self.names[worker], scorer, patient=patient)]
        everything = [RowKey(self.iteration, p, s) for p in range(PROMPTS) for s in range(SAMPLES)]
        assert keys in ([], everything[:CHUNK], everything[CHUNK:]), "always the same rows together"
        if keys:
            self.scoring.setdefault((worker, scorer), []).append(keys)

    @rule(worker=WORKERS, scorer=st.sampled_from(SCORERS))
    def score(self, worker: str, scorer: str) -> None:
        for keys in self.scoring.pop((worker, scorer), []):
            self.index.add_column(self.names[worker], scorer, object(), keys)

    @rule(worker=WORKERS, scorer=st.sampled_from(SCORERS), number=st.integers(0, CHUNK - 1))
    def score_all_but_one(self, worker: str, scorer: str, number: int) -> None:
        for keys in self.scoring.pop((worker, scorer), []):
            failed = {keys[number % len(keys)]: Failure(scorer, "no", "p", "a")}
            if len(self.failed.keys() | failed.keys()) <= MAY_FAIL[scorer]:
                self.index.add_column(self.names[worker], scorer, object(), keys, failed)
                self.failed = failed | self.failed
            else:
                with pytest.raises(RewardError, match=r"reward .*: no, on prompt 'p' .*\(scoring.quarantine\)"):
                    self.index.add_column(self.names[worker], scorer, object(), keys, failed)
                self.scoring.setdefault((worker, scorer), []).append(keys)

    @rule(worker=WORKERS, scorer=st.sampled_from(SCORERS))
    def score_a_part(self, worker: str, scorer: str) -> None:
        for keys in self.scoring.get((worker, scorer), []):
            with pytest.raises(StoreError, match="no chunk that is leased to it"):
                self.index.add_column(self.names[worker], scorer, object(), keys[:1])

    @rule(worker=WORKERS)
    def die(self, worker: str) -> None:
        """Another takes its place under another name; calls that it left behind are granted nothing."""
        name = self.names[worker]
        self.index.release(name)
        assert self.index.lease_prompts(name, 100) == []
        assert all(self.index.lease_rows(name, scorer) == [] for scorer in SCORERS)
        self.names[worker] += "'"
        late = self.held.pop(worker, [])
        for scorer in SCORERS:
            self.scoring.pop((worker, scorer), None)
        if late:
            with pytest.raises(StoreError, match="not leased to it"):
                self.index.append(name, object(), late, [5] * len(late))

    @precondition(lambda self: self.index.complete(self.iteration) and not self.taken)
    @rule()
    def take(self) -> None:
        views = self.index.take(self.iteration)
        everything = [RowKey(self.iteration, p, s) for p in range(PROMPTS) for s in range(SAMPLES)]
        assert [view.key for view in views] == [key for key in everything if key not in self.failed]
        assert self.index.failures(self.iteration) == self.failed
        assert all(set(view.slices) == {"rollout", *SCORERS} for view in views)
        with pytest.raises(StoreError):
            self.index.take(self.iteration)
        self.taken = True

    @precondition(lambda self: self.taken)
    @rule()
    def consume(self) -> None:
        self.consumed += [RowKey(self.iteration, p, s) for p in range(PROMPTS) for s in range(SAMPLES)]
        self.index.consume(self.iteration)
        assert self.index.failures(self.iteration) == {}
        self.taken, self.failed = False, {}
        self.iteration += 1
        self._next()

    @invariant()
    def laws_hold(self) -> None:
        self.index.check_valid()

    def teardown(self) -> None:
        """Let one healthy worker finish the iteration: nothing may have been lost on the way."""
        for name in self.names.values():
            self.index.release(name)
        while tasks := self.index.lease_prompts("d", 100):
            keys = [key for task in tasks for key in task.row_keys()]
            self.index.append("d", object(), keys, [5] * len(keys))
        for scorer in SCORERS:
            while views := self.index.lease_rows("d", scorer, patient=True):  # waits for nothing that never comes
                self.index.add_column("d", scorer, object(), [view.key for view in views])
        if not self.taken:
            assert len(self.index.take(self.iteration)) == PROMPTS * SAMPLES - len(self.failed)
        self.index.consume(self.iteration)
        assert self.index.consumed == len(self.consumed) + PROMPTS * SAMPLES
        assert len(self.consumed) == len(set(self.consumed))


# A broken law is found in a second; shrinking the way to it would take minutes.
Life.TestCase.settings = settings(
    max_examples=60, stateful_step_count=60, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate)
)
TestLife = Life.TestCase


def test_capacity_below_a_batch_is_refused_since_it_would_deadlock() -> None:
    with pytest.raises(StoreError, match="capacity of 3 rows; expected at least 4"):
        ExperienceIndex(batch_rows=4, capacity_rows=3, scorers=SCORERS)


def test_each_grant_is_a_workers_share_of_what_is_queued_so_that_one_who_joins_late_finds_work() -> None:
    index = ExperienceIndex(batch_rows=16, sharers=4, scorers=SCORERS)
    index.submit([PromptTask(0, prompt, (1,), 1) for prompt in range(16)])
    index.publish(0)
    assert [len(index.lease_prompts("a", 100)) for _ in range(6)] == [4, 3, 3, 2, 1, 1]
    assert len(index.lease_prompts("late", 100)) == 1


def test_a_batch_is_whole_when_every_scorer_that_there_is_has_written() -> None:
    index = ExperienceIndex(batch_rows=1, scorers=())
    index.submit([PromptTask(0, 0, (1,), 1)])
    index.publish(0)
    index.append("a", object(), index.lease_prompts("a", 1)[0].row_keys(), [5])
    assert len(index.take(0)) == 1


def written(index: ExperienceIndex, tokens: list[int]) -> None:
    """One row per length, of iteration 0."""
    index.submit([PromptTask(0, prompt, (1,), 1) for prompt in range(len(tokens))])
    index.publish(0)
    keys = [key for task in index.lease_prompts("a", 100) for key in task.row_keys()]
    index.append("a", object(), keys, tokens)


def test_rows_that_were_submitted_one_after_the_other_are_leased_together_and_whole_chunks_only() -> None:
    index = ExperienceIndex(batch_rows=5, chunk_rows=2, scorers=("reward",))
    index.submit([PromptTask(0, prompt, (1,), 1) for prompt in (7, 3, 9, 1, 4)])
    index.publish(0)
    index.lease_prompts("a", 100)
    found = []
    for prompt in (4, 9, 7, 1, 3):
        index.append("a", object(), [RowKey(0, prompt, 0)], [5])
        found += [[view.key.prompt_id for view in index.lease_rows("s", "reward")]]
    assert found == [[4], [], [], [1, 9], [3, 7]]
    with pytest.raises(StoreError, match="no chunk that is leased to it"):
        index.add_column("s", "reward", object(), [RowKey(0, 9, 0), RowKey(0, 1, 0)])
    index.add_column("s", "reward", object(), [RowKey(0, 1, 0), RowKey(0, 9, 0)])


def test_rows_that_are_held_and_rows_that_are_generated_share_the_capacity() -> None:
    index = ExperienceIndex(batch_rows=2, capacity_rows=3, scorers=())
    for iteration in range(2):
        index.submit([PromptTask(iteration, prompt, (1,), 1) for prompt in range(2)])
    index.publish(0)
    first = [key for task in index.lease_prompts("a", 100) for key in task.row_keys()]
    index.append("a", object(), first, [5, 5])
    index.publish(1)
    assert len(index.lease_prompts("a", 100)) == 1, "two are held: one more may be generated"
    assert index.room() == 0
    assert index.lease_prompts("b", 100) == []
    index.take(0)
    index.consume(0)
    assert index.room() == 1


def test_only_a_batch_that_was_taken_is_consumed() -> None:
    index = ExperienceIndex(batch_rows=2, scorers=())
    with pytest.raises(StoreError, match="iteration 0 was consumed but not taken"):
        index.consume(0)
    written(index, [5, 5])
    with pytest.raises(StoreError, match="iteration 0 was consumed but not taken"):
        index.consume(0)
    with pytest.raises(StoreError, match="iteration 1 is not complete"):
        index.take(1)


def test_nothing_starts_before_its_version_exists() -> None:
    index = ExperienceIndex(batch_rows=2, scorers=SCORERS)
    index.submit([PromptTask(i, 0, (1,), 2) for i in range(2)])
    assert index.lease_prompts("a", 10) == []
    index.publish(0)
    assert [task.iteration for task in index.lease_prompts("a", 10)] == [0]
    assert index.lease_prompts("a", 10) == []


def test_patient_scorers_wait_as_long_as_rows_are_on_their_way() -> None:
    index = ExperienceIndex(batch_rows=4, chunk_rows=2, scorers=SCORERS)
    index.submit([PromptTask(0, prompt, (1,), 2) for prompt in range(2)])
    index.publish(0)
    first, second = (index.lease_prompts("a", 2)[0].row_keys() for _ in range(2))
    index.append("a", object(), list(first), [5, 5])
    assert index.lease_rows("s", "reward", patient=True) == []
    assert len(index.lease_rows("s", "reference")) == 2, "others take what is whole"
    index.append("a", object(), list(second)[:1], [5])
    assert index.lease_rows("s", "reward", patient=True) == [], "one is still generated"
    index.release("a")
    assert index.lease_rows("s", "reward", patient=True) == [], "it will be generated again"
    index.lease_prompts("b", 1)
    index.append("b", object(), list(second)[1:], [5])
    found = [[view.key for view in index.lease_rows("s", "reward", patient=True)] for _ in range(3)]
    assert found == [first, second, []], "nothing more will come"


def failed_index(failed: list[RowKey], *, most: int = 4) -> ExperienceIndex:
    """Two prompts with two samples each, all scored but some."""
    index = ExperienceIndex(batch_rows=4, scorers={"reward": most})
    index.submit([PromptTask(0, prompt, (1,), 2) for prompt in (3, 8)])
    index.publish(0)
    index.append("a", object(), [key for task in index.lease_prompts("a", 9) for key in task.row_keys()], [5] * 4)
    keys = [view.key for view in index.lease_rows("s", "reward")]
    index.add_column("s", "reward", object(), keys, {key: Failure("r", "no", "p", "a") for key in failed})
    return index


@pytest.mark.parametrize(("fewest", "left"), [(1, [(3, 0), (3, 1), (8, 0)]), (2, [(3, 0), (3, 1)])])
def test_what_is_left_of_a_prompt_is_handed_out_if_it_is_enough(fewest: int, left: list[tuple[int, int]]) -> None:
    index = failed_index([RowKey(0, 8, 1)])
    assert [view.key[1:] for view in index.take(0, fewest)] == left
    index.consume(0)
    index.check_valid()
    assert index.consumed == 4


@pytest.mark.parametrize(("failed", "fewest"), [([(3, 0), (3, 1), (8, 0), (8, 1)], 1), ([(3, 0), (8, 1)], 2)])
def test_a_batch_of_which_nothing_is_left_says_so_and_why(failed: list[tuple[int, int]], fewest: int) -> None:
    index = failed_index([RowKey(0, *place) for place in failed])
    message = (
        f"none of its 4 samples is left .*, since {len(failed)} have no score; .* answer 0 to prompt 3: reward r: no"
    )
    with pytest.raises(RewardError, match=message):
        index.take(0, fewest)


def test_more_failures_than_may_be_end_the_run_by_name() -> None:
    message = "answer 0 to prompt 3 in iteration 0, of which 2 samples failed; expected 1 at most"
    with pytest.raises(RewardError, match=message):
        failed_index([RowKey(0, 3, 0), RowKey(0, 8, 1)], most=1)


def test_nobody_fails_rows_of_others() -> None:
    with pytest.raises(StoreError, match="no chunk that is leased"):
        failed_index([RowKey(0, 99, 0)])


def test_a_check_that_always_passes_would_be_noticed() -> None:
    index = ExperienceIndex(batch_rows=2, scorers=SCORERS)
    index.accepted = 1
    with pytest.raises(StoreError, match="every accepted row is held or consumed"):
        index.check_valid()


def test_further_prompts_of_an_iteration_are_granted_beside_its_own_and_taken_by_themselves() -> None:
    index = ExperienceIndex(batch_rows=2, capacity_rows=4, scorers=("reward",))

    def finish(tasks: list[PromptTask]) -> None:
        keys = [key for task in tasks for key in task.row_keys()]
        index.append("a", object(), keys, [5] * len(keys))
        while views := index.lease_rows("a", "reward"):
            index.add_column("a", "reward", object(), [view.key for view in views])
        index.check_valid()

    index.submit([PromptTask(0, 0, (1,), 2)])
    index.publish(0)
    finish(index.lease_prompts("a", 9))
    assert [view.key.prompt_id for view in index.take(0)] == [0, 0]
    index.submit([PromptTask(0, 1, (1,), 2)])
    assert index.lease_prompts("a", 9) == [], "the staleness rule counts an iteration's own rows"
    index._prompts.clear()
    index._submitted[0] -= 2
    index.submit([PromptTask(0, 2, (1,), 2)], further=True)
    finish(index.lease_prompts("a", 9))
    assert [view.key.prompt_id for view in index.take(0)] == [2, 2]
    with pytest.raises(StoreError, match="already taken"):
        index.take(0)
    index.consume(0)
    index.submit([PromptTask(1, 3, (1,), 2)])
    assert index.lease_prompts("a", 9) == [], "version 1 is not there yet"
    index.publish(1)
    assert len(index.lease_prompts("a", 9)) == 1
    index.check_valid()
