"""Dawid and Skene's model of annotators, smoothed, for pairs whose sides mean nothing.

Dawid and Skene 1979, "Maximum likelihood estimation of observer error-rates using the EM algorithm": what is right is hidden,
each annotator errs at a rate of their own, and EM estimates both. Their confusion matrices have one free number here, the
probability of choosing the better answer: which of two answers stands first is nothing that anybody could err about. Beta
pseudo-counts on it (EM then climbs to the maximum a posteriori) keep annotators of few votes near a careful person's rate;
without them EM takes some for contrary, and turns their votes round.
"""

from __future__ import annotations

from typing import Any

import numpy as np

RIGHT, WRONG = 8.0, 2.0
"""Right and wrong choices that everybody is granted beforehand."""
STEPS = 200
CLOSE = 1e-6
"""Change of every reliability at which EM has arrived."""


def dawid_skene_arrays(
    task: np.ndarray[Any, Any], worker: np.ndarray[Any, Any], first_better: np.ndarray[Any, Any]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """What is right of each task, and how reliable each annotator is; the order of the votes does not matter.

    Args:
        task: number of each vote's task, from 0. [votes]
        worker: number of each vote's annotator, from 0. [votes]
        first_better: whether the vote is for the first answer, or how far, from 0 to 1: at 1/2, a tie, it says nothing. [votes]

    Returns:
        P(first answer is better) [tasks], 1/2 of one without votes; each annotator's probability of choosing the better one where
        they choose [workers].
    """
    order = np.lexsort((first_better, worker, task))  # sums of floats in another order are other sums
    task, worker, sign = task[order], worker[order], 2.0 * first_better[order] - 1.0
    tasks, workers = (int(each.max(initial=-1)) + 1 for each in (task, worker))
    weight = np.abs(sign)
    votes = np.bincount(worker, weight, workers)
    lead = np.bincount(task, sign, tasks) / np.maximum(np.bincount(task, weight, tasks), 1e-9)  # of the first answer
    reliability = np.full(workers, np.nan)
    for _ in range(STEPS):
        hits = (votes + np.bincount(worker, sign * lead[task], workers)) / 2
        before, reliability = reliability, (hits + RIGHT) / (votes + RIGHT + WRONG)
        evidence = np.log(reliability / (1 - reliability))
        lead = np.tanh(np.bincount(task, sign * evidence[worker], tasks) / 2)
        if np.max(np.abs(reliability - before), initial=0.0) < CLOSE:
            break
    return (1 + lead) / 2, reliability
