"""Pixel classification losses at label resolution.

Each takes logits [B, K, h, w] at the resolution of the network and labels [B, H, W] at their own, and interpolates
bilinearly inside the kernel: no [B, K, H, W] tensor exists, forward or backward. Volumes have a further axis.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NamedTuple, TypedDict, overload

import torch
from torch import Tensor

from ..core import checks
from ..core.backends import choose
from ..core.labels import IgnoreIndex, is_label, resolve_ignore_index
from ..core.library import ops
from ..core.resize import label_size
from ..engines.resized.arguments import is_volume
from . import op, reference
from .arguments import (
    check_dense,
    check_pixel_weight,
    check_selection,
    check_sigmoid,
    check_softmax,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack


class CrossEntropyOptions(TypedDict, total=False):
    """Keyword arguments of `cross_entropy`, for its overloads."""

    weight: Tensor | None
    ignore_index: IgnoreIndex
    label_smoothing: float
    reduction: str
    avg_factor: float | Tensor | None
    pixel_weight: Tensor | None
    align_corners: bool
    backend: str | None


class FocalOptions(CrossEntropyOptions, total=False):
    """Keyword arguments of `focal_loss`, for its overloads."""

    gamma: float
    normalizer: str


class Scalars(NamedTuple):
    """Constants of a softmax loss, as `reference.focal` and the private op take them."""

    gamma: float
    label_smoothing: float
    ignore_index: int
    align_corners: bool


class Stats(NamedTuple):
    """By-products of a loss, from the same pass.

    correct: 0-d float64, valid pixels whose argmax is their label. valid: 0-d float64, pixels that took part.
    argmax: [B, H, W] int32, the most probable class of every pixel, ignored ones included.
    """

    correct: Tensor
    valid: Tensor
    argmax: Tensor


@overload
def focal_loss(
    input: Tensor, target: Tensor, *, return_stats: Literal[False] = ..., **options: Unpack[FocalOptions]
) -> Tensor: ...


@overload
def focal_loss(
    input: Tensor, target: Tensor, *, return_stats: Literal[True], **options: Unpack[FocalOptions]
) -> tuple[Tensor, Stats]: ...


def focal_loss(
    input: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    weight: Tensor | None = None,
    ignore_index: IgnoreIndex = "auto",
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    normalizer: str = "valid",
    avg_factor: float | Tensor | None = None,
    pixel_weight: Tensor | None = None,
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
            float32 (float64 for float64). Of a volume [B, K, d, h, w], interpolated trilinearly; everything that has
            [B, H, W] here then has [B, D, H, W]. On CUDA volumes take the reference, at label size.
        target: [B, H, W] or [B, 1, H, W] labels; uint8, int32 or int64, read as they are. Any (H, W) to (h, w) ratio.
        gamma: focusing exponent, >= 0. 0 is cross-entropy. Every value has a finite gradient, 0 < gamma < 1 included.
        weight: [K] class weights, floating, or None for 1.
        ignore_index: label of pixels that take no part; None for no label. "auto" is 255 if that is no class, and
            None if there are more than 255 classes.
        label_smoothing: e in [0, 1].
        reduction: "mean", "sum", or "none" for the map [B, H, W] with 0 at ignored pixels.
        normalizer: what "mean" divides by: "valid", the number of valid pixels, or "weight", the sum of weight[t].
        avg_factor: divides the sum instead, a number >= 0 or a tensor of one; only with reduction "mean". 0 gives 0,
            with a zero gradient.
        pixel_weight: [B, H, W] or [B, 1, H, W] factors of the pixels' losses. Normalizers and `Stats` ignore them.
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
    target = check_softmax(input, target, weight, label_smoothing, reduction, avg_factor, align_corners)
    checks.number("gamma", gamma, 0.0)
    checks.boolean("return_stats", return_stats)
    checks.choice("normalizer", normalizer, ("valid", "weight"))
    ignored = resolve_ignore_index(ignore_index, input.shape[1])
    scalars = Scalars(float(gamma), float(label_smoothing), ignored, align_corners)
    if pixel_weight is not None:
        pixel_weight = check_pixel_weight(pixel_weight, target, input)
    whole = normalizer == "valid" or weight is None
    form = reduction if pixel_weight is None else "none"
    if form == "mean":
        form = "sum" if avg_factor is not None else "valid" if whole else "weight"
    loss, totals, argmax = _softmax_family(input, target, weight, None, scalars, form, return_stats, backend)
    if pixel_weight is not None:
        loss = _weigh(loss, pixel_weight, is_label(target, ignored), reduction)
    if reduction == "mean" and form in ("sum", "none"):
        loss = _mean(loss, totals[0 if normalizer == "valid" else 1], avg_factor, whole)
    return (loss, Stats(totals[2], totals[0], argmax)) if argmax is not None else loss


@overload
def cross_entropy(
    input: Tensor, target: Tensor, *, return_stats: Literal[False] = ..., **options: Unpack[CrossEntropyOptions]
) -> Tensor: ...


@overload
def cross_entropy(
    input: Tensor, target: Tensor, *, return_stats: Literal[True], **options: Unpack[CrossEntropyOptions]
) -> tuple[Tensor, Stats]: ...


def cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: IgnoreIndex = "auto",
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    avg_factor: float | Tensor | None = None,
    pixel_weight: Tensor | None = None,
    align_corners: bool = False,
    return_stats: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Stats]:
    """Cross-entropy of logits interpolated to label resolution.

    `focal_loss` with gamma = 0 and normalizer "weight", so that it equals

        F.cross_entropy(F.interpolate(input, target.shape[-2:], mode="bilinear"), target, ...)

    to rounding, argument by argument; except that no valid pixel gives 0 (F.cross_entropy gives NaN), and that
    ignore_index is "auto" by default. Arguments, result and errors: see `focal_loss`.
    """
    return focal_loss(
        input, target, gamma=0.0, weight=weight, ignore_index=ignore_index, label_smoothing=label_smoothing,
        reduction=reduction, normalizer="weight", avg_factor=avg_factor, pixel_weight=pixel_weight,
        align_corners=align_corners, return_stats=return_stats, backend=backend,
    )  # type: ignore[call-overload, misc]  # fmt: skip


def sigmoid_focal_loss(
    input: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    alpha: float = 0.25,
    ignore_index: IgnoreIndex = "auto",
    reduction: str = "mean",
    avg_factor: float | Tensor | None = None,
    pixel_weight: Tensor | None = None,
    align_corners: bool = False,
    backend: str | None = None,
) -> Tensor:
    r"""One-vs-rest focal loss of logits interpolated to label resolution.

    Per pixel and class, with x the interpolated logit, t its target and p_t = sigmoid(x) t + (1 - sigmoid(x)) (1 - t):

        l = alpha_t (1 - p_t)^gamma BCE(x, t),    alpha_t = alpha t + (1 - alpha) (1 - t)

    Args:
        input: [B, K, h, w] logits, as in `focal_loss`.
        target: class indices [B, H, W] (uint8, int32, int64; [B, 1, H, W] if K > 1), which stand for their one-hot
            map, or dense targets in [0, 1], [B, K, H, W], floating or integers.
        ignore_index: label of pixels that take no part, in dense targets the value of all their channels; "auto" and
            None as in `focal_loss`.
        gamma: focusing exponent, >= 0.
        alpha: weight of the positives in [0, 1]; negative for no weighting, as in torchvision.
        reduction: "none" gives [B, K, H, W] with 0 at ignored pixels; "mean" divides the sum by K x valid pixels.
        avg_factor, pixel_weight, align_corners, backend, returns, raises: see `focal_loss`. A dense target that is
            neither ignored nor in [0, 1] raises on the CPU; on CUDA the loss is NaN, and with METRICSEG_VALIDATE=1 it
            raises there too.

    On dense targets this equals torchvision.ops.sigmoid_focal_loss on interpolated logits.
    Source: Lin et al., Focal Loss for Dense Object Detection, ICCV 2017.
    """
    target = check_sigmoid(input, target, gamma, alpha, reduction, avg_factor, align_corners)
    dense = target.ndim == input.ndim
    ignored = resolve_ignore_index(ignore_index, None if dense else input.shape[1])
    if dense:
        check_dense(target, ignored)
    if pixel_weight is not None:
        pixel_weight = check_pixel_weight(pixel_weight, target, input)
    reduce = reduction != "none" and pixel_weight is None
    scalars = (gamma, alpha, ignored, align_corners, reduce)
    name = choose("focal", input.device, input.dtype, backend, "sigmoid_focal", is_volume(input))
    if name == "reference":
        loss, totals = reference.sigmoid_focal(input, target, *scalars)
        if not torch.compiler.is_compiling():
            op.check_labels(totals, input, ignored)
    else:
        with_grad = reduce and _wants_grad(input) and _forward_makes_gradient(input, target, None)
        loss, totals, _ = ops.sigmoid_focal_fwd(input, target, *scalars, with_grad, name)
    if pixel_weight is not None:
        absent = target[:, 0] == ignored if dense else is_label(target, ignored)
        loss = _weigh(loss, pixel_weight[:, None], absent[:, None], reduction)
    return _mean(loss, totals[0] * input.shape[1], avg_factor) if reduction == "mean" else loss


def ohem_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    thresh: float = 0.7,
    min_kept: int = 100_000,
    top_k_percent: float | None = None,
    weight: Tensor | None = None,
    ignore_index: IgnoreIndex = "auto",
    label_smoothing: float = 0.0,
    align_corners: bool = False,
    backend: str | None = None,
) -> Tensor:
    r"""Cross-entropy of the hard pixels only (online hard example mining), at label resolution.

    A valid pixel is kept if p < max(p_(min_kept), thresh), p being the probability of its label and p_(k) the k-th
    smallest p over the valid pixels of the whole batch, counted from 0: at least `min_kept` pixels are kept (ties
    aside), and all whose p is below `thresh`. If there are at most min_kept valid pixels, all are kept.

        loss = 1 / #kept  sum over kept of weight[t] (-log p)

    With `top_k_percent` a valid pixel is kept if its -log p is at least the k-th largest of the batch, to rounding:

        k = max(1, int(top_k_percent B H W)),    loss = 1 / max(k, #kept)  sum over kept of weight[t] (-log p)

    k counts all pixels, and ignored ones stand in the mean as 0: of fewer than k valid pixels all are kept, and the sum
    is still divided by k. This is detectron2's DeepLabCE, but for ties, of which it keeps some, for k = 0, where it is
    NaN, and for class weights, which here do not change the ranks.

    The comparison runs on -log p, and the order statistic comes from a radix selection: no sort, no host sync.

    Args:
        thresh: probability in (0, 1].
        min_kept: >= 0, for the whole batch.
        top_k_percent: in (0, 1], a share in spite of its name; takes the place of thresh and min_kept. None for those.
        input, target, weight, ignore_index, label_smoothing, align_corners, backend, errors: see `focal_loss`.

    Source: Shrivastava et al., Training Region-based Object Detectors with Online Hard Example Mining, CVPR 2016, in
    the form of HRNet's and mmsegmentation's pixel sampler. Top k: Yang et al., DeeperLab: Single-Shot Image Parser,
    2019.
    """
    target = check_softmax(input, target, weight, label_smoothing, "mean", None, align_corners)
    check_selection(thresh, min_kept, top_k_percent)
    ignored = resolve_ignore_index(ignore_index, input.shape[1])
    name = choose("focal", input.device, input.dtype, backend, volume=is_volume(input))
    scalars = Scalars(0.0, float(label_smoothing), ignored, align_corners)
    if top_k_percent is None:  # p < max(p_k, thresh)  <=>  -log p > min(-log p_k, -log thresh)
        keep_above = _kth_hardest(input, target, min_kept, -math.log(thresh), scalars, name)
        return _softmax_family(input, target, weight, keep_above, scalars, "valid", False, name)[0]
    k = max(1, int(top_k_percent * target.numel()))
    keep_above = _kth_hardest(input, target, k - 1, math.inf, scalars, name)
    limits = torch.finfo(keep_above.dtype)  # keep the k-th too, and what equals it to rounding
    keep_above = (keep_above * (1 - 4 * limits.eps)).clamp(max=limits.max)
    loss, totals, _ = _softmax_family(input, target, weight, keep_above, scalars, "sum", False, name)
    return loss / totals[0].clamp(min=k).to(loss.dtype)


@torch.no_grad()
def _kth_hardest(input: Tensor, target: Tensor, k: int, most: float, scalars: Scalars, backend: str) -> Tensor:
    """The k-th largest -log p of valid pixels, counted from 0, -1 if there is none; or `most` if that is smaller."""
    if backend != "reference":
        return ops.ohem_threshold(input, target, k, most, scalars.ignore_index, scalars.align_corners, backend)
    plain = scalars._replace(label_smoothing=0.0)
    nll, _, _ = _softmax_family(input, target, None, None, plain, "none", False, backend)
    ranked = torch.where(is_label(target, scalars.ignore_index), -1.0, nll)  # ignored pixels rank below all valid ones
    return reference.kth_largest(ranked, k).clamp(max=most)


def _softmax_family(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    keep_above: Tensor | None,
    scalars: Scalars,
    reduction: str,
    with_argmax: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(loss, totals, argmax) from the backend that takes the call.

    reduction: "none" for a map, "sum", or what the sum is divided by, "valid" (pixels) or "weight" (that of them).
    """
    reduce, divide_by = reduction != "none", reduction if reduction in ("valid", "weight") else ""
    name = choose("focal", input.device, input.dtype, backend, volume=is_volume(input))
    if weight is not None:
        weight = weight.detach().to(checks.accumulator(input.dtype)).contiguous()
    if name == "reference":
        loss, totals, argmax = reference.focal(input, target, weight, keep_above, *scalars, reduce, with_argmax)
        if not torch.compiler.is_compiling():
            op.check_labels(totals, input, scalars.ignore_index)
        if divide_by:
            loss = _mean(loss, totals[0 if divide_by == "valid" else 1], None, divide_by == "valid")
        return loss, totals, argmax
    with_grad = reduce and _wants_grad(input) and _forward_makes_gradient(input, target, weight)
    loss, totals, argmax, *_ = ops.focal_loss_fwd(
        input, target, weight, keep_above, *scalars, reduce, with_grad, with_argmax, divide_by, name
    )
    return loss, totals, argmax if with_argmax else None


def _wants_grad(input: Tensor) -> bool:
    return input.requires_grad and torch.is_grad_enabled()


def _forward_makes_gradient(input: Tensor, target: Tensor, weight: Tensor | None) -> bool:
    """Whether forward also computes the gradient of the summed loss. If not, backward recomputes.

    It pays if the logits are smaller than the labels. At label size it would cost more traffic than reading the
    logits again (the gradient is written, read and written once more), and twice the memory. In float16, which ends at
    65504, the gradient of the sum must also stay in range.
    """
    cells, pixels = math.prod(input.shape[2:]), math.prod(label_size(input, target))
    if input.dtype == torch.float16 and (weight is not None or pixels > 4096 * cells):
        return False
    return bool(pixels > cells)


def _weigh(loss: Tensor, weight: Tensor, ignored: Tensor, reduction: str) -> Tensor:
    """A loss map times weights, with 0 at ignored pixels; summed unless reduction is "none"."""
    loss = loss * torch.where(ignored, 0.0, weight)
    return loss if reduction == "none" else loss.sum()


def _mean(total: Tensor, count: Tensor, avg_factor: float | Tensor | None, whole: bool = True) -> Tensor:
    """whole: whether `count` is a number of pixels, not a sum of weights."""
    if avg_factor is None:
        return total / (count.clamp(min=1) if whole else torch.where(count > 0, count, 1.0)).to(total.dtype)
    if not isinstance(avg_factor, Tensor):
        return total / avg_factor if avg_factor else total * 0.0
    factor = avg_factor.reshape(()).to(total.dtype)
    nothing = factor == 0
    return torch.where(nothing, 0.0, total / torch.where(nothing, 1.0, factor))
