"""Versions on their way out of the learner, by several ranks as threads that meet where a collective would let them meet."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from rlhf_dist.config import Lora
from rlhf_dist.learner import publication as room
from rlhf_dist.learner.adapters import adapted_layers
from rlhf_dist.learner.publication import Publication
from rlhf_dist.learner.published import published
from rlhf_dist.store.deltas import apply_delta
from rlhf_dist.store.weights import Moved, Sent, decode_bucket, encode_bucket
from tests.learner.test_published import Sharded, adapted, everything, llama
from tests.store.test_deltas import sent as written

MEET_S = 20.0


class OneOfSeveral(Sharded):
    """A rank's part of a model under ZeRO-3: nobody gathers alone, and what was gathered is gone afterwards."""

    def __init__(self, model: Sharded, meeting: threading.Barrier) -> None:
        super().__init__(model.hugging_face, model.lora)
        self.meeting = meeting
        self.handed_out: list[torch.Tensor] = []

    @contextmanager
    def gathered(self, names: Sequence[str]) -> Iterator[None]:
        self.meeting.wait(MEET_S)
        with super().gathered(names):
            yield
        self.meeting.wait(MEET_S)
        for tensor in self.handed_out:
            tensor.zero_()
        self.handed_out.clear()

    def tensors(self, names: Sequence[str]) -> list[tuple[str, torch.Tensor]]:
        found = [(name, tensor.clone()) for name, tensor in super().tensors(names)]
        self.handed_out += [tensor for _, tensor in found]
        return found


def published_by(
    ranks: int, model: Sharded, dtype: torch.dtype, *, partial: bool = False
) -> tuple[list[dict[str, torch.Tensor]], list[Sent]]:
    """What each of some ranks sends, read before the next is asked for, and its report."""
    tables, told = tables_by(ranks, model, dtype, partial=partial)
    return [{name: tensor for table in own for name, tensor in decode_bucket(table)} for own in tables], told


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_each_weight_is_sent_once_by_the_rank_whose_turn_its_bucket_is_and_all_ranks_hash_at_once(
    ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted(Lora(rank=2))
    buckets = [[name for unit in bucket for name in unit.own] for bucket in plan_of(model).buckets]
    assert len(buckets) > 2 * ranks
    together = threading.Barrier(ranks)
    in_full_rounds = {bucket[0] for bucket in buckets[: len(buckets) // ranks * ranks]}

    def encode(tensors: Any, **options: Any) -> Any:
        named = dict(tensors)
        if next(iter(named)) in in_full_rounds:
            together.wait(MEET_S)  # a rank that hashes while another waits for it in a gathering never meets it here
        return encode_bucket(named.items(), **options)

    monkeypatch.setattr(room, "encode_bucket", encode)
    found, told = published_by(ranks, model, torch.bfloat16)
    for rank in range(ranks):
        assert told[rank].names == buckets[rank::ranks]
        assert told[rank].num_bytes == sum(tensor.nbytes for tensor in found[rank].values())
    expected = everything(published(model))
    sent_by_all = {name: tensor for each in found for name, tensor in each.items()}
    assert sent_by_all.keys() == expected.keys()
    assert all(torch.equal(sent_by_all[name], expected[name].bfloat16()) for name in expected)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("partial", [False, True])
def test_a_publication_on_a_base_sends_what_changed_and_puts_together_what_a_whole_one_has(
    ranks: int, partial: bool
) -> None:
    model = adapted(Lora(rank=2, targets=("q_proj",)))
    base, _ = tables_by(ranks, model, partial=partial)
    with torch.no_grad():
        model.hugging_face.model.layers[0].self_attn.q_proj.lora_B["default"].weight[0].add_(0.3)
    whole, told_whole = tables_by(ranks, model, partial=partial)
    deltas, told = tables_by(ranks, model, partial=partial, base=base)
    for own, other, older in zip(deltas, whole, base, strict=True):
        for delta, expected, before in zip(own, other, older, strict=True):
            assert apply_delta(before, delta).equals(expected)
    assert [each.names for each in told] == [each.names for each in told_whole]
    assert 0 < sum(each.num_bytes for each in told) < sum(each.num_bytes for each in told_whole) / 2


def tables_by(
    ranks: int,
    model: Sharded,
    dtype: torch.dtype = torch.bfloat16,
    *,
    partial: bool,
    base: Sequence[Sequence[Any]] | None = None,
) -> tuple[list[list[Any]], list[Sent]]:
    """Each rank's buckets, as they come out of shared memory, and its report."""
    meeting = threading.Barrier(ranks)

    def play(rank: int) -> list[Any]:
        own: Any = OneOfSeveral(model, meeting)
        publication = Publication.plan(own, dtype=dtype, bucket_bytes=4096)
        older = None if base is None else iter(base[rank])
        sent = publication.tables(rank, ranks, partial=partial, base=older)
        return [each if isinstance(each, Sent) else written(each) for each in sent]

    with ThreadPoolExecutor(ranks) as threads:
        played = [*threads.map(play, range(ranks))]
    return [found[:-1] for found in played], [found[-1] for found in played]


def plan_of(model: Any) -> Publication:
    return Publication.plan(model, dtype=torch.bfloat16, bucket_bytes=4096)


def test_without_zero_3_nothing_is_copied_on_a_cpu_and_with_it_two_buckets_are_held() -> None:
    model: Any = Sharded(llama())
    largest = max(sum(unit.numel for unit in bucket) for bucket in plan_of(model).buckets) * 2
    for stage, held in ((2, 0), (3, 2)):
        model.zero_stage = stage
        publication = Publication.plan(model, dtype=torch.float32, bucket_bytes=4096)
        tables = [each for each in publication.tables(0, 1) if not isinstance(each, Sent)]
        own = {parameter.data_ptr() for parameter in model.hugging_face.parameters()}
        pointers = {tensor.data_ptr() for table in tables[-2:] for _, tensor in decode_bucket(table)}
        assert (pointers <= own) == (stage == 2)
        assert (publication.staging.num_bytes > 0) == (held > 0)
        assert publication.staging.num_bytes <= held * 2 * largest


def sent(model: Sharded, dtype: torch.dtype, *, partial: bool) -> tuple[dict[str, torch.Tensor], Moved]:
    """All that a publication sends, and what is left of the adapters' change."""
    (found,), (told,) = published_by(1, model, dtype, partial=partial)
    assert [name for bucket in told.names for name in bucket] == list(found)
    assert told.num_bytes == sum(tensor.nbytes for tensor in found.values())
    return found, told.moved


@pytest.mark.parametrize(
    ("targets", "parents"),
    [
        (("all-linear",), ("self_attn", "mlp")),
        (("q_proj",), ("self_attn",)),
        (("up_proj", "lm_head"), ("mlp", "lm_head")),
    ],
)
def test_a_partial_version_is_what_adapters_change_with_the_rest_of_its_layers_as_the_complete_one_has_it(
    targets: tuple[str, ...], parents: tuple[str, ...]
) -> None:
    model = adapted(Lora(rank=2, targets=targets), attention_bias=True)
    complete, moved = sent(model, torch.float32, partial=False)
    partial, moved_too = sent(model, torch.float32, partial=True)
    assert partial.keys() == {name for name in complete if any(f"{each}." in name for each in parents)}
    assert all(torch.equal(tensor, complete[name]) for name, tensor in partial.items())
    assert moved.kept == moved_too.kept == pytest.approx(1.0)
    assert Publication.plan(Sharded(llama()), dtype=torch.float32, bucket_bytes=4096).adapted == []


@pytest.mark.parametrize(("size", "kept"), [(0.0, None), (1e-9, 0.0), (1.0, 1.0)])
def test_adapters_are_merged_in_fp32_and_rounded_once_and_what_rounding_leaves_is_told(
    size: float, kept: float | None
) -> None:
    model = adapted(Lora(rank=2))
    for name, parameter in model.hugging_face.named_parameters():
        if "lora_B" in name:
            parameter.data *= size
    model.hugging_face.bfloat16()  # as DeepSpeed has it: the frozen weights, and copies of the adapters'
    found, moved = sent(model, torch.bfloat16, partial=True)
    assert moved.kept == (kept if kept is None else pytest.approx(kept, abs=0.02))
    for name, layer in adapted_layers(model.hugging_face).items():
        own = model.hugging_face.get_submodule(layer)
        a, b = (each["default"].weight.float() for each in (own.lora_A, own.lora_B))
        expected = own.base_layer.weight.float() + b @ a * own.scaling["default"]
        assert torch.equal(found[name], expected.bfloat16())
        assert own.lora_A["default"].weight.dtype == torch.bfloat16, "the learner's own are as they were"


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf"), 3.4e38])
def test_a_publication_names_what_is_not_finite_in_the_wires_dtype(number: float) -> None:
    model = Sharded(llama())
    name, parameter = next(iter(model.hugging_face.named_parameters()))
    parameter.data[0, 0] = number
    _, (told,) = published_by(1, model, torch.bfloat16)
    assert told.odd == [name]
