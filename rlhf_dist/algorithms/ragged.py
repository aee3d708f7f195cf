"""Ragged sequences, flat and padded. Flat: [tokens] with lengths [sequences]. Padded: [sequences, time] and a mask."""

from __future__ import annotations

import torch


def padded(flat: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Flat [tokens] to right-padded [sequences, time] with zeros, and the mask of real tokens."""
    mask = mask_of(lengths)
    out = flat.new_zeros(mask.shape)
    out[mask] = flat
    return out, mask


def mask_of(lengths: torch.Tensor) -> torch.Tensor:
    """Bool [sequences, time], true on the first `lengths[i]` positions of row i."""
    time = int(lengths.max()) if len(lengths) else 0
    return torch.arange(time, device=lengths.device)[None, :] < lengths[:, None]


def segment_sums(flat: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Sum of each sequence's values, [tokens, ...] to [sequences, ...]."""
    owner = torch.repeat_interleave(torch.arange(len(lengths), device=flat.device), lengths)
    return flat.new_zeros(len(lengths), *flat.shape[1:]).index_add_(0, owner, flat)


def sums_to_go(flat: torch.Tensor, lengths: torch.Tensor, *, gamma: float = 1.0) -> torch.Tensor:
    """Of each token, the sum of its sequence's values from it on, those k tokens later times gamma^k, [tokens] to [tokens]."""
    if gamma == 0.0 or not len(flat):
        return flat
    padding, mask = padded(flat, lengths)
    if gamma == 1.0:
        return padding.flip(1).cumsum(1).flip(1)[mask]
    found, running = torch.zeros_like(padding), padding.new_zeros(len(lengths))
    for t in range(padding.shape[1] - 1, -1, -1):
        running = padding[:, t] + gamma * running
        found[:, t] = running
    return found[mask]
