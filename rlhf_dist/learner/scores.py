"""Scores as they are trained on."""

from __future__ import annotations

from rlhf_dist.algorithms.filters import overlong_ramp
from rlhf_dist.config import Algorithm


def shaped_score(score: float, algorithm: Algorithm, *, cut: bool, length: int, longest: int) -> float:
    """An answer's score: clipped, and with what its length and its end cost.

    Args:
        score: by all rewards and rules.
        algorithm: score_clip, missing_eos_penalty and the ramp.
        cut: whether the answer ended at the longest length.
        length: its tokens.
        longest: most tokens that an answer may have.
    """
    if algorithm.score_clip is not None:
        score = max(-algorithm.score_clip, min(algorithm.score_clip, score))
    share, penalty = algorithm.overlong_share, algorithm.overlong_penalty
    return (
        score
        - algorithm.missing_eos_penalty * cut
        + overlong_ramp(length, longest=longest, share=share, penalty=penalty)
    )
