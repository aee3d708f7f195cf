"""`rlhf-dist show`: the samples that a run trained on, read back from its experience files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlhf_dist.config import read_yaml
from rlhf_dist.errors import DataError
from rlhf_dist.run_folder.names import CONFIG, POLICY, experience_files
from rlhf_dist.store.kept import read_kept
from rlhf_dist.store.row import Array, Row, rows_of


def read_iteration(run: Path, iteration: int | None) -> Any:
    """The kept batch of an iteration (`store.schema.EXPERIENCE`), the last one by default.

    Raises:
        DataError: the run kept no experience, or not that iteration; says which there are.
    """
    files = experience_files(run)
    if not files:
        raise DataError(f"{run}/experience: no samples; they are kept with `--set experience.keep=true`")
    chosen = max(files) if iteration is None else iteration
    if chosen not in files:
        raise DataError(f"{run}/experience: no iteration {chosen}; there are {min(files)} to {max(files)}")
    return read_kept(files[chosen])


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
    chosen = ranked(read_iteration(run, iteration), worst=worst, best=best).combine_chunks()
    tokenizer = _tokenizer(run)
    for facts, row in zip(chosen.to_pylist(), rows_of(chosen.to_batches()[0]), strict=True):
        log_probs = np.asarray(facts["rollout_log_probs"])
        # A policy with adapters is its own reference, and the learner, who asks it, writes no samples.
        reference = np.asarray(facts["ref_log_probs"]) if "ref_log_probs" in facts else None
        kl = "" if reference is None else f"KL {float((log_probs - reference).sum()):.2f} nats, "
        console.rule(
            f"iteration {facts['iteration']}, prompt {facts['prompt_id']}, answer {facts['sample_index']}: "
            f"score {facts['score']:.3f}, {kl}{len(log_probs)} tokens, "
            f"{facts['finish_reason']}, policy version {', '.join(str(version) for version, _ in row.versions)}"
        )
        # Special tokens are what one asks for who asks for tokens.
        console.print(Text(tokenizer.decode(row.prompt, skip_special_tokens=not tokens), style="dim"))
        console.print(Text(tokenizer.decode(row.answer, skip_special_tokens=not tokens)))
        if tokens:
            console.print(_token_table(row, log_probs, reference, tokenizer))


def _token_table(row: Row, log_probs: Array, reference: Array | None, tokenizer: Any) -> Table:
    compared = [] if reference is None else ["reference", "difference"]
    table = Table("#", "id", "token", "log-prob, nats", *compared)
    for number, (token, own) in enumerate(zip(row.tokens[row.sampled], log_probs, strict=True)):
        text = Text(repr(tokenizer.decode([token])))
        others = [] if reference is None else [f"{reference[number]:.3f}", f"{own - reference[number]:+.3f}"]
        table.add_row(str(number), str(token), text, f"{own:.3f}", *others)
    return table


def _tokenizer(run: Path) -> Any:
    from rlhf_dist.models import load_tokenizer

    own = run / POLICY
    return load_tokenizer(str(own) if own.is_dir() else read_yaml(run / CONFIG)["policy"])
