"""Specification of the lovasz family in plain PyTorch, on probabilities at label resolution."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.resize import label_size, upsample
from ..engines.resized.reference import classify, count_labels
from .op import Bins, Inputs


def errors_of(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(errors [B, K, H, W], masks own [B, K, H, W], valid and bad [B, H, W])."""
    z = upsample(inputs.input, label_size(inputs.input, inputs.target), inputs.align_corners)
    valid, bad, labels = classify(inputs.target, z.shape[1], inputs.ignore_index)
    own = torch.zeros_like(z, dtype=torch.bool).scatter(1, labels[:, None], True)
    p = z.softmax(1)
    rest = p.masked_fill(own, 0.0).sum(1, keepdim=True)  # 1 - p without a difference of nearly equal numbers
    return torch.where(own, rest, p), own, valid, bad


def lovasz_bins(inputs: Inputs, bins: int, per_image: bool) -> Bins:
    """Counts and sums of errors in bins; sums are differentiable."""
    errors, own, valid, bad = errors_of(inputs)
    batch, classes = errors.shape[:2]
    images = batch if per_image else 1
    place = (errors.detach() * bins).clamp(0, bins - 1).nan_to_num(0).long()
    taken = valid[:, None] & (own | (place > 0))
    rows = torch.arange(batch, device=errors.device) if per_image else errors.new_zeros(batch, dtype=torch.long)
    row = (rows[:, None] * classes + torch.arange(classes, device=errors.device))[:, :, None, None]
    at = ((row * 2 + own) * bins + place).flatten()
    shape = (images, classes, 2, bins)
    empty = errors.new_zeros(images * classes * 2 * bins, dtype=torch.float64)
    counts = empty.index_add(0, at, taken.double().flatten()).view(shape)
    sums = empty.index_add(0, at, torch.where(taken, errors, 0.0).double().flatten()).view(shape)

    pixels = (valid, bad, inputs.target, errors)
    groups = zip(*(t.split(1) for t in pixels), strict=True) if per_image and batch else [pixels]
    totals = [
        torch.stack([*count_labels(good, wrong, target), torch.where(good[:, None], e - e, 0.0).double().sum()])
        for good, wrong, target, e in groups
    ]
    return Bins(counts, sums, torch.stack(totals)[:images].detach())
