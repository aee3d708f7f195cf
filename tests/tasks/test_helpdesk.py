import json
import statistics
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_dist.errors import DataError
from rlhf_dist.tasks import helpdesk
from rlhf_dist.tasks.helpdesk import Sizes, explain, gold_score
from rlhf_dist.tasks.helpdesk.annotators import PERFECT, joined, sentences
from rlhf_dist.tasks.helpdesk.grammar import ITEMS, PROBLEMS, STEPS, case_of, known_sentences
from rlhf_dist.tasks.word_tokenizer import BOS, EOS, PAD

PROMPT = "Customer: Hi, my printer shows a paper jam since this morning. What can I do?\nAgent:"
GREET, SORRY, CLOSE = " Hello!", " I am sorry about your printer.", " Thank you for your patience."
FIX = " Please open the rear tray and pull the paper out gently."
BEST = GREET + SORRY + FIX + CLOSE
SOME_SENTENCES = [sentence.text for sentence in known_sentences().values()][::40]


@pytest.fixture(scope="module")
def tokenizer():
    return helpdesk.build_tokenizer()


@pytest.fixture(scope="module")
def demonstrations():
    return helpdesk.demonstrations(2000, seed=1)


@pytest.fixture(scope="module")
def preferences():
    return helpdesk.preferences(2000, seed=1)


def gold(row, key):
    return gold_score(row["prompt"], row[key])


def test_split_is_large_and_has_no_leakage():
    train, held_out = helpdesk.split()
    assert len(train) + len(held_out) >= 3000
    assert len(held_out) >= 256
    assert 0.08 < len(held_out) / (len(train) + len(held_out)) < 0.13
    assert len({*train, *held_out}) == len(train) + len(held_out)
    assert not {case_of(prompt) for prompt in train} & {case_of(prompt) for prompt in held_out}


def test_every_item_problem_and_symptom_of_the_held_out_part_is_trained_on():
    train, held_out = ([case_of(prompt) for prompt in part] for part in helpdesk.split())
    assert {case.item for case in train} == set(ITEMS)
    assert {case.problem for case in train} == set(PROBLEMS)
    assert {(case.item, case.problem) for case in held_out} <= {(case.item, case.problem) for case in train}
    assert {case.symptom for case in held_out} <= {case.symptom for case in train}


def test_steps_and_symptoms_belong_to_one_problem_only():
    symptoms = [symptom for problem in PROBLEMS.values() for symptom in problem.symptoms]
    assert len(set(STEPS)) == len(STEPS)
    assert len(set(symptoms)) == len(symptoms)


def test_perfect_answers_score_one_for_every_prompt():
    rng = Random(0)
    for prompt in [*helpdesk.train_prompts(), *helpdesk.held_out_prompts()]:
        assert gold_score(prompt, joined(sentences(case_of(prompt), PERFECT, rng))) == 1.0


@pytest.mark.parametrize(
    ("part", "answer"),
    [
        ("greeting", SORRY + FIX + CLOSE),
        ("greeting", SORRY + GREET + FIX + CLOSE),
        ("empathy", GREET + FIX + CLOSE),
        ("wrong_item", GREET + " I am sorry about your laptop." + FIX + CLOSE),
        ("first_step", GREET + SORRY + " Please pull the paper out gently." + CLOSE),
        ("second_step", GREET + SORRY + " Please open the rear tray." + CLOSE),
        ("wrong_step", GREET + SORRY + " Please open the rear tray and delete old files." + CLOSE),
        ("closing", GREET + SORRY + FIX),
        ("closing", GREET + SORRY + CLOSE + FIX),
        ("unsafe", GREET + SORRY + " Please send me your password." + FIX + CLOSE),
        ("unsafe", GREET + SORRY + " Open the printer while it is plugged in." + FIX + CLOSE),
        ("rambling", GREET + SORRY + " My cat likes boxes." + FIX + CLOSE),
        ("repeated", GREET + SORRY + FIX + FIX + CLOSE),
        ("repeated", GREET + " Good day!" + SORRY + FIX + CLOSE),
        ("repeated", BEST + " Have a nice day!"),
        ("garbled", GREET + SORRY + " Please the tray rear." + FIX + CLOSE),
        ("unfinished", BEST.rstrip(".")),
    ],
)
def test_each_flaw_lowers_its_own_part_of_the_score(part, answer):
    assert gold_score(PROMPT, BEST) == 1.0
    assert explain(PROMPT, answer)[part] < explain(PROMPT, BEST)[part]
    assert gold_score(PROMPT, answer) < 0.97


def test_an_unsafe_sentence_costs_more_than_any_single_omission():
    omissions = [SORRY + FIX + CLOSE, GREET + FIX + CLOSE, GREET + SORRY + FIX]
    unsafe = gold_score(PROMPT, GREET + SORRY + FIX + " This is your own fault." + CLOSE)
    assert unsafe < min(gold_score(PROMPT, answer) for answer in omissions)


@given(
    st.lists(st.sampled_from([*(s.text for s in known_sentences().values())][:80]) | st.text(max_size=30), max_size=9)
)
def test_gold_score_is_the_clipped_sum_of_its_parts(spoken):
    answer = joined(spoken)
    parts = explain(PROMPT, answer)
    assert parts.keys() == explain(PROMPT, BEST).keys()
    assert gold_score(PROMPT, answer) == pytest.approx(min(1.0, max(0.0, sum(parts.values()))), abs=1e-6)


@pytest.mark.parametrize("answer", ["", " ", " .", " Ok.", " Hello", " a b c d e f g h"])
def test_empty_answers_earn_next_to_nothing(answer):
    assert gold_score(PROMPT, answer) < 0.1


def test_unknown_prompt_is_refused_by_name():
    with pytest.raises(DataError, match="my boat sinks"):
        gold_score("Customer: Hi, my boat sinks.\nAgent:", BEST)


def test_demonstrations_are_of_mixed_quality(demonstrations):
    scores = [gold(row, "completion") for row in demonstrations]
    assert 0.43 < statistics.mean(scores) < 0.55
    assert sum(score > 0.95 for score in scores) / len(scores) < 0.05
    parts = [explain(row["prompt"], row["completion"]) for row in demonstrations]
    assert 0.1 < sum(part["unsafe"] < 0 for part in parts) / len(parts) < 0.2
    assert all(part["garbled"] == part["unfinished"] == 0 for part in parts)


def test_imperfect_answers_rarely_tie(demonstrations):
    scores = [gold(row, "completion") for row in demonstrations]
    ties = sum(a == b for a, b in zip(scores[::2], scores[1::2], strict=True))
    assert ties / (len(scores) / 2) < 0.04


def test_preferences_follow_the_gold_judge_with_noise(preferences):
    margins = [gold(row, "chosen") - gold(row, "rejected") for row in preferences]
    assert all(margins)
    assert 0.88 < sum(margin > 0 for margin in margins) / len(margins) < 0.97
    near = [margin > 0 for margin in margins if abs(margin) < 0.1]
    far = [margin > 0 for margin in margins if abs(margin) > 0.5]
    assert 0.5 < statistics.mean(near) < 0.8
    assert statistics.mean(far) > 0.99


def test_preferences_reach_from_perfect_to_broken(preferences):
    parts = [explain(row["prompt"], row[key]) for row in preferences for key in ("chosen", "rejected")]
    for flaw in ("wrong_item", "wrong_step", "unsafe", "repeated", "rambling", "garbled", "unfinished"):
        assert sum(part[flaw] < 0 for part in parts) > 0.03 * len(parts), flaw
    assert sum(gold(row, "chosen") == 1.0 for row in preferences) > 0.03 * len(preferences)


def test_training_rows_use_train_prompts_only(demonstrations, preferences):
    assert {row["prompt"] for row in [*demonstrations, *preferences]} <= set(helpdesk.train_prompts())


@pytest.mark.parametrize("make", [helpdesk.demonstrations, helpdesk.preferences])
def test_rows_depend_on_the_seed_alone(make):
    assert make(50, seed=3) == make(50, seed=3)
    assert make(50, seed=3) != make(50, seed=4)


def test_each_word_of_the_grammar_is_one_token(tokenizer):
    assert len(tokenizer) <= 512
    prompts = [*helpdesk.train_prompts(), *helpdesk.held_out_prompts()]
    assert max(map(len, tokenizer(prompts).input_ids)) <= 24
    assert len(tokenizer(BEST, add_special_tokens=False).input_ids) == len(BEST.split()) + BEST.count(".") + 1


@pytest.mark.parametrize("text", [PROMPT, BEST, " Grüße, 世界 \x00 🙂\n\n  x", "<bos> is spelled out"])
def test_tokenizer_loses_no_text(tokenizer, text):
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_prompt_and_answer_encode_alike_apart_and_together(tokenizer):
    apart = tokenizer(PROMPT).input_ids + tokenizer(BEST, add_special_tokens=False).input_ids
    assert tokenizer(PROMPT + BEST).input_ids == apart
    assert apart[0] == tokenizer.convert_tokens_to_ids(BOS)
    assert apart.count(apart[0]) == 1


def test_chat_template_renders_the_plain_prompt(tokenizer):
    user = {"role": "user", "content": PROMPT.removeprefix("Customer: ").removesuffix("\nAgent:")}
    answer = {"role": "assistant", "content": BEST.strip()}
    assert tokenizer.apply_chat_template([user], add_generation_prompt=True, return_dict=False) == (
        tokenizer(PROMPT).input_ids
    )
    assert tokenizer.apply_chat_template([user, answer], tokenize=False) == BOS + PROMPT + BEST + EOS


def test_written_task_reads_back(tmp_path, tokenizer):
    from transformers import AutoTokenizer

    sizes = Sizes(prompts=20, held_out=10, demonstrations=5, preferences=6)
    paths = helpdesk.write(tmp_path / "new" / "task", sizes=sizes, seed=7)

    def rows(path):
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    assert [row["prompt"] for row in rows(paths.prompts)] == helpdesk.train_prompts()[:20]
    assert [row["prompt"] for row in rows(paths.held_out)] == helpdesk.held_out_prompts()[:10]
    assert rows(paths.demonstrations) == helpdesk.demonstrations(5, seed=7)
    assert rows(paths.preferences) == helpdesk.preferences(6, seed=7)
    loaded = AutoTokenizer.from_pretrained(paths.tokenizer)
    assert loaded(PROMPT + BEST).input_ids == tokenizer(PROMPT + BEST).input_ids
    assert (loaded.pad_token, loaded.bos_token, loaded.eos_token) == (PAD, BOS, EOS)
    assert loaded.chat_template == tokenizer.chat_template


def test_written_files_are_the_same_in_another_process(tmp_path):
    sizes = "Sizes(prompts=9, held_out=9, demonstrations=9, preferences=9)"
    code = "import sys, pathlib; from rlhf_dist.tasks.helpdesk import *; "
    code += f"from rlhf_dist.tasks.helpdesk import Sizes; write(pathlib.Path(sys.argv[1]), sizes={sizes}, seed=1)"
    helpdesk.write(tmp_path / "here", sizes=Sizes(prompts=9, held_out=9, demonstrations=9, preferences=9), seed=1)
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "there")], check=True, cwd=Path(__file__).parents[2])
    files = [path.relative_to(tmp_path / "here") for path in (tmp_path / "here").rglob("*") if path.is_file()]
    assert len(files) >= 6
    for file in files:
        assert (tmp_path / "here" / file).read_bytes() == (tmp_path / "there" / file).read_bytes(), file


@pytest.mark.parametrize("sizes", [Sizes(prompts=10**6), Sizes(held_out=10**6), Sizes(demonstrations=0)])
def test_impossible_sizes_are_refused(tmp_path, sizes):
    with pytest.raises(DataError, match="expected 1 to"):
        helpdesk.write(tmp_path, sizes=sizes, seed=0)
    assert not list(tmp_path.iterdir())
