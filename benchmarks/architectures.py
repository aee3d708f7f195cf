"""Every causal family of transformers that can be made small: right, remedied, or refused?

For each family a random model is made and read back through the same doors as a user's: learner, scorer, file, engines. Right
means, in fp32, to a thousandth of a nat: log-probs alone, packed and in training mode equal the model's own forward; a reward
model's scores too; what is saved after a training step, read by transformers, is what was trained; published weights make the
transformers engine, and vLLM where it serves the family, say what the learner says. `remedied`: right by another layout, kernel
or way to decode, which the logs name. `refused`: one sentence. `wrong`: anything else, a traceback included.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", VLLM_CPU_KVCACHE_SPACE="1")

import numpy as np
import torch
from contract import arguments, publish
from small_models import VOCABULARY, families, write_small

TOLERANCE = 1e-3
QUICK = ("gemma2", "granite", "llama", "opt", "qwen3_moe", "jamba", "bert")
LENGTHS = (20, 9, 7, 11)
PACKED = ([[0], [1, 3], [2]], [[0, 1, 2, 3]])
PROBE = list(range(3, 40))
VLLM_S = 240


class Remedies(logging.Handler):
    """What the package says that it does otherwise."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


class Learner:
    """One learner rank in this process, which loads one model after the other."""

    def __init__(self, root: Path) -> None:
        from rlhf_dist.config import Learner as Settings
        from rlhf_dist.config import Timeouts
        from rlhf_dist.learner.rank import LearnerRank

        self.logs = root / "logs"
        self.logs.mkdir()
        self.rank = LearnerRank(0, 1, Settings(threads=1, zero_stage=0))
        host, port = self.rank.open("127.0.0.1")
        self.rank.shut()
        self.rank.join(host, port, Timeouts(start=60), None)

    def trained(self, folder: Path, sequences: list[Any]) -> Any:
        """The rank with the folder's model after one step of fine-tuning."""
        from rlhf_dist.config import Optimizer
        from rlhf_dist.data.examples import example_table
        from rlhf_dist.learner.model_spec import ModelSpec
        from rlhf_dist.stages.sft import sft_loss

        spec = ModelSpec(str(folder), "policy", Optimizer(lr=1e-3, warmup=0.0), 10)
        self.rank.load({"policy": spec}, {}, str(self.logs), 0)
        selected = [list(range(3, len(tokens) - 1)) for tokens in sequences]
        table = example_table([tokens.tolist() for tokens in sequences], selected)
        count = float(sum(map(len, selected)))
        self.rank.train_step("policy", table, [[[0], [1, 3], [2]]], sft_loss, count, draws=0)
        return self.rank


def main() -> None:
    args = arguments(__doc__.splitlines()[0])
    remedies = Remedies()
    logging.getLogger("rlhf_dist").addHandler(remedies)
    rows = []
    with tempfile.TemporaryDirectory() as root:
        learner = Learner(Path(root))
        for family in QUICK if args.quick else families():
            if (row := sweep(family, learner, Path(root) / family, remedies)) is not None:
                rows.append(row)
                print({name: value for name, value in row.items() if value}, flush=True)
    made = [row for row in rows if row["outcome"] != "not made"]
    figures = {
        name: float(sum(row["outcome"] == name for row in made)) for name in ("right", "remedied", "refused", "wrong")
    }
    figures["vllm_equal"] = float(sum(row["vllm"] == "equal" for row in made))
    publish("architectures", {**figures, "not_made": float(len(rows) - len(made))}, rows, args.json)


def sweep(family: str, learner: Learner, folder: Path, remedies: Remedies) -> dict[str, Any] | None:
    """One row of the table."""
    from transformers import AutoModelForCausalLM

    row: dict[str, Any] = {
        "family": family,
        "outcome": "",
        "policy": "",
        "scorer": "",
        "file": "",
        "engine": "",
        "vllm": "",
        "what": "",
    }
    sequences = [np.random.default_rng(0).integers(3, VOCABULARY, n).astype(np.int32) for n in LENGTHS]
    try:
        write_small(family, folder, kind=AutoModelForCausalLM)
        own = own_log_probs(
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager"), sequences
        )
    except Exception as error:
        return {**row, "outcome": "not made", "what": one_line(error)}
    remedies.said.clear()
    steps: dict[str, Callable[[], str]] = {
        "policy": lambda: policy(folder, sequences, own),
        "scorer": lambda: scorer(family, folder.with_name(f"{family}-reward"), sequences),
        "file": lambda: saved(learner.trained(folder, sequences), folder.with_name(f"{family}-saved")),
        "engine": lambda: engine(learner.rank, folder),
        "vllm": lambda: vllm(learner.rank, folder),
    }
    for name, step in steps.items():
        row[name], told = judged(step)
        row["what"] = row["what"] or told
        if name == "policy" and row[name] != "equal":
            break
    found = [row[name] for name in steps]
    if "wrong" in found:
        row["outcome"] = "wrong"
    elif row["policy"] == "refused":
        row["outcome"] = "refused"
    else:
        row["outcome"] = "remedied" if remedies.said else "right"
        row["what"] = "; ".join(dict.fromkeys(remedies.said)) + ("; " + row["what"] if row["what"] else "")
    return row


def judged(step: Callable[[], str]) -> tuple[str, str]:
    """`equal`, `refused` with a sentence, `wrong` with what was found, or what the step says itself."""
    from rlhf_dist.errors import RunError, UserError

    try:
        return step(), ""
    except (UserError, RunError) as error:
        return "refused", one_line(error)
    except Exception as error:
        return "wrong", f"{type(error).__name__}: {one_line(error)}"


@torch.no_grad()
def own_log_probs(lm: Any, sequences: list[Any]) -> list[torch.Tensor]:
    """What transformers itself says of each sequence's tokens but the first."""
    found = []
    for tokens in sequences:
        ids = torch.from_numpy(tokens).long()
        logits = lm.eval()(input_ids=ids[None]).logits[0, :-1].float()
        found.append(torch.log_softmax(logits, -1).gather(-1, ids[1:, None])[:, 0])
    return found


@torch.no_grad()
def policy(folder: Path, sequences: list[Any], own: list[torch.Tensor]) -> str:
    from rlhf_dist.models import PolicyModel, load_policy, pack

    model = PolicyModel(load_policy(str(folder), dtype=torch.float32))
    selected = [range(len(tokens) - 1) for tokens in sequences]
    for mode in (False, True, True):
        model.train(mode)
        for rows in ([[0]], [[1]], *PACKED):
            order = [number for row in rows for number in row]
            said = model(pack(sequences, selected, rows))[0].split([len(own[number]) for number in order])
            same(said, [own[number] for number in order], f"{'training' if mode else 'evaluation'} mode, rows {rows}")
    return "equal"


@torch.no_grad()
def scorer(family: str, folder: Path, sequences: list[Any]) -> str:
    """A reward model of the family against its own forward; `no class` where transformers has none, or cannot run its own."""
    from transformers import AutoModelForSequenceClassification

    from rlhf_dist.models import ValueModel, load_value_model, pack

    try:
        write_small(family, folder, kind=AutoModelForSequenceClassification)
        own = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
        ids = [torch.from_numpy(tokens).long()[None] for tokens in sequences]
        theirs = [own(input_ids=each, attention_mask=torch.ones_like(each)).logits[0].mean()[None] for each in ids]
    except Exception:  # nothing of ours ran yet
        return "no class"
    model = ValueModel(load_value_model(str(folder), dtype=torch.float32))
    for rows in PACKED:
        said = model(pack(sequences, [range(len(tokens) - 1, len(tokens)) for tokens in sequences], rows)).split(1)
        same(said, [theirs[number] for row in rows for number in row], f"scores, rows {rows}")
    return "equal"


def saved(rank: Any, folder: Path) -> str:
    """What the folder holds after training, against what was trained, by transformers' own forward of both."""
    from transformers import AutoModelForCausalLM

    rank.save("policy", folder)
    rank.written(folder)
    read = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        (own,) = own_log_probs(read, [np.asarray(PROBE)])
    same([torch.tensor(rank.probe(PROBE))], [own], "what was saved")
    return "equal"


def engine(rank: Any, folder: Path) -> str:
    """The transformers engine with the learner's weights: its probe, and the log-probs of what it samples."""
    from rlhf_dist.records import RowKey, SampleRequest, Sampling
    from rlhf_dist.rollout.transformers_engine import TransformersEngine

    tables, names = published(rank)
    sampling = Sampling(max_new_tokens=6, temperature=1.0, top_p=1.0, top_k=0, stop=(), eos_token_ids=(2,))
    made = TransformersEngine(str(folder), sampling, dtype="float32", max_concurrent=4)
    made.load_weights(tables, names, version=1)
    same([torch.tensor(made.probe(PROBE))], [torch.tensor(rank.probe(PROBE))], "the engine's probe")
    for number, prompt in enumerate(((5, 6, 7), (8, 9, 10, 11, 12, 13), (14, 15))):
        made.add(SampleRequest(RowKey(0, number, 0), prompt, number))
    while made.running:
        for sample in made.step():
            whole = [*sample.prompt_tokens, *sample.response_tokens]
            learnt = torch.tensor(rank.probe(whole)[len(sample.prompt_tokens) - 1 :])
            same([torch.tensor(sample.log_probs)], [learnt], "sampled tokens' log-probs")
    return "equal"


def vllm(rank: Any, folder: Path) -> str:
    """vLLM with the learner's weights, in a process of its own."""
    import pyarrow as pa

    (kind,) = json.loads((folder / "config.json").read_text())["architectures"]
    if kind not in served_by_vllm():
        return "does not serve it"
    tables, names = published(rank)
    told = folder.with_name("vllm.json")
    files = [str(folder.with_name(f"bucket-{number}.arrow")) for number, _ in enumerate(tables)]
    for table, file in zip(tables, files, strict=True):
        with pa.OSFile(file, "wb") as out, pa.ipc.new_file(out, table.schema) as writer:
            writer.write_table(table)
    told.write_text(json.dumps({"folder": str(folder), "files": files, "names": names, "probe": PROBE}))
    code = "import sys; sys.path.insert(0, sys.argv[2]); import architectures; architectures.ask_vllm(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(told), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        timeout=VLLM_S,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        return f"does not serve it: {last_error(done.stderr)}"
    answer = json.loads(lines[-1])
    if "error" in answer:
        return f"does not serve it: {answer['error']}"
    apart = max(abs(a - b) for a, b in zip(answer["probe"], rank.probe(PROBE), strict=True))
    # A worker with such a difference is refused by its probe before its first sample.
    return "equal" if apart < TOLERANCE else f"differs by {apart:.2g}, and the probe stops it"


@cache
def served_by_vllm() -> frozenset[str]:
    """Names of the classes that vLLM knows."""
    code = "import json; from vllm import ModelRegistry; print(json.dumps([*ModelRegistry.get_supported_archs()]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=VLLM_S, check=True)
    return frozenset(json.loads(done.stdout.splitlines()[-1]))


def ask_vllm(told: str) -> None:
    """Print the probe of an engine with given weights (in a process of its own)."""
    import pyarrow as pa

    from rlhf_dist.records import Sampling
    from rlhf_dist.rollout.vllm_engine import ENVIRONMENT, VLLMEngine

    os.environ.update(ENVIRONMENT, VLLM_CPU_OMP_THREADS_BIND="nobind", TORCH_COMPILE_DISABLE="1")
    asked = json.loads(Path(told).read_text())
    sampling = Sampling(max_new_tokens=6, temperature=1.0, top_p=1.0, top_k=0, stop=(), eos_token_ids=(2,))
    try:
        made = VLLMEngine(
            asked["folder"],
            sampling,
            dtype="float32",
            max_sequence=96,
            max_concurrent=4,
            engine_options={"enforce_eager": True, "kv_cache_memory_bytes": 2**26},
        )
        tables = [pa.ipc.open_file(pa.memory_map(file)).read_all() for file in asked["files"]]
        made.load_weights(tables, asked["names"], version=1)
        print(json.dumps({"probe": made.probe(asked["probe"])}), flush=True)
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {one_line(error)}"}), flush=True)
    os._exit(0)


def published(rank: Any) -> tuple[list[Any], list[str]]:
    """The learner's weights as the store hands them out."""
    rank.plan_weights("policy", 2**20, "float32")
    *tables, sent = rank.weight_buckets()  # without ZeRO-3, on a CPU, they refer to the model's own memory
    return tables, [name for bucket in sent.names for name in bucket]


def same(said: Any, expected: Any, what: str) -> None:
    """Raise where two lists of tensors differ by more than the tolerance."""
    apart = max(float((a - b).abs().max()) for a, b in zip(said, expected, strict=True))
    if not apart < TOLERANCE:
        raise AssertionError(f"{what}: {apart:.2g} apart")


def one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


def last_error(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if "Error" in line]
    return (lines[-1] if lines else "it said nothing")[:200]


if __name__ == "__main__":
    main()
