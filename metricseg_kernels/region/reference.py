"""Specification of the region family in plain PyTorch, on probabilities at label resolution; differentiable twice."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.resize import label_size, upsample
from ..engines.resized.reference import classify, count_labels, softmax_pixel
from .op import Inputs, Sums


def one_hot(inputs: Inputs, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(y [B, K, (D,) H, W], masks valid and bad [B, (D,) H, W]). A negative soft target becomes NaN."""
    target, classes = inputs.target, inputs.input.shape[1]
    if target.is_floating_point():
        y = target.to(z.dtype)
        valid = y[:, 0] != inputs.ignore_index  # a pixel is ignored if its first channel is ignore_index
        return torch.where(y >= 0, y, torch.nan), valid, torch.zeros_like(valid)
    valid, bad, labels = classify(target, inputs.label_classes, inputs.ignore_index)
    if classes == 1:  # a mask
        return labels[:, None].to(z.dtype), valid, bad
    return torch.zeros_like(z).scatter(1, labels[:, None], 1.0), valid, bad


def region_sums(inputs: Inputs, per_image: bool) -> Sums:
    """I, P and Y of each class, the sum of the pixel loss, and counts of pixels."""
    size = label_size(inputs.input, inputs.target)
    z = upsample(inputs.input, size, inputs.align_corners)  # [B, K, (D,) H, W]
    y, valid, bad = one_hot(inputs, z)
    p = z.softmax(1) if inputs.softmax else z.sigmoid()
    p, y = (torch.where(valid[:, None], t, 0.0) for t in (p, y))
    axes = tuple(range(2, z.ndim))
    axes = axes if per_image else (0, *axes)
    sums = torch.stack([t.sum(axes, dtype=torch.float64) for t in (p * y, p, y)], -1)
    sums = sums if per_image else sums[None]

    pixels = (valid, bad, inputs.target[:, 0] if inputs.target.is_floating_point() else inputs.target)
    groups = zip(*(t.split(1) for t in pixels), strict=True) if per_image and len(valid) else [pixels]
    totals = torch.stack([torch.stack(count_labels(*group)) for group in groups])[: len(sums)].detach()

    loss = sums.new_zeros(())
    if inputs.pixel_loss:
        labels = torch.where(valid, inputs.target.long(), 0)
        weight = z.new_ones(z.shape[1]) if inputs.weight is None else inputs.weight
        pixel, _ = softmax_pixel(z.log_softmax(1), labels, weight, inputs.gamma, inputs.label_smoothing)
        loss = torch.where(valid, pixel, 0.0).sum(dtype=torch.float64)
    return Sums(sums, loss, totals)
