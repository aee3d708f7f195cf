"""Rewards of several kinds added up, on real models and functions."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

from rlhf_dist.config import FunctionReward, ModelReward, Safety
from rlhf_dist.errors import ConfigError, ModelError, RewardError
from rlhf_dist.records import Prompt, RowKey
from rlhf_dist.scoring import safety
from rlhf_dist.scoring.answers import Failures
from rlhf_dist.scoring.reward import RewardScorer
from rlhf_dist.scoring.reward_file import RewardFile, read_reward_file
from rlhf_dist.scoring.reward_models import combined
from rlhf_dist.scoring.told import told_of
from rlhf_dist.store.row import single_turn
from rlhf_dist.tasks.helpdesk import build_tokenizer
from tests.runs import SHAPE

TOKENIZER = build_tokenizer()
PROMPTS = ["Customer: Hi,\nAgent:", "Customer: Hello,\nAgent:", "Customer: Hey,\nAgent:"]
ANSWERS = [" Hello!", " Please send me your password.", " Have a nice day!"]


HERE = "tests.scoring.rules"


def tokens(texts: list[str], *, prompt: bool) -> list[np.ndarray]:
    return [np.array(TOKENIZER(text, add_special_tokens=prompt)["input_ids"], dtype=np.int32) for text in texts]


TOKENS = [*zip(tokens(PROMPTS, prompt=True), tokens(ANSWERS, prompt=False), strict=True)]
ROWS = [single_turn(prompt, answer) for prompt, answer in TOKENS]


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    TOKENIZER.save_pretrained(folder)
    LlamaConfig(**SHAPE, vocab_size=len(TOKENIZER)).save_pretrained(folder)
    return str(folder)


def model(folder: Path, *, heads: int, seed: int) -> LlamaForSequenceClassification:
    torch.manual_seed(seed)
    config = LlamaConfig(**SHAPE, vocab_size=len(TOKENIZER), pad_token_id=0, num_labels=heads)
    made = LlamaForSequenceClassification(config).eval()
    made.save_pretrained(folder)
    return made


OPEN: list[RewardScorer] = []


@pytest.fixture(autouse=True)
def _all_are_closed() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().close()


def scorer(tokenizer_folder: str, *rewards: object, safety: Safety | None = None, told: object = None) -> RewardScorer:
    shared = {"dtype": "float32", "batch_tokens": 64, "device": "cpu"}
    made = RewardScorer(rewards, safety or Safety(), tokenizer_folder, told=told, **shared)
    OPEN.append(made)
    return made


def parts(found: dict[str, list]) -> dict[str, list[float]]:
    rows = [dict(row) for row in found["score_parts"]]
    return {name: [row[name] for row in rows] for name in rows[0]}


def logits(made: LlamaForSequenceClassification, *, whole: bool = False) -> np.ndarray:
    """Obvious and slow: one sequence at a time, every position."""
    found = []
    for prompt, answer in TOKENS:
        ids = torch.tensor(np.concatenate([prompt, answer])[None].astype(np.int64))
        each = made.score(made.model(input_ids=ids).last_hidden_state)[0]
        found.append((each[len(prompt) :].mean(0) if whole else each[-1]).detach().numpy())
    return np.array(found)


MEANS = (0.1, -0.3, 0.7, 0.5)


@pytest.mark.parametrize("scores", ["trajectory", "token-mean"])
def test_an_ensemble_of_heads_and_models_is_combined_and_normalised(
    scores: str, tmp_path: Path, tokenizer_folder: str
) -> None:
    members = [model(tmp_path, heads=2, seed=0), model(tmp_path / "member-1", heads=2, seed=1)]
    RewardFile(scores=scores, members=(".", "member-1"), means=MEANS, std=0.5).write(tmp_path)
    expected = np.concatenate([logits(each, whole=scores == "token-mean") for each in members], axis=1)
    found = scorer(tokenizer_folder, ModelReward(path=str(tmp_path))).score(ROWS)
    np.testing.assert_allclose(found["score"], (expected.mean(1) - 0.25) / 0.5, atol=1e-5)
    np.testing.assert_allclose(parts(found)["reward_disagreement"], (expected - MEANS).std(1) / 0.5, atol=1e-5)
    assert read_reward_file(str(tmp_path)).first_mean == pytest.approx(-0.1)
    careful = ModelReward(path=str(tmp_path), combine="mean-std", std_coef=2, normalise=False)
    found = scorer(tokenizer_folder, careful).score(ROWS)
    np.testing.assert_allclose(found["score"], expected.mean(1) - 2 * expected.std(1), atol=1e-5)
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path).config.num_labels == 2


def test_combinations_order_as_their_names_say() -> None:
    values = np.array([[1.0, 3.0], [2.0, 2.0]])
    assert combined(values, "mean", std_coef=1).tolist() == [2.0, 2.0]
    assert combined(values, "min", std_coef=1).tolist() == [1.0, 2.0]
    assert combined(values, "mean-std", std_coef=0.5).tolist() == [1.5, 2.0]


def test_a_reward_file_that_reaches_outside_or_is_malformed_is_refused(tmp_path: Path) -> None:
    assert read_reward_file(str(tmp_path)) == RewardFile()
    RewardFile(members=("../elsewhere",)).write(tmp_path)
    with pytest.raises(ModelError, match=r"members has '../elsewhere'; expected folders within"):
        read_reward_file(str(tmp_path))
    (tmp_path / "reward.json").write_text('{"std": "much"}')
    with pytest.raises(ModelError, match=r"reward.json: std: .*number"):
        read_reward_file(str(tmp_path))


def test_rewards_are_added_up_by_weight_and_weight_zero_is_only_logged(tokenizer_folder: str) -> None:
    rules = [
        FunctionReward(kind="function", name=name, path=f"{HERE}:length_of", weight=weight)
        for name, weight in (("a", 0.5), ("b", -0.25), ("gold", 0.0))
    ]
    found = scorer(tokenizer_folder, *rules).score(ROWS)
    lengths = [float(len(answer)) for answer in ANSWERS]
    assert found["score"] == [0.25 * length for length in lengths]
    assert parts(found) == {"a": lengths, "b": lengths, "gold": lengths}


def test_a_function_that_raises_or_is_missing_is_named(tokenizer_folder: str) -> None:
    rule = FunctionReward(kind="function", name="r", path=f"{HERE}:broken")
    with pytest.raises(
        RewardError, match=r"reward r: .*:broken raised ZeroDivisionError: no luck, on prompt 'Customer: Hi"
    ):
        scorer(tokenizer_folder, rule).score(ROWS)
    with pytest.raises(ConfigError, match="reward r is .*expected package.module:function"):
        scorer(tokenizer_folder, rule.model_copy(update={"path": f"{HERE}:nothing"}))


KEYS = [RowKey(4, 7 * number, 1) for number in range(3)]


@pytest.mark.parametrize(
    ("name", "cause"), [("broken", "raised KeyError: False"), ("huge", "it is 1e\\+300; expected a finite")]
)
def test_an_answer_without_a_score_is_named_or_put_aside_where_it_may(
    name: str, cause: str, tokenizer_folder: str
) -> None:
    rule = FunctionReward(kind="function", name="r", path=f"{HERE}:{name}_for_short_answers")
    made = scorer(tokenizer_folder, FunctionReward(kind="function", name="a", path=f"{HERE}:length_of"), rule)
    place = "; it is answer 1 to prompt 0 in iteration 4$"
    with pytest.raises(RewardError, match=rf"reward r: .*{cause}.*on prompt 'Customer: Hi,.*Hello!'{place}"):
        made.score(ROWS, Failures(0, KEYS))
    aside = Failures(1, KEYS)
    found = made.score(ROWS, aside)
    assert {number: (failure.reward, failure.answer) for number, failure in aside.causes.items()} == {
        0: ("r", " Hello!")
    }
    assert np.isnan(found["score"]).tolist() == [True, False, False], "nobody can train on it unseen"


def test_functions_are_told_the_rows_columns_and_none_leaves_a_part_out_of_the_sum(tokenizer_folder: str) -> None:
    """Keys of the rows say which prompts they answer."""
    prompts = [Prompt(key.prompt_id, (1,), "", columns=f'{{"level": {n}}}') for n, key in enumerate(KEYS)]
    by_level = FunctionReward(kind="function", name="b", path=f"{HERE}:close_to", weight=2.0)
    length = FunctionReward(kind="function", name="a", path=f"{HERE}:length_of")
    alone, both = (scorer(tokenizer_folder, *each, told=told_of(prompts)) for each in ([by_level], [length, by_level]))
    found = both.score(ROWS, Failures(0, KEYS))
    lengths = [float(len(answer)) for answer in ANSWERS]
    assert found["score"] == [lengths[0], lengths[1] + 2.0, lengths[2] + 4.0]
    assert [dict(row) for row in found["score_parts"]] == [
        {"a": lengths[0]},
        {"a": lengths[1], "b": 1.0},
        {"a": lengths[2], "b": 2.0},
    ]
    with pytest.raises(RewardError, match="reward b: says None, and no other reward has a score"):
        alone.score(ROWS, Failures(0, KEYS))
    aside = Failures(1, KEYS)
    assert np.isnan(alone.score(ROWS, aside)["score"]).tolist() == [True, False, False]
    assert [*aside.causes] == [0]


def test_a_sum_that_is_not_finite_is_its_own_failure(tokenizer_folder: str) -> None:
    rules = [FunctionReward(kind="function", name=n, path=f"{HERE}:length_of", weight=2e37) for n in "ab"]
    with pytest.raises(RewardError, match=r"reward score: it is 1.*e\+39; expected a finite number, as float32"):
        scorer(tokenizer_folder, *rules).score(ROWS)


def test_an_answer_that_breaks_a_rule_scores_at_most_the_cap(tokenizer_folder: str) -> None:
    rule = FunctionReward(kind="function", name="a", path=f"{HERE}:length_of")
    rules = Safety(forbidden=("password",), required=("[!.]$",), shortest=2, longest=6, cap=-1.0)
    found = scorer(tokenizer_folder, rule, safety=rules).score(ROWS)
    told = parts(found)
    assert told["unsafe_forbidden"] == [0.0, 1.0, 0.0]
    assert told["unsafe"] == [max(each) for each in zip(told["unsafe_forbidden"], told["unsafe_length"], strict=True)]
    assert found["score"][0] == len(ANSWERS[0])
    assert found["score"][1] == -1.0
    low = FunctionReward(kind="function", name="a", path=f"{HERE}:length_of", weight=-1.0)
    assert scorer(tokenizer_folder, low, safety=rules).score(ROWS)["score"][1] == -len(ANSWERS[1]), "a cap, not a score"


@pytest.mark.parametrize("rule", ["forbidden", "required"])
def test_an_answer_on_which_a_pattern_is_not_decided_has_failed(
    rule: str, tokenizer_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pattern that tries ways without number, on an answer of thirty letters; the others are fine."""
    monkeypatch.setattr(safety, "MATCH_S", 0.05)
    stuck = single_turn(TOKENS[0][0], tokens(["a" * 30 + "b"], prompt=False)[0])
    found = scorer(tokenizer_folder, safety=Safety(**{rule: ("(a|aa)+$",)}))
    told = (
        rf"safety.{rule}: the pattern '\(a\|aa\)\+\$' was not decided within 0.05 s, on prompt .* and answer 'a{{30}}b'"
    )
    with pytest.raises(RewardError, match=told):
        found.score([ROWS[0], stuck])
    failures = Failures(1, [RowKey(0, n, 0) for n in range(2)])
    left = found.score([ROWS[0], stuck], failures)
    assert [*failures.causes] == [1]
    assert np.isnan(left["score"]).tolist() == [False, True]
    assert parts(left)["unsafe"][1] == 1.0, "what is not decided is not safe"


@pytest.mark.parametrize("name", ["unsafe", "unsafe_length", "UNSAFE", "a_disagreement"])
def test_no_name_of_a_reward_is_taken_for_a_verdict(name: str, tokenizer_folder: str) -> None:
    rule = FunctionReward(kind="function", name=name, path=f"{HERE}:length_of", weight=-1.0)
    lengths = [-float(len(answer)) for answer in ANSWERS]
    assert scorer(tokenizer_folder, rule).score(ROWS)["score"] == lengths
    kept = Safety(shortest=1, cap=-100.0)
    assert scorer(tokenizer_folder, rule, safety=kept).score(ROWS)["score"] == lengths


def test_a_classifiers_verdict_caps_the_reward(tmp_path: Path, tokenizer_folder: str) -> None:
    made = model(tmp_path, heads=2, seed=3)
    made.config.id2label = {0: "fine", 1: "unsafe"}
    made.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    texts = [prompt + answer for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)]
    ids = [torch.tensor([TOKENIZER(text)["input_ids"]]) for text in texts]
    expected = [torch.softmax(made(input_ids=each).logits[0], -1)[1].item() for each in ids]
    bound = sorted(expected)[1]
    rule = FunctionReward(kind="function", name="a", path=f"{HERE}:length_of")
    found = scorer(tokenizer_folder, rule, safety=Safety(classifier=str(tmp_path), threshold=bound)).score(ROWS)
    assert parts(found)["unsafe_classifier"] == [float(p >= bound - 1e-6) for p in expected]
    made.config.id2label = {0: "yes", 1: "no"}
    made.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="expected one named 'unsafe'"):
        scorer(tokenizer_folder, rule, safety=Safety(classifier=str(tmp_path)))
