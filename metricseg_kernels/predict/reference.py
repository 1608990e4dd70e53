"""Specification of the predict family in plain PyTorch: it materializes every map at label resolution."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.labels import is_bad, is_class
from ..core.resize import upsample
from .op import Inputs


def scores(inputs: Inputs, size: tuple[int, ...]) -> Tensor:
    """[B, K, (D,) H, W]: interpolated logits of one map, or averaged probabilities of several."""
    total: Tensor | None = None
    for map, flipped, share in zip(inputs.maps, inputs.flipped, inputs.shares, strict=True):
        z = upsample(map.flip(-1) if flipped else map, size, inputs.align_corners)
        if len(inputs.maps) == 1:
            return z
        total = share * z.softmax(1) if total is None else total + share * z.softmax(1)
    assert total is not None
    return total


def predict(inputs: Inputs, size: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """(labels, confidence, entropy), each [B, (D,) H, W]."""
    found = scores(inputs, size)
    labels = found.argmax(1)
    p = found.softmax(1) if len(inputs.maps) == 1 else found
    confidence = p.amax(1)
    return labels, confidence, -torch.xlogy(p, p).sum(1)


def confusion(inputs: Inputs, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """(counts [K, K] int64, [labels out of range, the largest of them or 0] in float64)."""
    classes = inputs.maps[0].shape[1]
    labels = scores(inputs, tuple(target.shape[1:])).argmax(1)
    counted, bad = is_class(target, classes, ignore_index), is_bad(target, classes, ignore_index)
    pairs = torch.where(counted, target.long() * classes + labels, classes * classes)
    counts = pairs.new_zeros(classes * classes + 1)
    counts = counts.index_add(0, pairs.flatten(), torch.ones_like(pairs).flatten())[:-1].view(classes, classes)
    largest = torch.where(bad, target.double(), -torch.inf).flatten()
    example = largest.amax() if largest.numel() else torch.tensor(-torch.inf, device=target.device)
    return counts, torch.stack([bad.sum().double(), torch.where(example.isfinite(), example, 0.0).double()])
