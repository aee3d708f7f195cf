"""Which settings of the objective nothing reads, and which contradict each other: nobody should have to guess what took effect.

A setting that nothing reads is refused where somebody writes it (`Job.idle`). One that another choice fixes may be written with
the value that is fixed, and contradicts with any other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlhf_dist.algorithms.bounds import LEAST, MOST

if TYPE_CHECKING:
    from rlhf_dist.config.algorithm import Algorithm, Correction
    from rlhf_dist.config.rl import RLJob

WITH_CRITIC = ("gae_lambda", "gae_lambda_policy", "gae_length_alpha", "clip_value", "critic_warmup")
"""Settings that only a critic gives a meaning."""
PER_ANSWER = frozenset({"sequence_clip", "squared"})
"""Surrogates of whole answers, of which only a mean over answers is what their papers minimise."""


def idle_of_algorithm(a: Algorithm) -> dict[str, str]:
    """Settings that nothing reads, and what would; by their names."""
    in_loss, soft = a.pulls and a.kl_in == "loss", "expected `algorithm.surrogate: soft_gate` beside it"
    clips = a.surrogate in ("clip", "sequence_clip")
    own = ":" in a.baseline or ":" in a.scale
    conditions: dict[str, tuple[bool, str]] = {
        **dict.fromkeys(WITH_CRITIC, (not a.has_critic, "expected `algorithm.baseline: critic` beside it")),
        "gamma": (not a.has_critic and a.credit == "answer", "expected a critic, or `algorithm.credit: to_go`"),
        "running_decay": (
            a.baseline != "running_mean" and not own,
            "expected `algorithm.baseline: running_mean` beside it",
        ),
        "reference_samples": (a.baseline != "optimal_value", "expected `algorithm.baseline: optimal_value` beside it"),
        "clip_ratio": (not clips, f"expected a surrogate that clips, found {a.surrogate}"),
        "clip_ratio_high": (not clips, f"expected a surrogate that clips, found {a.surrogate}"),
        "dual_clip": (a.surrogate != "clip", "expected `algorithm.surrogate: clip` beside it"),
        "weight_cap": (a.surrogate != "weight_cap", "expected `algorithm.surrogate: weight_cap` beside it"),
        "gate_temperature": (a.surrogate != "soft_gate", soft),
        "gate_temperature_negative": (a.surrogate != "soft_gate", soft),
        "tau": (
            a.surrogate != "squared" and a.baseline != "optimal_value",
            "expected `algorithm.surrogate: squared` or `baseline: optimal_value` beside it",
        ),
        "anchor": (a.surrogate != "squared", "expected `algorithm.surrogate: squared` beside it"),
        "kl_in": (not a.pulls, "expected `algorithm.kl_coef` above 0 beside it"),
        "kl_estimator": (not in_loss, "expected `algorithm.kl_in: loss` beside a KL; in the reward it is k1"),
        "kl_gradient": (not in_loss, "expected `algorithm.kl_in: loss` beside a KL"),
        "kl_target_per": (a.kl_target is None, "expected `algorithm.kl_target` beside it"),
        "kl_horizon": (a.kl_target is None, "expected `algorithm.kl_target` beside it"),
        "reference_every": (not a.pulls_to_reference, "expected `algorithm.kl_coef` above 0 beside it"),
        "reference_mix": (a.reference_every is None, "expected `algorithm.reference_every` beside it"),
        "entropy_in": (not a.entropy_counts, "expected `algorithm.entropy_coef` above 0 beside it"),
        "entropy_lr": (a.entropy_target is None, "expected `algorithm.entropy_target` beside it"),
        "overlong_penalty": (not a.overlong_share, "expected `algorithm.overlong_share` above 0 beside it"),
        "filter_rounds": (not a.filter_groups, "expected `algorithm.filter_groups: true` beside it"),
    }
    return {name: instead for name, (idle, instead) in conditions.items() if idle}


def idle_of_correction(c: Correction) -> dict[str, str]:
    """The same of a correction."""
    if c.weight == "none":
        weight = "expected `correction.weight: token` or `sequence` beside it"
        return dict.fromkeys(("cap", "outside", "floor"), weight)
    zero = "expected `correction.outside: zero` beside it, since small weights are not lifted"
    return {"floor": zero} if c.outside == "truncate" else {}


def contradictions_of_algorithm(a: Algorithm) -> list[str]:
    """What of its settings contradicts what else of them; a sentence each."""
    return [sentence for found, sentence in (*_of_advantages(a), *_of_losses(a), *_of_coefficients(a)) if found]


def _of_advantages(a: Algorithm) -> list[tuple[bool, str]]:
    by_critic = [
        (
            a.has_critic and value != neutral,
            f"algorithm.{name} is {value} beside baseline critic; expected {neutral}, since a critic decides",
        )
        for name, value, neutral in (
            ("scale", a.scale, "none"),
            ("credit", a.credit, "answer"),
            ("select", a.select, "all"),
        )
    ]
    return [
        *by_critic,
        (
            a.credit == "to_go" and a.scale != "none",
            f"algorithm.scale is {a.scale} beside credit to_go, whose advantages are of tokens and not of answers; expected none",
        ),
        (
            a.select == "best" and (a.baseline != "none" or a.scale != "none"),
            f"algorithm.select best makes advantages of 0 and 1; baseline is {a.baseline} and scale {a.scale}, expected none "
            "and none",
        ),
        (
            a.select == "best" and a.credit == "to_go",
            "algorithm.credit is to_go beside select best, which credits whole answers; expected answer",
        ),
        (
            a.select == "best" and a.whiten_advantages,
            "algorithm.whiten_advantages would push the other answers down, which select best leaves as they are; expected "
            "false",
        ),
        (
            a.filter_groups and a.baseline in ("greedy", "optimal_value"),
            f"algorithm.filter_groups is not made for baseline {a.baseline}, which further prompts do not have; expected false",
        ),
        (
            a.gae_length_alpha is not None and a.gae_lambda_policy is not None,
            "algorithm.gae_length_alpha and gae_lambda_policy both say the policy's lambda; expected one",
        ),
        (
            a.reference_every is not None and a.baseline == "optimal_value",
            "algorithm.baseline optimal_value is of the reference at the start; expected no reference_every",
        ),
    ]


def _of_losses(a: Algorithm) -> list[tuple[bool, str]]:
    squared = a.surrogate == "squared"
    return [
        (
            a.surrogate in PER_ANSWER and a.aggregate != "sequence_mean",
            f"algorithm.surrogate {a.surrogate} is a loss of whole answers; algorithm.aggregate is {a.aggregate}, expected "
            "sequence_mean",
        ),
        (
            squared and (a.has_critic or a.credit == "to_go" or a.whiten_advantages),
            "algorithm.surrogate squared regresses an answer's log-ratio on its reward; expected a baseline other than critic, "
            "credit answer and whiten_advantages false",
        ),
        (
            squared and a.anchor == "reference" and a.pulls,
            f"algorithm.kl_coef is {a.kl_coef:g} beside a squared loss anchored at the reference, whose algorithm.tau is that "
            "weight; expected 0",
        ),
        (
            a.pulls and a.kl_in == "loss" and a.kl_estimator == "k1" and a.kl_gradient == "estimator",
            "algorithm.kl_gradient estimator beside kl_estimator k1 pulls nowhere: k1's own gradient is 0 in expectation; "
            "expected kl_gradient exact, or k2 or k3",
        ),
    ]


def _of_coefficients(a: Algorithm) -> list[tuple[bool, str]]:
    return [
        (
            a.entropy_target is not None and not a.entropy_coef,
            "algorithm.entropy_coef is 0 beside entropy_target, and a dual coefficient never leaves 0; expected a start above 0, "
            "e.g. 0.01",
        ),
        (
            a.kl_target is not None and not LEAST <= a.kl_coef <= MOST,
            f"algorithm.kl_coef is {a.kl_coef:g} beside algorithm.kl_target {a.kl_target or 0:g}; expected {LEAST:g} to "
            f"{MOST:g}, between which the adaptive coefficient stays",
        ),
    ]


def idle_of_run(job: RLJob) -> dict[str, str]:
    """Settings of a run that nothing reads, and what would; by their keys."""
    critic, rl, algorithm = job.learner.critic, job.rl, job.algorithm
    head = "expected `learner.policy`, by which a head is trained too"
    none = "leave it out, since there is no critic"
    one_step = rl.epochs * rl.mini_batches == 1
    several = "expected it beside `rl.epochs` or `rl.mini_batches` above 1: the policy of an only step is the old one"
    unscored = "expected it beside a `reward` with a weight"
    idle = {
        "algorithm.positive_nll_coef": (not job.has_reward, unscored),
        "correction.proximal": (
            job.ratio_is_one,
            "expected it beside `rl.epochs` or `rl.mini_batches` above 1: an only step sees the policy that sampled",
        ),
        "learner.value": (critic != "model", head if critic == "value_head" else none),
        "critic": (critic != "model", none if critic == "none" else head),
        "algorithm.value_coef": (critic != "value_head", "expected it beside learner.critic value_head alone"),
        "algorithm.teacher_coef": (job.teacher is None, "expected it beside `teacher`"),
        "scoring.reference_workers": (
            job.is_own_reference,
            "expected it beside `reference`: the policy with its adapters off needs no worker",
        ),
        "scoring.reference_on": (
            job.is_own_reference,
            "expected it beside `reference`: the policy with its adapters off needs no other",
        ),
        "scoring.teacher_workers": (job.teacher is None, "expected it beside `teacher`"),
        "scoring.teacher_on": (job.teacher is None, "expected it beside `teacher`"),
        "scoring.tensor_parallel": (
            max(map(job.devices_of_scorer, job.scoring_workers)) == 1,
            "expected it above 1, beside a worker that holds a model",
        ),
        "scoring.frozen_on_host": (
            not job.frozen,
            "expected `scoring.reference_on` or `scoring.teacher_on: learner` beside it",
        ),
        **{f"scoring.{role}_workers": (True, f"expected `scoring.{role}_on: workers`") for role in job.frozen},
        "rl.max_policy_kl": (rl.epochs == 1, "expected it beside `rl.epochs` above 1, which it ends"),
        "rl.ptx_batch": (rl.ptx_coef == 0, "expected it beside `rl.ptx_coef` above 0"),
        "demonstrations": (rl.ptx_coef == 0, "expected it beside `rl.ptx_coef` above 0"),
        "checkpoints_kept": (job.checkpoint_every == 0, "expected it beside `checkpoint_every`"),
        "checkpoints_kept.by": (
            job.checkpoints_kept.best == 0,
            "expected it beside `checkpoints_kept.best` above 0",
        ),
        "rl.stop_on.patience": (rl.stop_on.gold_drop is None, "expected it beside `rl.stop_on.gold_drop`"),
        "rl.stop_on.ratio_above": (one_step, several),
        "rl.stop_on.policy_kl_above": (one_step, several),
        "rl.stop_on.then": (not rl.stop_on.bands, "expected it beside a band, e.g. `rl.stop_on.kl_above`"),
        "rl.stop_on.roll_backs": (rl.stop_on.then == "stop", "expected it beside `rl.stop_on.then: roll_back`"),
    }
    found = {key: instead for key, (is_idle, instead) in idle.items() if is_idle}
    found |= {f"algorithm.{name}": instead for name, instead in algorithm.idle().items()}
    return found | {f"correction.{name}": instead for name, instead in job.correction.idle().items()}
