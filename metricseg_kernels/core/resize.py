"""The size of labels, and linear resizing in plain PyTorch, for the references."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .checks import accumulator


def label_size(input: Tensor, target: Tensor) -> tuple[int, ...]:
    """(H, W) of labels or a dense target of logits [B, K, h, w]; (D, H, W) of [B, K, d, h, w]."""
    return tuple(target.shape[2 - input.ndim :])


def upsample(input: Tensor, size: tuple[int, ...], align_corners: bool) -> Tensor:
    """[B, K, h, w] -> [B, K, H, W], or [B, K, d, h, w] -> [B, K, D, H, W], in the accumulator dtype, bilinear or
    trilinear; unchanged if the sizes agree."""
    logits = input.to(accumulator(input.dtype))
    if tuple(input.shape[2:]) == size:
        return logits
    if logits.numel() == 0 or 0 in size:
        nothing = logits.flatten(2)[:, :, :0].unflatten(2, [0] * len(size))  # not new zeros: backward needs a graph
        return F.pad(nothing, [pad for length in reversed(size) for pad in (0, length)])
    mode = "trilinear" if input.ndim == 5 else "bilinear"
    return F.interpolate(logits, size=size, mode=mode, align_corners=align_corners)
