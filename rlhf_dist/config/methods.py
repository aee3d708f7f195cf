"""The named methods: each a row of settings, with its formula, its source, and what it biases.

Two methods differ where their rows do, and nowhere else. Figures of bias are those of `tests/algorithms/test_tree.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

MethodName = Literal[
    "ppo",
    "reinforce",
    "max_entropy",
    "rloo",
    "reinforce_pp",
    "reinforce_pp_baseline",
    "grpo",
    "dr_grpo",
    "dapo",
    "gspo",
    "cispo",
    "sapo",
    "remax",
    "opo",
    "kimi",
    "a_star",
    "raft",
    "distill",
]


@dataclass(frozen=True)
class Method:
    """A method by its settings."""

    title: str
    source: str
    advantage: str
    """The formula of A."""
    loss: str
    """The formula of what is minimised, on a token or an answer."""
    bias: str
    """What its expected gradient is, against that of E r - beta KL."""
    algorithm: Mapping[str, Any] = field(default_factory=dict)
    """What differs from `Algorithm`'s own defaults, which are PPO's."""
    rl: Mapping[str, Any] = field(default_factory=dict)
    rollout: Mapping[str, Any] = field(default_factory=dict)


CLIP = "-min(r A, clip(r, 1 - e, 1 + e) A), r = pi / pi_old"
_NO_CRITIC: dict[str, Any] = {"whiten_advantages": False}
_GROUP: dict[str, Any] = {**_NO_CRITIC, "baseline": "group_mean", "kl_coef": 0.0}
_GRPO_STD = "the spread weighs prompts by difficulty (2.4 at 2 % right, 1.7 at 50 %, of 8 answers)"

METHODS: Mapping[str, Method] = {
    "ppo": Method(
        "Proximal policy optimisation",
        "Schulman et al. 2017, arXiv:1707.06347; for language models Ziegler et al. 2019, arXiv:1909.08593",
        "GAE of r - beta k1 with the critic's values, whitened over the batch",
        CLIP,
        "as far as the critic is wrong (lambda below 1), and by token_mean's random length (cos 0.99)",
    ),
    "reinforce": Method(
        "REINFORCE, the policy gradient",
        "Williams 1992; running mean of rewards as in SPIRAL, arXiv:2506.24119",
        "R - b, b a running mean of earlier iterations' rewards",
        "-A log pi",
        "none; its variance is large where prompts differ",
        {**_NO_CRITIC, "baseline": "running_mean", "surrogate": "plain", "aggregate": "fixed_length"},
    ),
    "max_entropy": Method(
        "Maximum entropy: soft policy gradient with a dual temperature",
        "Haarnoja et al. 2018, arXiv:1812.05905, section 5, for tokens",
        "leave-one-out of R - alpha sum log pi; log alpha += lr (target - entropy)",
        CLIP,
        "none at the alpha of the moment",
        {
            **_NO_CRITIC,
            "baseline": "leave_one_out",
            "aggregate": "fixed_length",
            "kl_coef": 0.0,
            "entropy_in": "reward",
            "entropy_coef": 0.01,
            "entropy_target": 1.0,
        },
        rollout={"samples_per_prompt": 4},
    ),
    "rloo": Method(
        "REINFORCE leave-one-out",
        "Kool et al. 2019; Ahmadian et al. 2024, arXiv:2402.14740, section 3.2",
        "R_i - mean of the other answers' R, R = r - beta KL",
        CLIP,
        "none: exactly the policy gradient of E r - beta KL",
        {**_NO_CRITIC, "baseline": "leave_one_out", "aggregate": "fixed_length"},
        rollout={"samples_per_prompt": 4},
    ),
    "reinforce_pp": Method(
        "REINFORCE++",
        "Hu 2025, arXiv:2501.03262",
        "return to go of r - beta k1 per token, whitened over the batch",
        CLIP,
        "one baseline for all prompts: of large variance where prompts differ; token_mean's random length",
        {"baseline": "none", "credit": "to_go", "kl_coef": 0.01},
    ),
    "reinforce_pp_baseline": Method(
        "REINFORCE++ with a group baseline",
        "Hu 2025, arXiv:2501.03262, section 3.2",
        "R_i - mean R of the group, whitened over the batch's tokens",
        f"{CLIP}; + beta k2 on each token",
        "whitening weighs answers by length (cos 0.85 within one prompt); k2 on tokens misses where tokens lead (cos 0.85)",
        {
            "baseline": "group_mean",
            "kl_coef": 0.01,
            "kl_in": "loss",
            "kl_estimator": "k2",
            "kl_gradient": "estimator",
        },
        rollout={"samples_per_prompt": 8},
    ),
    "grpo": Method(
        "Group relative policy optimisation",
        "Shao et al. 2024, arXiv:2402.03300, equation 3",
        "(R_i - mean R) / std R of the group",
        f"mean over answers of token means of {CLIP}; + beta k3 on each token",
        f"{_GRPO_STD}; 1 / length favours long wrong answers (cos 0.89); k3 in the loss is the forward KL of an answer",
        {
            **_GROUP,
            "scale": "group",
            "aggregate": "sequence_mean",
            "kl_coef": 0.04,
            "kl_in": "loss",
            "kl_estimator": "k3",
            "kl_gradient": "estimator",
        },
        rollout={"samples_per_prompt": 64},
    ),
    "dr_grpo": Method(
        "GRPO done right",
        "Liu et al. 2025, arXiv:2503.20783",
        "R_i - mean R of the group",
        f"{CLIP}, summed, over answers times the longest length",
        "only a factor 1 - 1/G",
        {**_GROUP, "aggregate": "fixed_length"},
        rollout={"samples_per_prompt": 8},
    ),
    "dapo": Method(
        "Decoupled clip and dynamic sampling",
        "Yu et al. 2025, arXiv:2503.14476",
        "(R_i - mean R) / std R of the group; groups without spread are sampled anew; R falls over the last fifth of the length",
        "-min(r A, clip(r, 1 - 0.2, 1 + 0.28) A), mean over all tokens",
        f"{_GRPO_STD}; prompts that are always right or wrong are left out; token_mean's random length (cos 0.99)",
        {
            **_GROUP,
            "scale": "group",
            "clip_ratio_high": 0.28,
            "filter_groups": True,
            "overlong_share": 0.2,
        },
        rollout={"samples_per_prompt": 16},
    ),
    "gspo": Method(
        "Group sequence policy optimisation",
        "Zheng et al. 2025, arXiv:2507.18071",
        "(R_i - mean R) / std R of the group",
        "-min(s A, clip(s, 1 - 3e-4, 1 + 4e-4) A), s = (pi / pi_old of the answer)^(1 / length), mean over answers",
        f"{_GRPO_STD}; 1 / length (cos 0.89)",
        {
            **_GROUP,
            "scale": "group",
            "surrogate": "sequence_clip",
            "clip_ratio": 3e-4,
            "clip_ratio_high": 4e-4,
            "aggregate": "sequence_mean",
        },
        rl={"mini_batches": 4},
        rollout={"samples_per_prompt": 16},
    ),
    "cispo": Method(
        "Clipped importance weights",
        "MiniMax 2025, arXiv:2506.13585; the cap of ScaleRL, arXiv:2510.13786",
        "(R_i - mean R) / std R of the group",
        "-min(r, 5) A log pi with the weight held fixed, mean over all tokens",
        f"{_GRPO_STD}; token_mean's random length (cos 0.99); weights above the cap",
        {**_GROUP, "scale": "group", "surrogate": "weight_cap"},
        rollout={"samples_per_prompt": 16},
    ),
    "sapo": Method(
        "Soft adaptive policy optimisation",
        "Gao et al. 2025, arXiv:2511.20347",
        "(R_i - mean R) / std R of the group",
        "-(4 / t) sigmoid(t (r - 1)) A, t 1.0 for A > 0 and 1.05 else, mean over answers of token means",
        f"{_GRPO_STD}; 1 / length (cos 0.89)",
        {**_GROUP, "scale": "group", "surrogate": "soft_gate", "aggregate": "sequence_mean"},
        rollout={"samples_per_prompt": 8},
    ),
    "remax": Method(
        "ReMax",
        "Li et al. 2023, arXiv:2310.10505",
        "R - r of the greedy answer to the prompt",
        "-A log pi",
        "none; one more answer for each prompt, and often more variance than leave-one-out",
        {**_NO_CRITIC, "baseline": "greedy", "surrogate": "plain", "aggregate": "fixed_length"},
    ),
    "opo": Method(
        "On-policy with the optimal baseline",
        "Hao et al. 2025, arXiv:2505.23585",
        "R_i - sum T_j R_j / sum T_j over the group, T the lengths",
        "-A log pi",
        "the answer's own reward is in its baseline: of order 1/G (cos 0.99 with 3)",
        {**_GROUP, "baseline": "length_weighted", "surrogate": "plain", "aggregate": "fixed_length"},
        rollout={"samples_per_prompt": 8},
    ),
    "kimi": Method(
        "Mirror descent of Kimi k1.5",
        "Kimi Team 2025, arXiv:2501.12599, section 2.3.2",
        "R_i - mean R of the group, for tau log E exp(R / tau)",
        "(A - tau log(pi / pi_old))^2 / (2 tau), the answer's own log-ratio",
        "at pi_old the policy gradient times 1 - 1/G; the mean stands for the soft maximum (Var R / (2 tau) too low)",
        {**_GROUP, "surrogate": "squared", "aggregate": "sequence_mean"},
        rollout={"samples_per_prompt": 8},
    ),
    "a_star": Method(
        "Regression on the optimal value",
        "Brantley et al. 2025, arXiv:2505.20686 (A*-PO)",
        "R - V*, V* = tau log mean exp(R / tau) over answers of the reference, made once",
        "(A - tau log(pi / pi_ref))^2 / (2 tau)",
        "none at its optimum, whatever sampled the answers; V* is estimated from finitely many",
        {
            **_NO_CRITIC,
            "baseline": "optimal_value",
            "surrogate": "squared",
            "anchor": "reference",
            "aggregate": "sequence_mean",
            "kl_coef": 0.0,
        },
    ),
    "raft": Method(
        "Reward-ranked fine-tuning: the best of n",
        "Dong et al. 2023, arXiv:2304.06767",
        "1 for the best answer of a prompt, 0 for the others",
        "-A log pi",
        "another objective: imitates the best of n; no negative signal, so entropy falls",
        {**_NO_CRITIC, "baseline": "none", "select": "best", "surrogate": "plain", "kl_coef": 0.0},
        rollout={"samples_per_prompt": 8},
    ),
    "distill": Method(
        "On-policy distillation",
        "Agarwal et al. 2023, arXiv:2306.13649; Lu 2025, Thinking Machines",
        "log teacher - log pi_old of the token itself",
        CLIP,
        "the reverse KL to the teacher of each token, where tokens lead left out (gamma 1 puts it in)",
        {
            **_NO_CRITIC,
            "baseline": "none",
            "credit": "to_go",
            "gamma": 0.0,
            "kl_coef": 0.0,
            "teacher_coef": 1.0,
        },
    ),
}


def method_named(name: object) -> Method | None:
    """The method, or None where it is none's name, as checks say later."""
    return METHODS.get(name) if isinstance(name, str) else None
