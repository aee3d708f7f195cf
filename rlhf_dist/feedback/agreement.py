"""How far annotators agree, beyond what chance would give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Agreement:
    """Of several annotators on comparisons."""

    alpha: float
    """Krippendorff's alpha (2004), nominal: 1 is full agreement, 0 chance; NaN where all said the same."""
    kappa: dict[tuple[str, str], float]
    """Cohen's kappa (1960) of each pair of annotators with shared questions; NaN where both said one thing only."""
    shared: int
    """Questions that two or more judged."""


def agreement(
    task: np.ndarray[Any, Any], worker: np.ndarray[Any, Any], code: np.ndarray[Any, Any], names: Sequence[str]
) -> Agreement | None:
    """Agreement on the questions that two or more annotators judged; None where there are none.

    Args:
        task: number of each judgement's question, from 0; nobody has two of one question. [judgements]
        worker: number of each judgement's annotator, from 0. [judgements]
        code: what was said, a number from 0. [judgements]
        names: of the annotators.
    """
    judges = np.bincount(task)
    if not (judges > 1).any():
        return None
    found = cohen_kappas(task, worker, code, len(names))
    pairs = [(int(i), int(j)) for i, j in np.argwhere(np.triu(found[1], 1))]
    kappa = {(names[i], names[j]): float(found[0][i, j]) for i, j in pairs}
    return Agreement(krippendorff_alpha(task, code), kappa, int((judges > 1).sum()))


def krippendorff_alpha(task: np.ndarray[Any, Any], code: np.ndarray[Any, Any]) -> float:
    """Alpha for nominal data, 1 - D_o / D_e, of any number of annotators per question.

    Krippendorff 2011, "Computing Krippendorff's alpha-reliability", C: each question with m > 1 judgements has all ordered pairs
    of them, of weight 1 / (m - 1), in the matrix of coincidences.

    Args:
        task: number of each judgement's question, from 0. [judgements]
        code: what was said, a number from 0. [judgements]

    Returns:
        1 for full agreement, 0 for chance; NaN where nothing is shared, or all said the same.
    """
    codes = int(code.max(initial=0)) + 1
    counts = np.bincount(task * codes + code, minlength=(int(task.max(initial=0)) + 1) * codes).reshape(-1, codes)
    judges = counts.sum(1)
    counts, judges = counts[judges > 1], judges[judges > 1]
    said = counts.sum(0)  # n_c
    n = said.sum()
    expected = n**2 - (said**2).sum()  # n (n - 1) D_e
    if expected == 0:
        return math.nan
    observed = ((judges**2 - (counts**2).sum(1)) / (judges - 1)).sum()  # n D_o
    return float(1 - (n - 1) * observed / expected)


def cohen_kappas(
    task: np.ndarray[Any, Any], worker: np.ndarray[Any, Any], code: np.ndarray[Any, Any], workers: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Cohen's kappa of all pairs of annotators at once, (p_o - p_e) / (1 - p_e).

    Args:
        task: number of each judgement's question, from 0; nobody has two of one question. [judgements]
        worker: number of each judgement's annotator, from 0. [judgements]
        code: what was said, a number from 0. [judgements]
        workers: how many annotators there are.

    Returns:
        kappa, NaN where two said one thing only, or shared nothing, and the number of questions that two shared, both
        [workers, workers].
    """
    from scipy.sparse import csr_array

    codes = int(code.max(initial=0)) + 1
    shape = (workers * codes, int(task.max(initial=0)) + 1)
    said = csr_array((np.ones(len(task)), (worker * codes + code, task)), shape)
    tables = (said @ said.T).toarray().reshape(workers, codes, workers, codes)  # how often i said c where j said k
    shared = tables.sum((1, 3))
    alike = np.einsum("icjc->ij", tables)
    chance = np.einsum("icj,jci->ij", tables.sum(3), tables.sum(3))  # p_e shared^2
    room = shared**2 - chance
    kappa = np.full(shared.shape, math.nan)
    np.divide(shared * alike - chance, room, out=kappa, where=room > 0)
    return kappa, shared.astype(int)
