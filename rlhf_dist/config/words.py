"""The resolved objective in words: what `--dry-run` says is estimated and minimised, and what that biases.

Every setting that is in effect is in them, and none that is not (`tests/config/test_words.py`).
"""

from __future__ import annotations

from rlhf_dist.config.algorithm import Algorithm, Correction
from rlhf_dist.config.methods import METHODS
from rlhf_dist.config.rl import RLJob

RATIO = "pi / pi_old"
KL_GRADIENTS = {
    "exact": "with the gradient of the expected KL, what later tokens cost included",
    "k2": "with k2's own gradient on each token: that of the KL where tokens are, without where they lead (cos 0.85)",
    "k3": "with k3's own gradient on each token: that of the forward KL, reference to policy, without where tokens lead",
}
"""What the KL in the loss follows, by `kl_gradient: exact` or by the estimator; k1's own is 0 in expectation, and refused."""
BOUNDED = ("clip", "sequence_clip", "weight_cap", "soft_gate")
"""Surrogates that limit what is learnt where the ratio is far from 1."""
AGGREGATES = {
    "fixed_length": "summed, over answers times the {longest} tokens of the longest",
    "token_mean": "mean over all tokens of the mini-batch",
    "sequence_mean": "mean over answers of the mean over their tokens",
    "prompt_mean": "mean over prompts of the mean over all tokens of a prompt's answers",
}


def in_words(config: RLJob) -> list[str]:
    """What a run estimates and minimises, a line for each part of it: `part: what`."""
    algorithm, answers = config.algorithm, config.rollout.samples_per_prompt
    longest = config.rollout.max_new_tokens
    said = {
        "method": _method(config),
        "reward": _reward(config),
        "advantage": advantage(algorithm, answers),
        "policy loss": _policy_loss(config),
        "KL": kl(algorithm),
        "entropy": entropy(algorithm),
        "filter": _filter(algorithm),
        "cut answers": f"left out of the loss, at {longest} tokens" if algorithm.truncated == "mask" else "",
        "critic": _critic(config),
        "reference": _reference(config),
        "teacher": f"{config.teacher}, of whose log-probs the reward of a token has a part" if config.teacher else "",
        "correction": correction(config.correction, one_step=config.ratio_is_one),
        "steps": _steps(config),
        "biases": "; ".join(biases(config)) or "none: this is the policy gradient of what is above",
    }
    return [f"{part}: {what}" for part, what in said.items() if what]


def _method(config: RLJob) -> str:
    """Its name and source, and what was set otherwise."""
    own, name = config.algorithm, config.algorithm.method
    preset = Algorithm.model_validate({"method": name})
    idle = own.idle().keys()
    changed = [
        f"{key} {yaml_of(getattr(own, key))}, not {yaml_of(getattr(preset, key))}"
        for key in Algorithm.model_fields
        if key not in idle and getattr(own, key) != getattr(preset, key)
    ]
    method = METHODS[name]
    return f"{name} ({method.title}; {method.source})" + (f", but {'; '.join(changed)}" if changed else "")


def _reward(config: RLJob) -> str:
    """The score of an answer as it is trained on."""
    a, longest = config.algorithm, config.rollout.max_new_tokens
    rewards = " + ".join(
        reward.name if reward.weight == 1 else f"{reward.weight:g} {reward.name}"
        for reward in config.reward
        if reward.weight
    )
    return ", ".join(
        [
            rewards or "none but the teacher's",
            *([f"clipped to ±{a.score_clip:g}"] if a.score_clip is not None else []),
            *([f"less {a.missing_eos_penalty:g} at {longest} tokens"] if a.missing_eos_penalty else []),
            *(
                [f"falling by {a.overlong_penalty:g} over the last {100 * a.overlong_share:.3g} % of {longest} tokens"]
                if a.overlong_share
                else []
            ),
        ]
    )


def of_token(a: Algorithm) -> str:
    """What the advantage is made from."""
    found = "reward"
    if a.pulls and a.kl_in == "reward":
        found += f" less KL (k1, {a.kl_coef:g} in the reward)"
    if a.entropy_counts and a.entropy_in == "reward":
        found += f" less {a.entropy_coef:g} log pi (maximum entropy)"
    if a.teacher_coef:
        found += f" plus {a.teacher_coef:g} (log teacher - log pi)"
    return found


def advantage(a: Algorithm, answers: int) -> str:
    """How an answer's or a token's advantage is made."""
    if a.has_critic:
        found = f"GAE of the {of_token(a)} with the critic's values, gamma {a.gamma:g}, lambda {_lambda(a)}"
    elif a.select == "best":
        found = f"1 for the best of a prompt's {answers} answers by {of_token(a)}, 0 for the others"
    else:
        found = f"{of_token(a)}{_to_go(a)}{baseline(a, answers)}{_scaled(a)}"
    if a.whiten_advantages:
        found += "; whitened over the tokens of the iteration"
        if a.baseline in ("batch_mean", "running_mean") or a.scale == "batch":
            found += ", which takes out what is the same for the whole batch before it"
    return found


def _lambda(a: Algorithm) -> str:
    of_policy = a.gae_lambda_policy
    if a.gae_length_alpha is not None:
        return f"1 - 1 / ({a.gae_length_alpha:g} T) of an answer of T tokens, the critic's {a.gae_lambda:g}"
    return f"{a.gae_lambda:g}" if of_policy is None else f"{of_policy:g}, the critic's {a.gae_lambda:g}"


def _to_go(a: Algorithm) -> str:
    if a.credit == "answer":
        return " of the whole answer"
    return " of the token itself" if not a.gamma else f" from the token on (gamma {a.gamma:g})"


def baseline(a: Algorithm, answers: int) -> str:
    """What is taken off, with its comma."""
    said = {
        "none": "",
        "leave_one_out": "the prompt's other answer"
        if answers == 2
        else f"the mean of the prompt's {answers - 1} other answers",
        "group_mean": f"the mean of the prompt's {answers} answers",
        "length_weighted": f"the mean of the prompt's {answers} answers, weighted by length",
        "batch_mean": "the mean of the iteration's answers",
        "running_mean": f"a running mean of earlier iterations' rewards (decay {a.running_decay:g})",
        "greedy": "the score of the greedy answer to the prompt",
        "optimal_value": f"V* = tau log mean exp(R / tau) of {a.reference_samples} answers of the reference, tau {a.tau:g}",
    }.get(a.baseline, f"{a.baseline}{_decay_for_own(a)}")
    return f", minus {said}" if said else ""


def _decay_for_own(a: Algorithm) -> str:
    return f" (told the running mean of rewards, decay {a.running_decay:g})"


def _scaled(a: Algorithm) -> str:
    said = {
        "none": "",
        "group": "the standard deviation of the prompt's rewards",
        "batch": "the standard deviation over the iteration",
    }.get(a.scale, f"{a.scale}{_decay_for_own(a)}")
    return f", over {said}" if said else ""


def surrogate(a: Algorithm) -> str:
    """What is minimised on a token or an answer."""
    low, high = 1 - a.clip_ratio, 1 + (a.clip_ratio_high or a.clip_ratio)
    anchor = "pi_ref" if a.anchor == "reference" else "pi_old"
    dual = f", at most {a.dual_clip:g} where the advantage is negative" if a.dual_clip is not None else ""
    return {
        "clip": f"ratio {RATIO} clipped to {low:g}..{high:g}{dual}",
        "sequence_clip": f"geometric mean of an answer's ratios {RATIO} clipped to {low:g}..{high:g}",
        "weight_cap": f"-A log pi, weighed by the ratio {RATIO} held fixed, at most {a.weight_cap:g}",
        "soft_gate": f"ratio {RATIO} through a soft gate of temperature {a.gate_temperature:g}, "
        f"{a.gate_temperature_negative:g} where the advantage is negative",
        "squared": f"(A - tau log(pi / {anchor}))^2 / (2 tau) of the answer, tau {a.tau:g}",
        "plain": "-A log pi, without a ratio",
    }.get(a.surrogate, a.surrogate)


def _policy_loss(config: RLJob) -> str:
    a = config.algorithm
    found = f"{surrogate(a)}; {AGGREGATES[a.aggregate].format(longest=config.rollout.max_new_tokens)}"
    if a.positive_nll_coef:
        found += f"; plus {a.positive_nll_coef:g} (-log pi) of answers with a score above 0"
    return found


def kl(a: Algorithm) -> str:
    """The KL to the reference: how much, where, by which estimate, and how the coefficient moves."""
    if not a.pulls:
        return "none" if not a.pulls_to_reference else "in the squared loss, of weight tau"
    per = "token" if a.kl_target_per == "token" else "answer"
    moves = f", adapted to {a.kl_target:g} nats per {per} (horizon {a.kl_horizon} samples)" if a.kl_target else ""
    if a.kl_in == "reward":
        return f"{a.kl_coef:g} in the reward, k1{moves}"
    return f"{a.kl_coef:g} in the loss, {a.kl_estimator} {kl_gradient(a)}{moves}"


def kl_gradient(a: Algorithm) -> str:
    """What the gradient of a KL in the loss is of."""
    return KL_GRADIENTS["exact" if a.kl_gradient == "exact" else a.kl_estimator]


def entropy(a: Algorithm) -> str:
    """The entropy's part of the objective."""
    if not a.entropy_counts:
        return "none"
    where = "a bonus of each token's in the loss" if a.entropy_in == "loss" else "-log pi of each token in the reward"
    moves = f", dual to {a.entropy_target:g} nats per token (step {a.entropy_lr:g})" if a.entropy_target else ""
    return f"{a.entropy_coef:g}, {where}{moves}"


def _filter(a: Algorithm) -> str:
    if not a.filter_groups:
        return ""
    return f"prompts all of whose answers score the same are left out, others sampled, {a.filter_rounds} rounds in all"


def _critic(config: RLJob) -> str:
    a = config.algorithm
    if not a.has_critic:
        return "none"
    head = config.learner.critic == "value_head"
    kind = f"a head of the policy, loss weight {a.value_coef:g}" if head else "a model of its own"
    alone = f"; alone in the first {a.critic_warmup} iterations" if a.critic_warmup else ""
    return f"{kind}, values clipped to ±{a.clip_value:g}{alone}"


def _reference(config: RLJob) -> str:
    a, start = config.algorithm, config.reference or "the policy as it starts"
    if a.reference_every is None:
        return start
    becomes = "becomes the policy" if a.reference_mix == 1 else f"moves by {a.reference_mix:g} to the policy"
    return f"{start}; {becomes} every {a.reference_every} iterations"


def correction(c: Correction, *, one_step: bool = False) -> str:
    """What makes up for samples of another policy, mu, than the one that ratios start from, pi_old."""
    if one_step:
        return "none (samples are of the policy that learns, and the only step sees it: the ratio is 1, and no bound of it acts)"
    start = "as the learner computes it" if c.proximal == "recompute" else "the engine's own log-probs"
    told = [f"pi_old is {start}"]
    if c.weight != "none":
        of = "an answer" if c.weight == "sequence" else "each token"
        bound = f"at most {c.cap:g}" if c.outside == "truncate" else f"0 outside {c.floor:g}..{c.cap:g}"
        told.append(f"losses are weighed by pi_old / mu of {of}, {bound}")
    if c.reject is not None:
        told.append(
            f"answers whose mean pi_old / mu (geometric) is outside {c.reject[0]:g}..{c.reject[1]:g} are left out"
        )
    if c.veto is not None:
        told.append(f"so are answers with a token of pi_old / mu below {c.veto:g}")
    return "; ".join(told if c.acts else ["none (samples are of the policy that learns)", *told])


def _steps(config: RLJob) -> str:
    rl = config.rl
    steps = (
        f"{rl.iterations} iterations of {config.batch_samples} answers to {rl.prompts_per_iteration} prompts, each passed over "
        f"{rl.epochs} times in {rl.mini_batches} mini-batches"
    )
    ends = f"; no epoch follows one of KL above {rl.max_policy_kl:g}" if rl.max_policy_kl is not None else ""
    also = f"; plus {rl.ptx_coef:g} times the loss on {rl.ptx_batch} demonstrations" if rl.ptx_coef else ""
    return steps + ends + also


def biases(config: RLJob) -> list[str]:
    """What the choices bias, against the gradient of E r - beta KL; nothing where they do not."""
    a, c = config.algorithm, config.correction
    several = config.rl.epochs * config.rl.mini_batches > 1
    in_loss = a.pulls and a.kl_in == "loss"
    lam = a.gae_lambda if a.gae_lambda_policy is None else a.gae_lambda_policy
    by_group = a.baseline in ("leave_one_out", "group_mean", "length_weighted")
    found = {
        "lambda below 1 trusts the critic as far as it is wrong": a.has_critic
        and (lam < 1 or a.gae_length_alpha is not None),
        "gamma below 1 discounts what comes later": a.gamma < 1 and "gamma" not in a.idle(),
        "another objective: the best of n is imitated, so entropy falls": a.select == "best",
        "the baseline has the answer's own reward in it: a factor 1 - 1/G": a.baseline == "group_mean",
        "the baseline has the answer's own reward in it: of order 1/G": a.baseline == "length_weighted",
        "the spread weighs prompts by difficulty (2.4 at 2 % right, 1.7 at 50 %, of 8 answers)": a.scale == "group",
        "whitening weighs answers by length (cos 0.85 within one prompt)": a.whiten_advantages and by_group,
        "token_mean divides by a random length (cos 0.99)": a.aggregate == "token_mean",
        "1 / length favours long wrong answers (cos 0.89)": a.aggregate == "sequence_mean" and a.surrogate != "squared",
        "prompts with long answers weigh less on each token": a.aggregate == "prompt_mean",
        "without a ratio, steps after an iteration's first learn from another policy's samples": a.surrogate == "plain"
        and several,
        "the bound on the ratio, in steps after an iteration's first": a.surrogate in BOUNDED and several,
        "the mean stands for the soft maximum": a.surrogate == "squared" and a.baseline != "optimal_value",
        f"the KL in the loss: {kl_gradient(a) if in_loss and a.kl_gradient != 'exact' else ''}": in_loss
        and a.kl_gradient != "exact",
        "the entropy bonus is of each token, without where tokens lead": a.entropy_counts and a.entropy_in == "loss",
        "prompts that are always right or wrong are left out": a.filter_groups,
        "answers that are cut teach nothing, however they score": a.truncated == "mask",
        "answers with a score above 0 are imitated, too": a.positive_nll_coef > 0,
        "weights of tokens make up for actions, and not for where they lead": c.weight == "token",
        "bounds of weights, and answers left out, trade bias for variance": c.acts,
        "each function of one's own as it is": any(":" in name for name in (a.baseline, a.scale, a.surrogate)),
    }
    return [text for text, holds in found.items() if holds]


def yaml_of(value: object) -> str:
    """A value as a config has it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
