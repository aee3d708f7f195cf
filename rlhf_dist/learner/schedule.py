"""Learning rate over the optimiser steps of a run: a share of the peak for each, none of them 0.

Steps count from 0, and step s of n with w of warm-up learns at peak times

    (s + 1) / (w + 1)                                    for s < w (torchtitan counts from 1 likewise)
    1                                                    after that: `constant_with_warmup`
    (n - s) / (n - w)                                    `linear`: the peak at s = w, 1 / (n - w) of it in the last step
    (1 + cos(pi (s - w) / (n - w))) / 2                  `cosine` (Loshchilov and Hutter 2017, arXiv:1608.03983, equation 5)
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch.optim.lr_scheduler import LambdaLR

from rlhf_dist.config import Optimizer


def share_of_peak(step: int, *, kind: str, warmup: int, total: int) -> float:
    """Share of the peak learning rate in one step; 0 only after the last.

    Args:
        step: counted from 0.
        kind: what `Optimizer.schedule` says.
        warmup: steps of warm-up.
        total: optimiser steps of the whole run.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if kind == "constant_with_warmup":
        return 1.0
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return 1.0 - done if kind == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))


def schedule_of(optimizer: torch.optim.Optimizer, settings: Optimizer, *, total_steps: int) -> LambdaLR:
    """The schedule that settings ask for, at its first step.

    Args:
        optimizer: whose learning rate it sets.
        settings: peak, warm-up and kind.
        total_steps: optimiser steps of the whole run.
    """
    warmup = round(settings.warmup * total_steps)
    return LambdaLR(optimizer, partial(share_of_peak, kind=settings.schedule, warmup=warmup, total=total_steps))


def move_to(schedule: LambdaLR, step: int) -> None:
    """Put a schedule where it is after `step` optimiser steps, at the learning rate that its own settings give there."""
    schedule.last_epoch = step
    rates = [base * share(step) for base, share in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    schedule._last_lr = rates
