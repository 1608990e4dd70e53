"""Pixel classification losses at label resolution.

Each takes logits [B, K, h, w] as the network makes them and labels [B, H, W] as they are stored, and interpolates
bilinearly inside the kernel: no [B, K, H, W] tensor exists, forward or backward.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..core import checks
from ..core.backends import choose
from . import op, reference

REDUCTIONS = ("mean", "sum", "none")


class Stats(NamedTuple):
    """By-products of a loss, from the same pass.

    correct: 0-d float64, valid pixels whose argmax is their label. valid: 0-d float64, pixels that took part.
    argmax: [B, H, W] int32, the most probable class of every pixel, ignored ones included.
    """

    correct: Tensor
    valid: Tensor
    argmax: Tensor


def focal_loss(
    input: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    weight: Tensor | None = None,
    ignore_index: int = 255,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    normalizer: str = "valid",
    avg_factor: float | Tensor | None = None,
    align_corners: bool = False,
    return_stats: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Stats]:
    r"""Softmax focal loss of logits interpolated to label resolution.

    With z the K logits of a pixel after bilinear interpolation, q = softmax(z), t its label and p = q_t:

        l = weight[t] (1 - p)^gamma (-log p)

    and, with label smoothing e, S in place of weight[t] (-log p):

        S = (1 - e) weight[t] (-log p) + e / K sum_k weight[k] (-log q_k)

    Args:
        input: [B, K, h, w] logits; float64, float32, bfloat16 or float16; NCHW or channels-last. Arithmetic is in
            float32 (float64 for float64).
        target: [B, H, W] labels; uint8, int32 or int64, read as they are. Any (H, W) to (h, w) ratio.
        gamma: focusing exponent, >= 0. 0 is cross-entropy. Every value has a finite gradient, 0 < gamma < 1 included.
        weight: [K] class weights, floating, or None for 1.
        ignore_index: label of pixels that take no part.
        label_smoothing: e in [0, 1].
        reduction: "mean", "sum", or "none" for the map [B, H, W] with 0 at ignored pixels.
        normalizer: what "mean" divides by: "valid", the number of valid pixels, or "weight", the sum of weight[t].
        avg_factor: divides the sum instead (number > 0 or 0-d tensor); only with reduction "mean".
        align_corners: as in torch.nn.functional.interpolate.
        return_stats: also return `Stats`.
        backend: "reference", "cpu", "triton", "cuda", or None for the first that can run.

    Returns:
        The loss in float32 (float64 for float64 input); with return_stats, (loss, Stats). No valid pixel: 0, with a
        zero gradient. The gradient has the dtype and memory format of `input`.

    Raises:
        TypeError, ValueError: an argument of wrong type, dtype, shape, device or range, named with its value. A label
            that is neither ignore_index nor in [0, K) raises on the CPU; on CUDA the loss is NaN, and with
            METRICSEG_VALIDATE=1 it raises there too.
        RuntimeError: a backend asked for by name can't run here; double backward without backend="reference".

    Source: Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, in its multi-class form.
    """
    _check_softmax(input, target, weight, ignore_index, label_smoothing, reduction, avg_factor)
    checks.number("gamma", gamma, 0.0)
    checks.choice("normalizer", normalizer, ("valid", "weight"))
    loss, totals, argmax = _softmax_family(
        input,
        target,
        weight,
        None,
        gamma,
        label_smoothing,
        ignore_index,
        align_corners,
        reduction,
        return_stats,
        backend,
    )
    if reduction == "mean":
        loss = _mean(loss, totals[0 if normalizer == "valid" else 1], avg_factor)
    return (loss, Stats(totals[2], totals[0], argmax)) if argmax is not None else loss


def cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = 255,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    avg_factor: float | Tensor | None = None,
    align_corners: bool = False,
    return_stats: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Stats]:
    """Cross-entropy of logits interpolated to label resolution.

    `focal_loss` with gamma = 0 and normalizer "weight", so that it equals

        F.cross_entropy(F.interpolate(input, target.shape[-2:], mode="bilinear"), target, ...)

    to rounding, argument by argument; except that no valid pixel gives 0 where F.cross_entropy gives NaN, and that
    ignore_index is 255 by default. Arguments, result and errors: see `focal_loss`.
    """
    return focal_loss(
        input, target, gamma=0.0, weight=weight, ignore_index=ignore_index, label_smoothing=label_smoothing,
        reduction=reduction, normalizer="weight", avg_factor=avg_factor, align_corners=align_corners,
        return_stats=return_stats, backend=backend,
    )  # fmt: skip


def sigmoid_focal_loss(
    input: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    alpha: float = 0.25,
    ignore_index: int = 255,
    reduction: str = "mean",
    avg_factor: float | Tensor | None = None,
    align_corners: bool = False,
    backend: str | None = None,
) -> Tensor:
    r"""One-vs-rest focal loss of logits interpolated to label resolution.

    Per pixel and class, with x the interpolated logit, t its target and p_t = sigmoid(x) t + (1 - sigmoid(x)) (1 - t):

        l = alpha_t (1 - p_t)^gamma BCE(x, t),    alpha_t = alpha t + (1 - alpha) (1 - t)

    Args:
        input: [B, K, h, w] logits, as in `focal_loss`.
        target: class indices [B, H, W] (uint8, int32, int64), which stand for their one-hot map, or dense targets in
            [0, 1], [B, K, H, W], floating. ignore_index applies to indices.
        gamma: focusing exponent, >= 0.
        alpha: weight of the positives in [0, 1]; negative for no weighting, as in torchvision.
        reduction: "none" gives [B, K, H, W] with 0 at ignored pixels; "mean" divides the sum by K x valid pixels.
        avg_factor, align_corners, backend, returns, raises: see `focal_loss`.

    On dense targets this equals torchvision.ops.sigmoid_focal_loss on interpolated logits.
    Source: Lin et al., Focal Loss for Dense Object Detection, ICCV 2017.
    """
    dense = isinstance(target, Tensor) and target.is_floating_point()
    _check_pair(input, target, dense)
    checks.number("gamma", gamma, 0.0)
    checks.number("alpha", alpha, -torch.inf if alpha == -torch.inf else min(alpha, 0.0), 1.0)
    _check_reduction(reduction, avg_factor)
    reduce = reduction != "none"
    name = choose("focal", input.device.type, backend)
    if name == "reference":
        loss, totals = reference.sigmoid_focal(input, target, gamma, alpha, ignore_index, align_corners, reduce)
        if not torch.compiler.is_compiling():
            op.check_labels(totals, input, ignore_index)
    else:
        with_grad = reduce and _wants_grad(input) and _forward_makes_gradient(input, target, None)
        loss, totals, _ = torch.ops.metricseg.sigmoid_focal_forward(
            input, target, gamma, alpha, ignore_index, align_corners, reduce, with_grad, name
        )
    return _mean(loss, totals[0] * input.shape[1], avg_factor) if reduction == "mean" else loss


def ohem_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    thresh: float = 0.7,
    min_kept: int = 100_000,
    weight: Tensor | None = None,
    ignore_index: int = 255,
    label_smoothing: float = 0.0,
    align_corners: bool = False,
    backend: str | None = None,
) -> Tensor:
    r"""Cross-entropy of the hard pixels only (online hard example mining), at label resolution.

    A valid pixel is kept where p < max(p_(min_kept), thresh), p being the probability of its label and p_(k) the k-th
    smallest p over the valid pixels of the whole batch, counted from 0: at least `min_kept` pixels are kept (ties
    aside), and all whose p is below `thresh`. Where there are not more than min_kept valid pixels, all are kept.

        loss = 1 / #kept  sum over kept of weight[t] (-log p)

    The comparison runs on -log p, and the order statistic comes from a radix selection: no sort, no host sync.

    Args:
        thresh: probability in (0, 1].
        min_kept: >= 0, for the whole batch.
        input, target, weight, ignore_index, label_smoothing, align_corners, backend, errors: see `focal_loss`.

    Source: Shrivastava et al., Training Region-based Object Detectors with Online Hard Example Mining, CVPR 2016, in
    the form of HRNet's and mmsegmentation's pixel sampler.
    """
    _check_softmax(input, target, weight, ignore_index, label_smoothing, "mean", None)
    checks.number("thresh", thresh, 0.0, 1.0)
    if thresh == 0:
        raise ValueError("thresh must be in (0, 1], got 0")
    if min_kept < 0:
        raise ValueError(f"min_kept must be >= 0, got {min_kept}")
    name = choose("focal", input.device.type, backend)
    scalars = (0.0, 0.0, ignore_index, align_corners)
    with torch.no_grad():
        nll, _, _ = _softmax_family(input, target, None, None, *scalars, "none", False, name)
        ranked = torch.where(target == ignore_index, -1.0, nll)  # an ignored pixel ranks below every valid one
        hardest = (
            reference.kth_largest(ranked, min_kept)
            if name == "reference"
            else torch.ops.metricseg.kth_largest(ranked, min_kept, name)
        )
        # p < max(p_k, thresh)  <=>  -log p > min(-log p_k, -log thresh)
        keep_above = hardest.clamp(max=-math.log(thresh))
    loss, totals, _ = _softmax_family(
        input, target, weight, keep_above, 0.0, label_smoothing, ignore_index, align_corners, "sum", False, name
    )
    return _mean(loss, totals[0], None)


def _softmax_family(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    keep_above: Tensor | None,
    gamma: float,
    label_smoothing: float,
    ignore_index: int,
    align_corners: bool,
    reduction: str,
    with_argmax: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(sum or map, totals, argmax) from the backend that takes the call."""
    reduce = reduction != "none"
    name = choose("focal", input.device.type, backend)
    scalars = (float(gamma), float(label_smoothing), ignore_index, align_corners, reduce)
    if weight is not None:
        weight = weight.detach().to(checks.accumulator(input.dtype)).contiguous()
    if name == "reference":
        loss, totals, argmax = reference.focal(input, target, weight, keep_above, *scalars, with_argmax)
        if not torch.compiler.is_compiling():
            op.check_labels(totals, input, ignore_index)
        return loss, totals, argmax
    with_grad = reduce and _wants_grad(input) and _forward_makes_gradient(input, target, weight)
    loss, totals, argmax, _ = torch.ops.metricseg.focal_forward(
        input, target, weight, keep_above, *scalars, with_grad, with_argmax, name
    )
    return loss, totals, argmax if with_argmax else None


def _wants_grad(input: Tensor) -> bool:
    return input.requires_grad and torch.is_grad_enabled()


def _forward_makes_gradient(input: Tensor, target: Tensor, weight: Tensor | None) -> bool:
    """Whether forward produces the gradient of the summed loss on its way. Where not, backward recomputes.

    It pays where the logits are smaller than the labels. At label size it would cost more traffic than reading the
    logits again (the gradient is written, read and written once more), and twice the memory. In float16, which ends at
    65504, the gradient of the sum must also stay in range.
    """
    cells, pixels = input.shape[2] * input.shape[3], target.shape[-2] * target.shape[-1]
    if input.dtype == torch.float16 and (weight is not None or pixels > 4096 * cells):
        return False
    return bool(pixels > cells)


def _mean(total: Tensor, count: Tensor, avg_factor: float | Tensor | None) -> Tensor:
    if avg_factor is not None:
        return total / avg_factor
    return total / torch.where(count > 0, count, 1.0).to(total.dtype)


def _check_pair(input: Tensor, target: Tensor, dense: bool) -> None:
    checks.tensor("input", input, 4, checks.FLOATS, "[B, K, h, w]")
    if dense:
        checks.tensor("target", target, 4, checks.FLOATS, "[B, K, H, W]")
        if target.requires_grad:
            raise ValueError("target requires grad; there is no gradient to targets")
    else:
        checks.tensor("target", target, 3, checks.LABELS, "[B, H, W]")
    checks.same_device("target", target, "input", input)
    if target.shape[: 2 if dense else 1] != input.shape[: 2 if dense else 1]:
        raise ValueError(f"target {tuple(target.shape)} and input {tuple(input.shape)} differ in batch size or classes")
    if input.shape[1] == 0:
        raise ValueError(f"input must have at least one class, got shape {tuple(input.shape)}")
    if target.numel() > 0 and input.numel() == 0:
        raise ValueError(f"input {tuple(input.shape)} is empty while target {tuple(target.shape)} is not")


def _check_reduction(reduction: str, avg_factor: float | Tensor | None) -> None:
    checks.choice("reduction", reduction, REDUCTIONS)
    if avg_factor is None:
        return
    if reduction != "mean":
        raise ValueError(f"avg_factor goes with reduction='mean', got reduction={reduction!r}")
    if isinstance(avg_factor, Tensor):
        if avg_factor.numel() != 1:
            raise ValueError(f"avg_factor must be a number or a 0-d tensor, got shape {tuple(avg_factor.shape)}")
    elif not 0 < avg_factor < float("inf"):
        raise ValueError(f"avg_factor must be finite and > 0, got {avg_factor}")


def _check_softmax(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
    avg_factor: float | Tensor | None,
) -> None:
    _check_pair(input, target, dense=False)
    checks.number("label_smoothing", label_smoothing, 0.0, 1.0)
    _check_reduction(reduction, avg_factor)
    if weight is None:
        return
    checks.tensor("weight", weight, 1, checks.FLOATS, "[K]")
    checks.same_device("weight", weight, "input", input)
    if weight.shape[0] != input.shape[1]:
        raise ValueError(f"weight must have one entry per class, {input.shape[1]}, got {weight.shape[0]}")
    if weight.requires_grad:
        raise ValueError("weight requires grad; there is no gradient to class weights")
