import json
from pathlib import Path

import pyarrow as pa
import pytest
from transformers import LlamaConfig

from rlhf_dist.errors import DataError
from rlhf_dist.run_folder.samples import ranked, read_iteration, show_samples
from rlhf_dist.store.kept import keep
from rlhf_dist.store.schema import EXPERIENCE
from rlhf_dist.tasks.helpdesk import build_tokenizer

SCORES = [0.5, -1.0, 2.0, 0.0]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    tokenizer = build_tokenizer()
    answer = tokenizer("Please help", add_special_tokens=False)["input_ids"]
    prompt = tokenizer("Customer: Hi")["input_ids"]
    columns = {
        "iteration": [7] * 4,
        "prompt_id": [0, 1, 2, 3],
        "sample_index": [0] * 4,
        "tokens": [prompt + answer] * 4,
        "sampled": [[False] * len(prompt) + [True] * len(answer)] * 4,
        "weight_versions": [[{"version": 6, "tokens": 1}, {"version": 7, "tokens": len(answer) - 1}]] * 4,
        "rewards": [[]] * 4,
        "rollout_log_probs": [[-1.0] * len(answer)] * 4,
        "finish_reason": ["stop"] * 4,
        "score": SCORES,
        "score_parts": [[("reward", score)] for score in SCORES],
        "ref_log_probs": [[-1.5] * len(answer)] * 4,
    }
    folder = tmp_path / "experience" / "iteration=000007"
    folder.mkdir(parents=True)
    batch = pa.RecordBatch.from_pydict(columns, schema=EXPERIENCE)
    with pa.OSFile(str(folder / "batch.arrow"), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)
    tokenizer.save_pretrained(tmp_path / "policy")
    LlamaConfig(vocab_size=len(tokenizer)).save_pretrained(tmp_path / "policy")
    (tmp_path / "config.yaml").write_text(json.dumps({"policy": str(tmp_path / "policy")}))
    return tmp_path


def test_worst_come_from_the_bottom_and_best_from_the_top(run: Path) -> None:
    table = read_iteration(run, None)
    assert ranked(table, worst=2, best=None)["score"].to_pylist() == [-1.0, 0.0]
    assert ranked(table, worst=None, best=2)["score"].to_pylist() == [2.0, 0.5]
    assert ranked(table, worst=1, best=1)["score"].to_pylist() == [-1.0, 2.0]
    assert ranked(table, worst=99, best=None).num_rows == 4


def test_a_sample_is_shown_with_text_score_kl_and_tokens(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    show_samples(run, iteration=7, worst=1, best=None, tokens=False)
    assert "<bos>" not in capsys.readouterr().out, "special tokens are tokens"
    show_samples(run, iteration=7, worst=1, best=None, tokens=True)
    told = capsys.readouterr().out
    assert "<bos>" in told
    for text in (
        "Customer: Hi",
        "Please help",
        "score -1.000",
        "policy version 6, 7",
        "log-prob, nats",
        "-1.500",
        "+0.500",
    ):
        assert text in told.replace("\n", " "), text


def test_what_is_not_there_is_said_with_what_is(run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no iteration 3; there are 7 to 7"):
        read_iteration(run, 3)
    with pytest.raises(DataError, match=r"no samples; they are kept with `--set experience.keep=true`"):
        read_iteration(tmp_path / "other", None)


def test_experience_opens_as_one_table_with_one_line(run: Path) -> None:
    import pyarrow.dataset as ds

    table = ds.dataset(run / "experience", format="arrow").to_table(filter=ds.field("score") < 0.25)
    assert sorted(table["score"].to_pylist()) == [-1.0, 0.0]


def test_samples_of_a_policy_that_is_its_own_reference_are_shown_without_one(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    table = read_iteration(run, 7).drop_columns(["ref_log_probs"])
    (batch,) = table.combine_chunks().to_batches()
    keep(run / "experience" / "iteration=000007" / "batch.arrow", batch)
    show_samples(run, iteration=7, worst=1, best=None, tokens=True)
    told = capsys.readouterr().out
    assert "-1.000" in told
    assert "score -1.000, " in told
    assert "KL" not in told
    assert "reference" not in told
