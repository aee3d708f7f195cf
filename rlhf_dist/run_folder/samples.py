"""`rlhf-dist show`: the samples that a run trained on, read back from its experience files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlhf_dist.errors import DataError


def read_iteration(run: Path, iteration: int | None) -> Any:
    """The kept batch of an iteration (`store.schema.EXPERIENCE`), the last one by default.

    Raises:
        DataError: the run kept no experience, or not that iteration; says which there are.
    """
    import pyarrow as pa

    kept = sorted((run / "experience").glob("iteration=*/batch.arrow"))
    if not kept:
        raise DataError(f"{run}/experience: no samples; they are kept with `--set experience.keep=true`")
    files = {int(file.parent.name.partition("=")[2]): file for file in kept}
    chosen = max(files) if iteration is None else iteration
    if chosen not in files:
        raise DataError(f"{run}/experience: no iteration {chosen}; there are {min(files)} to {max(files)}")
    return pa.ipc.open_file(pa.memory_map(str(files[chosen]))).read_all()


def ranked(table: Any, *, worst: int | None, best: int | None) -> Any:
    """The samples with the lowest and then the highest scores; the first ten where neither is asked for."""
    order = np.argsort(table["score"].to_numpy(), kind="stable")
    if worst is None and best is None:
        return table.slice(0, 10)
    chosen = [*order[: worst or 0], *(order[::-1][: best or 0])]
    return table.take(chosen)


def show_samples(run: Path, *, iteration: int | None, worst: int | None, best: int | None, tokens: bool) -> None:
    """Print samples with their text, score and KL, and on request each token with its log-probs."""
    console = Console()
    rows = ranked(read_iteration(run, iteration), worst=worst, best=best).to_pylist()
    tokenizer = _tokenizer(run)
    for row in rows:
        log_probs, reference = np.asarray(row["rollout_log_probs"]), np.asarray(row["ref_log_probs"])
        console.rule(
            f"iteration {row['iteration']}, prompt {row['prompt_id']}, answer {row['sample_index']}: score {row['score']:.3f}, "
            f"KL {float((log_probs - reference).sum()):.2f} nats, {len(log_probs)} tokens, {row['finish_reason']}, "
            f"policy version {row['policy_version']}"
        )
        console.print(Text(tokenizer.decode(row["prompt_tokens"]), style="dim"))
        console.print(Text(tokenizer.decode(row["response_tokens"])))
        if tokens:
            console.print(_token_table(row, tokenizer))


def _token_table(row: dict[str, Any], tokenizer: Any) -> Table:
    table = Table("#", "id", "token", "log-prob, nats", "reference", "difference")
    columns = zip(row["response_tokens"], row["rollout_log_probs"], row["ref_log_probs"], strict=True)
    for number, (token, own, reference) in enumerate(columns):
        text = Text(repr(tokenizer.decode([token])))
        table.add_row(str(number), str(token), text, f"{own:.3f}", f"{reference:.3f}", f"{own - reference:+.3f}")
    return table


def _tokenizer(run: Path) -> Any:
    from rlhf_dist.models import load_tokenizer

    config = yaml.safe_load((run / "config.yaml").read_text())
    own = run / "policy"
    return load_tokenizer(str(own) if own.is_dir() else config["policy"])
