"""Attention of documents that lie one after the other in a row, without padding and without a mask.

Where transformers would build a mask [row, row], each document attends within itself: on CUDA in torch's own kernel
(`torch.nn.attention.varlen`, flash attention without a package of that name), elsewhere document by document. What a family
hands to its attention that is not computed here ends in `NotComputed`, and so in a plainer kernel: nothing is ignored.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F

from rlhf_dist.errors import ModelError

log = logging.getLogger(__name__)

NAME = "varlen"
"""Under which transformers knows it."""
IDLE = frozenset({"position_ids", "use_cache", "cache_position", "is_causal", "sliding_window", "position_embeddings"})
"""Keywords that say nothing more: positions are in queries and keys already; masks tell what is causal, and the window."""
LARGEST_HEAD = 256
"""Of torch's kernel, which also wants multiples of 8; others are filled up with zeros."""

Attend = Callable[..., torch.Tensor]
"""Queries, keys, values [tokens, heads, size] and `Documents` to [tokens, heads, size of a value]."""


class NotComputed(ModelError):
    """A family wants of its attention what this kernel does not compute."""


@dataclass(frozen=True)
class Band:
    """What a mask lets a token see: itself and what lies before it in its document, or only the last `window` tokens of that."""

    window: int | None = None


@dataclass(frozen=True)
class Documents:
    """Where documents lie in the tokens that attend."""

    bounds: torch.Tensor
    """[documents + 1], int32: the place of each one's first token, and their number of tokens."""
    longest: int


def keywords(starts: torch.Tensor, lengths: torch.Tensor, tokens: int) -> dict[str, Any]:
    """Where documents lie in a row of so many tokens, as transformers hands it on to attention kernels."""
    end = starts.new_full((1,), tokens)
    bounds = torch.cat([starts if len(starts) else starts.new_zeros(1), end]).to(torch.int32)
    longest = int(lengths.max()) if len(lengths) else tokens
    return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}


def register() -> None:
    """Make transformers know the kernel."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, band)


def band(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Any = None,
    attention_mask: torch.Tensor | None = None,
    **_: Any,
) -> Band:
    """In the place of a mask: what it would let through, read off the function that would make it.

    Raises:
        NotComputed: padding, tokens in a cache, or a mask that is neither causal nor a sliding window.
    """
    if attention_mask is not None and not bool(attention_mask.all()):
        raise NotComputed("it hides padding with a mask")
    if (q_length, q_offset) != (kv_length, kv_offset):
        raise NotComputed("it attends to tokens of a cache")
    return Band(_window(mask_function))


def _window(mask: Any) -> int | None:
    """Width of the window of a mask function of transformers'; None where it is just causal."""
    from transformers import masking_utils

    if mask is masking_utils.causal_mask_function:
        return None
    kind, held = mask.__qualname__.split(".")[0], inspect.getclosurevars(mask).nonlocals
    if kind == "and_masks":
        widths = [_window(each) for each in held["mask_functions"]]
        return min((width for width in widths if width is not None), default=None)
    if kind == "sliding_window_overlay":
        return int(held["sliding_window"])
    if kind == "packed_sequence_mask_function":
        return None  # rows that restart: documents are told, or each row is one
    raise NotComputed(f"its mask is no causal one ({kind})")


def attention(  # noqa: PLR0913 - transformers' own call
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int = 0,
    cu_seq_lens_k: torch.Tensor | None = None,
    max_length_k: int = 0,
    cut: Any = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function of transformers: [rows, heads, width, size] to [rows, width, heads, size].

    Without bounds every row is a document. With a `models.cut.Cut` the row is a rank's part of theirs.

    Raises:
        NotComputed: names what is asked for beside it.
    """
    if not isinstance(attention_mask, Band):
        raise NotComputed(f"{type(module).__name__} makes masks of its own")
    asked = {**others, "dropout": dropout}
    if odd := sorted(name for name, wanted in asked.items() if name not in IDLE and not _says_nothing(wanted)):
        raise NotComputed(f"{type(module).__name__} asks for {', '.join(odd)}")
    rows, _, width, _ = query.shape
    if cu_seq_lens_q is None:
        bounds = torch.arange(0, rows * width + 1, width, dtype=torch.int32, device=query.device)
        documents = Documents(bounds, width)
    else:
        documents = Documents(cu_seq_lens_q, max_length_q)
    q, k, v = (each.transpose(1, 2).flatten(0, 1) for each in (query, key, value))
    if cut is not None:
        share = q.shape[1] // k.shape[1]
        q, k, v = cut.to_heads(q, 1), cut.to_heads(k, share), cut.to_heads(v, share)
    found = attend(q, k, v, documents, scale=scaling, window=attention_mask.window)
    found = found if cut is None else cut.to_tokens(found)
    return found.view(rows, width, *found.shape[1:]), None


def _says_nothing(wanted: Any) -> bool:
    return wanted is None or (isinstance(wanted, (bool, int, float)) and not wanted)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    documents: Documents,
    *,
    scale: float | None,
    window: int | None,
) -> torch.Tensor:
    """Causal attention within documents.

    Args:
        query: [tokens, heads, size]; heads may share keys and values in groups.
        key: [tokens, key heads, size].
        value: [tokens, key heads, size of a value].
        documents: where they lie.
        scale: of scores; None: one over the root of the size.
        window: tokens that each sees, itself in; None: all before it.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    one = by_kernel if _takes_kernel(query, key, value, window) else by_document
    return one(query, key, value, documents, scale=scale, window=window)


def by_document(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    documents: Documents,
    *,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    """One document after the other, in torch's plain attention; as `attend`."""
    parts = []
    bounds = documents.bounds.tolist()
    for begin, end in pairwise(bounds):
        q, k, v = (each[begin:end].transpose(0, 1)[None] for each in (query, key, value))
        narrow = _window_mask(end - begin, window, query.device) if window and window < end - begin else None
        found = F.scaled_dot_product_attention(
            q, k, v, attn_mask=narrow, is_causal=narrow is None, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        )
        parts.append(found[0].transpose(0, 1))
    return torch.cat(parts)


def _window_mask(length: int, window: int, device: torch.device) -> torch.Tensor:
    """[length, length]: which tokens (columns) each one sees."""
    places = torch.arange(length, device=device)
    behind = places[:, None] - places
    return (behind >= 0) & (behind < window)


def by_kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    documents: Documents,
    *,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    """In torch's kernel for flattened documents; as `attend`."""
    from torch.nn.attention.varlen import varlen_attn

    size = -(-query.shape[-1] // 8) * 8
    q, k, v = (F.pad(each, [0, size - each.shape[-1]]) for each in (query, key, value))
    left = -1 if window is None else window - 1
    bounds, longest = documents.bounds, documents.longest
    found: Any = varlen_attn(
        q,
        k,
        v,
        bounds,
        bounds,
        longest,
        longest,
        scale=scale,
        window_size=(left, 0),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    said: torch.Tensor = found[..., : value.shape[-1]]
    return said


def _takes_kernel(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None) -> bool:
    """Whether torch's kernel is there for such tensors; on a card, after it was seen to compute the same."""
    fits = query.dtype in (torch.bfloat16, torch.float16) and value.shape[-1] <= query.shape[-1] <= LARGEST_HEAD
    if not fits or query.device.type not in ("cuda", "meta"):
        return False
    shapes = (tuple(query.shape[1:]), tuple(key.shape[1:]), tuple(value.shape[1:]))
    return query.is_meta or _kernel_is_right(query.device, query.dtype, shapes, window is not None)


@cache
def _kernel_is_right(
    device: torch.device, dtype: torch.dtype, shapes: Sequence[tuple[int, ...]], windowed: bool
) -> bool:
    problem = problem_of(by_kernel, device, dtype, shapes, windowed=windowed)
    if problem is not None:
        log.warning("attention is computed document by document", extra={"reason": problem, "shapes": str(shapes)})
    return problem is None


TRIED = (12, 7, 9)
"""Lengths of the documents on which a kernel is tried, and the window where there is one."""
TRIED_WINDOW = 4


def problem_of(
    kernel: Attend, device: torch.device, dtype: torch.dtype, shapes: Sequence[tuple[int, ...]], *, windowed: bool
) -> str | None:
    """What is wrong with a kernel: its outputs and gradients on three short documents against those of one at a time.

    Args:
        kernel: the one to try.
        device: where.
        dtype: of its inputs.
        shapes: heads and size of queries, keys and values.
        windowed: whether to try a sliding window.

    Returns:
        None where both agree.
    """
    draws = torch.Generator().manual_seed(0)
    bounds = torch.tensor([0, *TRIED], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)
    documents = Documents(bounds, max(TRIED))
    inputs = [torch.randn(sum(TRIED), *shape, generator=draws).to(device, dtype) for shape in shapes]
    options: dict[str, Any] = {"scale": shapes[0][-1] ** -0.5, "window": TRIED_WINDOW if windowed else None}
    told = torch.randn(sum(TRIED), shapes[0][0], shapes[2][-1], generator=draws).to(device, dtype)
    found: list[tuple[torch.Tensor, ...]] = []
    both: tuple[tuple[Attend, torch.dtype], ...] = ((kernel, dtype), (by_document, torch.float32))
    try:
        with torch.enable_grad():
            for one, exact in both:
                leaves = [each.to(exact).detach().requires_grad_() for each in inputs]
                said = one(leaves[0], leaves[1], leaves[2], documents, **options)
                found.append((said.detach(), *torch.autograd.grad(said, leaves, told.to(exact))))
    except (RuntimeError, ValueError, ImportError) as error:  # of a shape, a card or a build that the kernel is not for
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        return f"torch's kernel does not run here: {reason}"
    apart = max(float((ours.float() - theirs).abs().max()) for ours, theirs in zip(*found, strict=True))
    # Inputs of bfloat16's three digits, and a few of them added up; a neighbour that is seen shows as about one.
    return None if apart <= 0.1 else f"torch's kernel differs by {apart:.2g}"
