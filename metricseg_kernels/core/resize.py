"""Bilinear resizing in plain PyTorch, for the references."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .checks import accumulator


def upsample(input: Tensor, size: tuple[int, ...], align_corners: bool) -> Tensor:
    """[B, K, h, w] -> [B, K, H, W] in the accumulator dtype, bilinear; unchanged if the sizes agree."""
    logits = input.to(accumulator(input.dtype))
    if tuple(input.shape[-2:]) == size:
        return logits
    if logits.numel() == 0 or 0 in size:
        return F.pad(logits[..., :0, :0], (0, size[1], 0, size[0]))
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=align_corners)
