import pyarrow as pa
import pytest
import torch

from rlhf_dist.errors import NumbersError, WeightError
from rlhf_dist.models import load_policy
from rlhf_dist.records import GREEDY, RowKey, Sample, SampleRequest, Sampling, sample_seed
from rlhf_dist.rollout import transformers_engine
from rlhf_dist.rollout.transformers_engine import TransformersEngine, truncated_log_probs
from rlhf_dist.store.weights import encode_bucket
from tests.runs import Folders

SAMPLING = Sampling(6, 1.0, 1.0, 0, (), (2,))


def slow_truncation(logits: list[float], temperature: float, top_p: float, top_k: int) -> list[float]:
    """Sort, keep the k likeliest, then the smallest set whose mass reaches top_p, renormalise."""
    weights = torch.softmax(torch.tensor(logits) / temperature, -1).tolist()
    order = sorted(range(len(weights)), key=lambda i: -weights[i])[: top_k or None]
    total = sum(weights[i] for i in order)
    kept, mass = [], 0.0
    for i in order:
        if mass >= top_p:
            break
        kept.append(i)
        mass += weights[i] / total
    whole = sum(weights[i] for i in kept)
    return [weights[i] / whole if i in kept else 0.0 for i in range(len(weights))]


@pytest.mark.parametrize("top_p", [1.0, 0.8, 0.3])
@pytest.mark.parametrize("top_k", [0, 1, 4])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_truncation_equals_the_slow_obvious_version(top_p: float, top_k: int, temperature: float) -> None:
    torch.manual_seed(2)
    logits = torch.randn(12)
    sampling = Sampling(8, temperature, top_p, top_k, (), (0,))
    found = truncated_log_probs(logits, sampling).exp().tolist()
    assert found == pytest.approx(slow_truncation(logits.tolist(), temperature, top_p, top_k), abs=1e-5)


def test_seeds_differ_by_each_of_their_parts_and_by_nothing_else() -> None:
    base = sample_seed(1, RowKey(2, 3, 4))
    assert base == sample_seed(1, RowKey(2, 3, 4))
    others = [sample_seed(0, RowKey(2, 3, 4)), *(sample_seed(1, RowKey(*k)) for k in ((0, 3, 4), (2, 0, 4), (2, 3, 0)))]
    assert len({base, *others}) == 5
    assert all(0 <= seed < 2**63 for seed in (base, *others))


def test_ratings_do_not_depend_on_company_and_are_those_of_the_model(folders: Folders) -> None:
    sampling = Sampling(4, 1.0, 1.0, 0, (), (2,))
    engine = TransformersEngine(str(folders.policy), sampling, dtype="float32", max_concurrent=2)
    prompts, choices = [[1, 5], [1, 6, 7, 8], [1], [1, 9, 3], [1, 4]], [10, 20, 30]
    found = engine.rate(prompts, choices)
    assert len(found) == 5
    lm = load_policy(str(folders.policy), dtype=torch.float32)
    for prompt, rated in zip(prompts, found, strict=True):
        with torch.no_grad():
            logits = lm(input_ids=torch.tensor([prompt])).logits[0, -1, choices]
        assert rated == pytest.approx(torch.softmax(logits, -1).tolist(), abs=1e-5)


WAYS = {
    "qwen2_moe": (4, True),
    "gemma2": (4, True),
    "bamba": (1, True),
    "xglm": (4, True),
    "mamba": (1, False),
    "moshi": (1, False),
}
"""How a family can be decoded: in groups of so many, with a cache or without."""


@pytest.mark.parametrize("family", WAYS)
def test_what_is_sampled_has_the_log_probs_of_the_models_own_forward(family: str) -> None:
    """Families that answer otherwise in company, or with their cache, are decoded one by one, or without it."""
    from tests.models.families import folder_of

    path = str(folder_of(family))
    engine = TransformersEngine(path, Sampling(9, 1.0, 1.0, 0, (), (2,)), dtype="float32", max_concurrent=4)
    lm = load_policy(path, dtype=torch.float32).eval()
    for number, prompt in enumerate(((5, 6, 7), (8, 9, 10, 11, 12, 13, 14), (15,), (16, 17))):
        engine.add(SampleRequest(RowKey(0, number, 0), prompt, number))
    while engine.running:
        for sample in engine.step():
            ids = torch.tensor([[*sample.prompt_tokens, *sample.response_tokens]])
            with torch.no_grad():
                own = torch.log_softmax(lm(input_ids=ids).logits[0, :-1].float(), -1)
            own = own.gather(-1, ids[0, 1:, None])[len(sample.prompt_tokens) - 1 :, 0]
            assert sample.log_probs == pytest.approx(own.tolist(), abs=1e-3)
    assert (engine._max_concurrent, engine._uses_cache) == WAYS[family]


def requests(number: int) -> list[SampleRequest]:
    return [SampleRequest(RowKey(3, 7, index), (5, 6, 7 + index), index) for index in range(number)]


def samples(engine: TransformersEngine) -> list[Sample]:
    found: list[Sample] = []
    while engine.running:
        found += engine.step()
    return found


def an_engine(folders: Folders) -> TransformersEngine:
    return TransformersEngine(str(folders.policy), SAMPLING, dtype="float32", max_concurrent=4)


def version_of(folders: Folders) -> tuple[list[tuple[str, torch.Tensor]], list[str]]:
    lm = load_policy(str(folders.policy), dtype=torch.float32)
    named = [(name, parameter.data) for name, parameter in lm.named_parameters()]
    return named, [name for name, _ in named]


def test_after_an_abort_samples_are_those_of_a_new_engine(folders: Folders) -> None:
    engine = an_engine(folders)
    for request in requests(9):
        engine.add(request)
    engine.step()
    engine.step()
    engine.abort()
    assert engine.running == 0
    fresh = an_engine(folders)
    for each in (engine, fresh):
        for request in requests(3):
            each.add(request)
    assert samples(engine) == samples(fresh)


def test_nothing_is_sampled_after_a_version_that_came_half_or_was_forgotten(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, (named, names) = an_engine(folders), version_of(folders)
    whole, half = [encode_bucket(named)], [encode_bucket(named[:3])]

    def load(tables: list[pa.Table]) -> None:
        engine.load_weights(tables, names, version=4)

    def torn(*_: object, **__: object) -> None:
        raise RuntimeError("in the middle")

    load(whole)
    assert engine.version == 4
    with pytest.raises(WeightError, match="lacks or adds"):
        load(half)
    _refuses(engine)
    load(whole)
    with monkeypatch.context() as patched:
        patched.setattr(transformers_engine, "take_over", torn)
        with pytest.raises(RuntimeError, match="in the middle"):
            load(whole)
    _refuses(engine)
    load(whole)
    engine.forget()
    _refuses(engine)
    load(whole)
    engine.add(requests(1)[0])
    assert samples(engine)[0].versions[0][0] == 4


def test_a_partial_version_replaces_what_it_has_and_only_in_an_engine_that_is_whole(folders: Folders) -> None:
    engine, (named, names) = an_engine(folders), version_of(folders)
    whole = [encode_bucket(named)]
    moved = [(name, tensor + 0.1) for name, tensor in named if "self_attn" in name]
    some = [name for name, _ in moved]
    engine.load_weights(whole, names, version=0)
    engine.load_weights([encode_bucket(moved)], some, version=1, partial=True)
    in_one, engine = engine.probe(range(5, 20)), an_engine(folders)
    engine.load_weights([encode_bucket((dict(named) | dict(moved)).items())], names, version=1)
    assert engine.probe(range(5, 20)) == in_one
    odd = [("nobody.weight", torch.zeros(1))]
    with pytest.raises(WeightError, match=r"1 names differ, e.g. nobody.weight"):
        engine.load_weights([encode_bucket(odd)], ["nobody.weight"], version=2, partial=True)
    with pytest.raises(WeightError, match="no whole weight version"):
        engine.load_weights([encode_bucket(moved)], some, version=2, partial=True)
    _refuses(engine)


def _refuses(engine: TransformersEngine) -> None:
    assert engine.version == -1
    for call in (lambda: engine.add(requests(1)[0]), engine.step):
        with pytest.raises(WeightError, match="no whole weight version"):
            call()


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_log_probs_that_are_not_finite_name_the_sample(folders: Folders, number: float) -> None:
    engine, (named, names) = an_engine(folders), version_of(folders)
    broken = [(name, torch.full_like(tensor, number) if "norm" in name else tensor) for name, tensor in named]
    engine.load_weights([encode_bucket(broken)], names, version=0)
    engine.add(requests(3)[2])
    with pytest.raises(NumbersError, match="log-prob nan to token 0 of prompt 7, answer 2, iteration 3"):
        engine.step()
    with pytest.raises(NumbersError, match="ratings are not finite"):
        engine.rate([(5, 6), (7, 8)], [10, 20])


def test_a_greedy_answer_takes_the_likeliest_token_every_time(folders: Folders) -> None:
    engine = an_engine(folders)
    for seed in (1, 2):
        engine.add(SampleRequest(RowKey(seed, 0, GREEDY), (5, 6, 7), seed))
    (one, other) = sorted(samples(engine), key=lambda sample: sample.key)
    assert one.response_tokens == other.response_tokens
    ids = torch.tensor([[*one.prompt_tokens, *one.response_tokens]])
    with torch.no_grad():
        likeliest = engine._lm(ids).logits[0, 2:-1].argmax(-1)
    assert likeliest.tolist() == list(one.response_tokens)
