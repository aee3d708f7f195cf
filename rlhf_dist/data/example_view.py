"""One example as a person checks it before a run: every token, what is learnt or read, what comes last, what ends an answer."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rlhf_dist.data.encoder import Encoder

MOST = 400
"""Tokens shown; of longer ones the middle is left out."""


def view(encoder: Encoder, tokens: Sequence[int], marked: Collection[int], *, title: str, mark: str) -> str:
    """Tokens one by one, special ones as they are spelled, those that matter in brackets.

    Args:
        encoder: whose tokens they are.
        tokens: the example.
        marked: positions of the tokens that matter.
        title: what is shown.
        mark: what the brackets mean, e.g. `learnt`.
    """
    parts = [
        f"[{one(encoder, token)}]" if number in marked else one(encoder, token) for number, token in enumerate(tokens)
    ]
    if len(parts) > MOST:
        parts = [*parts[: MOST // 2], f"... {len(parts) - MOST} tokens ...", *parts[-MOST // 2 :]]
    last = tokens[max(marked)] if marked else tokens[-1]
    ends = ", ".join(named(encoder, token) for token in encoder.ends.ids)
    return "\n".join(
        [
            f"{title}, {len(tokens)} tokens" + (f", in brackets what is {mark}:" if marked else ":"),
            "|".join(parts),
            f"{'last ' + mark if marked else 'last'}: {named(encoder, last)}; generation ends at {ends}",
        ]
    )


def one(encoder: Encoder, token: int) -> str:
    """A token's text on one line; a piece of a character as its number."""
    text: str = encoder.tokenizer.decode([token], skip_special_tokens=False)
    if not text or "�" in text:
        return str(encoder.tokenizer.convert_ids_to_tokens(int(token)))
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")


def named(encoder: Encoder, token: int) -> str:
    """A token with its id."""
    return f"{one(encoder, token)} ({token})"
