"""Specification of the focal family in plain PyTorch: every other backend must agree with it.

It materializes the logits at label resolution and is differentiable any number of times.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.resize import label_size, upsample
from ..engines.resized.reference import classify, count_labels, softmax_pixel


def focal(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    keep_above: Tensor | None,
    gamma: float,
    label_smoothing: float,
    ignore_index: int,
    align_corners: bool,
    reduce: bool,
    with_argmax: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(loss, totals, argmax): loss [] or [B, (D,) H, W]; totals [5] = valid, weight, correct, bad count, bad label."""
    classes = input.shape[1]
    z = upsample(input, label_size(input, target), align_corners)  # [B, K, (D,) H, W]
    valid, bad, labels = classify(target, classes, ignore_index)
    w = torch.ones(classes, dtype=z.dtype, device=z.device) if weight is None else weight.to(z.dtype)

    ce, nll = softmax_pixel(z.log_softmax(1), labels, w, gamma, label_smoothing)
    if keep_above is not None:
        valid = valid & ~(nll <= keep_above)
    loss = torch.where(valid, ce, 0.0)
    loss = torch.where(bad, torch.nan, loss)

    argmax = z.argmax(1).to(torch.int32) if with_argmax else None
    correct = (
        ((argmax == labels) & valid).sum().double() if argmax is not None else loss.new_zeros((), dtype=torch.double)
    )
    n_valid, n_bad, example = count_labels(valid, bad, target)
    weight_sum = torch.where(valid, w[labels], 0.0).sum(dtype=torch.double)
    totals = torch.stack([n_valid, weight_sum, correct, n_bad, example])
    return (loss.sum() if reduce else loss), totals.detach(), argmax


def sigmoid_focal(
    input: Tensor,
    target: Tensor,
    gamma: float,
    alpha: float,
    ignore_index: int,
    align_corners: bool,
    reduce: bool,
) -> tuple[Tensor, Tensor]:
    """(loss, totals): loss [] or [B, K, (D,) H, W]; totals as in `focal`, pixels counted once, weight and correct 0."""
    classes = input.shape[1]
    x = upsample(input, label_size(input, target), align_corners)  # [B, K, (D,) H, W]
    zero = torch.zeros((), dtype=torch.double, device=x.device)
    if target.is_floating_point():
        t = target.to(x.dtype)
        valid = t[:, :1] != ignore_index  # a pixel is ignored if its first channel is ignore_index
        t = torch.where(valid, t, 0.0)
        bad = ~((t >= 0) & (t <= 1))
        n_valid, n_bad, example = valid.sum().double(), zero, zero
    else:
        pixel_valid, pixel_bad, labels = classify(target, classes, ignore_index)
        t = torch.zeros_like(x).scatter(1, labels[:, None], 1.0)
        valid, bad = pixel_valid[:, None], pixel_bad[:, None]
        n_valid, n_bad, example = count_labels(pixel_valid, pixel_bad, target)
    # ce = -t log s - (1-t) log (1-s),  v = 1 - p_t = s (1-t) + (1-s) t,  l = alpha_t v^g ce; no 0 * inf in ce
    ce = torch.where(t > 0, -t * F.logsigmoid(x), 0.0) + torch.where(t < 1, (t - 1) * F.logsigmoid(-x), 0.0)
    v = x.sigmoid() * (1 - t) + (-x).sigmoid() * t
    loss = ce
    if gamma:
        possible = v > 0
        loss = loss * torch.where(possible, torch.where(possible, v, 1.0) ** gamma, 0.0)
    if alpha >= 0:
        loss = loss * (alpha * t + (1 - alpha) * (1 - t))
    loss = torch.where(bad, torch.nan, torch.where(valid, loss, 0.0))
    totals = torch.stack([n_valid, zero, zero, n_bad, example])
    return (loss.sum() if reduce else loss), totals.detach()


def kth_largest(values: Tensor, k: int) -> Tensor:
    """The k-th largest value, counted from 0; -1 if there are not that many."""
    flat = values.reshape(-1)
    if k >= flat.numel():
        return flat.new_full((), -1.0)
    return flat.sort(descending=True).values[k]
