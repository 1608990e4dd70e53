"""Dice, Tversky and Jaccard losses at label resolution, alone or with cross-entropy or focal loss from the same pass.

Each takes logits [B, K, h, w] at the resolution of the network and labels [B, H, W] at their own. Interpolation,
probabilities and their sums happen inside the kernel: no [B, K, H, W] tensor exists, forward or backward.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..core import checks
from ..core.backends import choose
from ..core.labels import IgnoreIndex, resolve_ignore_index
from ..core.library import ops
from ..engines.resized.arguments import (
    Reduce,
    check_all_reduce,
    check_class_weight,
    check_logits,
    check_pair,
    drop_channel,
    is_volume,
    reduce_all,
)
from . import formulas, op, reference
from .formulas import Formula


def region_loss(
    input: Tensor,
    target: Tensor,
    *,
    form: str = "dice",
    alpha: float = 0.5,
    beta: float = 0.5,
    smooth: float = 1.0,
    exponent: float = 1.0,
    log: bool = False,
    average: str = "classes",
    per_image: bool = False,
    ignore_index: IgnoreIndex = "auto",
    weight: Tensor | None = None,
    activation: str = "softmax",
    label_smoothing: float = 0.0,
    align_corners: bool = False,
    all_reduce: Reduce | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""Overlap of predicted and labeled regions, of logits interpolated to label resolution.

    With p the probabilities of a pixel's K logits after bilinear interpolation, y its target (one-hot for a label), and
    for each class sums over the valid pixels of the batch, or of each image

        I = sum p y,  P = sum p,  Y = sum y

    the score of a class is, with s = `smooth`,

        dice     (2 I + s) / (P + Y + s)
        tversky  (I + s) / (I + alpha (P - I) + beta (Y - I) + s)
        jaccard  (I + s) / (P + Y - I + s)

    and its loss (1 - score)^exponent, or with `log` (-log score)^exponent, the score at least 1e-7 there. The result is
    the mean over classes, and with `per_image` over the images.

    Args:
        input: [B, K, h, w] logits; float64, float32, bfloat16 or float16; NCHW or channels-last. Probabilities are in
            float32 (float64 for float64), sums in float64. Of a volume [B, K, d, h, w], interpolated trilinearly; the
            target then has [B, D, H, W] for [B, H, W]. On CUDA volumes take the reference, at label size.
        target: labels [B, H, W] or [B, 1, H, W], uint8, int32 or int64, read as they are; or soft targets [B, K, H, W],
            floating or integers, >= 0. Soft targets need not sum to 1. Labels of a single class (K = 1, sigmoid) are a
            mask, 0 and 1.
        form: "dice", "tversky" or "jaccard".
        alpha, beta: weights of false positives and false negatives in "tversky", >= 0. Both 1/2, with s / 2, is "dice"
            with s; both 1 is "jaccard".
        smooth: s >= 0. With 0 the score of 0 / 0 is 1.
        exponent: > 0. Focal Tversky loss with "tversky".
        log: take -log of the score, not 1 - score.
        average: "classes", all, or "present", those with Y > 0.
        per_image: take sums and losses of each image, and their mean over the images that have a valid pixel (with
            "present", a class). Else sums over the batch.
        ignore_index: label of pixels that take no part, in soft targets the value of their first channel; None for no
            label. "auto" is 255 if that is no class, and None if there are more than 255 classes.
        weight: [K] class weights of the mean, which divides by their sum; None for 1.
        activation: "softmax", or "sigmoid" for classes that overlap.
        label_smoothing: e in [0, 1]. y becomes (1 - e) y + e / K, with the sigmoid (1 - e) y + e / 2. "present" takes
            Y without it.
        align_corners: as in torch.nn.functional.interpolate.
        all_reduce: applied to the vector of all sums, [n] float64, before the formulas; for example a sum over
            processes, with its gradient. Not with per_image.
        backend: "reference", "cpu", "triton", "cuda", or None for the first that can run.

    Returns:
        The loss, 0-d, in float32 (float64 for float64 input). No valid pixel: 0, with a zero gradient. The gradient has
        the dtype and memory format of `input`.

    Raises:
        TypeError, ValueError: an argument of wrong type, dtype, shape, device or range, named with its value. A label
            that is neither ignore_index nor in [0, K), or a soft target that is negative or NaN, raises on the CPU; on
            CUDA the loss is NaN, and with METRICSEG_VALIDATE=1 it raises there too.
        RuntimeError: a backend asked for by name can't run here; double backward without backend="reference".

    Equal, to rounding, on interpolated logits, to

    - MONAI's DiceLoss(batch=True, to_onehot_y=True, softmax=True, smooth_nr=s, smooth_dr=s), TverskyLoss likewise, and
      with jaccard=True, whose denominator is 2 (P + Y - I) + s and numerator 2 I + s, to "jaccard" with s / 2. Its
      batch=False is per_image=True. Its weights multiply losses whose mean divides by K, not by the sum of weights.
    - segmentation_models_pytorch's DiceLoss (smooth=0), JaccardLoss and TverskyLoss of mode "multiclass" and
      "multilabel", if every class is present: it counts absent classes as 0, and divides by all. Its gamma is the power
      of the mean, not of each class. For soft targets its I is sum min(p, y).
    - torchmetrics' dice_score, f1_score and jaccard_index, for p of 0 and 1 with smooth=0, as 1 - loss.

    Sources: Milletari et al., V-Net, 3DV 2016; Salehi et al., Tversky loss function, MLMI 2017; Abraham and Khan, A
    Novel Focal Tversky Loss Function, ISBI 2019; Wong et al., Exponential Logarithmic Loss, MICCAI 2018.
    """
    checks.choice("form", form, ("dice", "tversky", "jaccard"))
    checks.number("alpha", alpha, 0.0)
    checks.number("beta", beta, 0.0)
    checks.number("exponent", exponent, 0.0)
    if exponent == 0:
        raise ValueError("exponent must be > 0, got 0")
    checks.choice("activation", activation, ("softmax", "sigmoid"))
    checks.boolean("log", log)
    formula = Formula(form, alpha, beta, smooth, exponent, log, average, label_smoothing)
    checks.boolean("align_corners", align_corners)
    target, ignored = _check(input, target, weight, formula, per_image, ignore_index, activation, all_reduce)
    weight = _cast(weight, input)
    inputs = op.Inputs(input, target, None, 0.0, 0.0, ignored, align_corners, activation == "softmax", False)
    found = _sums(inputs, per_image, all_reduce, backend)
    return found.result(formulas.region_loss(found.sums, found.valid, weight, inputs.softmax, formula), input)


def cross_entropy_dice(
    input: Tensor,
    target: Tensor,
    *,
    lambda_ce: float = 1.0,
    lambda_dice: float = 1.0,
    smooth: float = 1.0,
    average: str = "classes",
    per_image: bool = False,
    weight: Tensor | None = None,
    ignore_index: IgnoreIndex = "auto",
    label_smoothing: float = 0.0,
    align_corners: bool = False,
    all_reduce: Reduce | None = None,
    backend: str | None = None,
) -> Tensor:
    """lambda_ce `cross_entropy` + lambda_dice `region_loss` of form "dice", both from one pass over the pixels.

    Args:
        lambda_ce, lambda_dice: factors, >= 0.
        weight: [K] class weights of both terms. Each divides by their sum: over pixels, and over classes.
        label_smoothing: of the cross-entropy alone.
        input, target, smooth, average, per_image, ignore_index, align_corners, all_reduce, backend, result and errors:
            see `region_loss`; target is labels. per_image concerns the Dice term.

    Equal to MONAI's DiceCELoss(batch=True, to_onehot_y=True, softmax=True, smooth_nr=s, smooth_dr=s) on interpolated
    logits, where there are no weights.
    """
    checks.number("lambda_ce", lambda_ce, 0.0)
    return _pixels_and_dice(
        input, target, lambda_ce, lambda_dice, 0.0, label_smoothing, Formula(smooth=smooth, average=average), per_image,
        weight, True, ignore_index, align_corners, all_reduce, backend,
    )  # fmt: skip


def focal_dice(
    input: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    lambda_focal: float = 1.0,
    lambda_dice: float = 1.0,
    smooth: float = 1.0,
    average: str = "classes",
    per_image: bool = False,
    weight: Tensor | None = None,
    ignore_index: IgnoreIndex = "auto",
    label_smoothing: float = 0.0,
    align_corners: bool = False,
    all_reduce: Reduce | None = None,
    backend: str | None = None,
) -> Tensor:
    """lambda_focal `focal_loss` + lambda_dice `region_loss` of form "dice", both from one pass over the pixels.

    Args:
        gamma: focusing exponent of the focal loss, >= 0. Its mean divides by the number of valid pixels.
        lambda_focal, lambda_dice: factors, >= 0.
        others: see `cross_entropy_dice`.
    """
    checks.number("lambda_focal", lambda_focal, 0.0)
    checks.number("gamma", gamma, 0.0)
    return _pixels_and_dice(
        input, target, lambda_focal, lambda_dice, gamma, label_smoothing, Formula(smooth=smooth, average=average),
        per_image, weight, False, ignore_index, align_corners, all_reduce, backend,
    )  # fmt: skip


def _pixels_and_dice(
    input: Tensor,
    target: Tensor,
    lambda_pixel: float,
    lambda_dice: float,
    gamma: float,
    label_smoothing: float,
    formula: Formula,
    per_image: bool,
    weight: Tensor | None,
    weighs_pixels: bool,
    ignore_index: IgnoreIndex,
    align_corners: bool,
    all_reduce: Reduce | None,
    backend: str | None,
) -> Tensor:
    checks.number("lambda_dice", lambda_dice, 0.0)
    checks.number("label_smoothing", label_smoothing, 0.0, 1.0)
    checks.boolean("align_corners", align_corners)
    target, ignored = _check(input, target, weight, formula, per_image, ignore_index, "softmax", all_reduce)
    if target.is_floating_point():
        raise ValueError(
            f"target must be labels for a loss of pixels, got shape {tuple(target.shape)}; "
            "if these are one-hot maps, write target.argmax(1)"
        )
    weight = _cast(weight, input)
    inputs = op.Inputs(input, target, weight, float(gamma), float(label_smoothing), ignored, align_corners, True, True)
    found = _sums(inputs, per_image, all_reduce, backend)
    pixel = formulas.pixel_mean(found.loss, found.sums, weight if weighs_pixels else None)
    dice = formulas.region_loss(found.sums, found.valid, weight, True, formula)
    if lambda_pixel != 1:
        pixel = lambda_pixel * pixel
    return found.result(torch.add(pixel, dice, alpha=lambda_dice), input)


class _Sums(NamedTuple):
    sums: Tensor  # [S, K, 3] float64
    loss: Tensor  # [] of the pixels
    valid: Tensor  # [S] pixels
    bad: Tensor | None  # [] labels out of range; None where they have raised an error

    def result(self, loss: Tensor, input: Tensor) -> Tensor:
        """The loss in the accumulator dtype of the input; NaN if there are bad labels."""
        loss = loss if self.bad is None else torch.where(self.bad > 0, torch.nan, loss)
        return loss.to(checks.accumulator(input.dtype))


def _sums(inputs: op.Inputs, per_image: bool, all_reduce: Reduce | None, backend: str | None) -> _Sums:
    """Compute the sums by the backend that takes the call."""
    input = inputs.input
    name = choose("region", input.device, input.dtype, backend, volume=is_volume(input))
    if name == "reference":
        sums, loss, totals = reference.region_sums(inputs, per_image)
        if not torch.compiler.is_compiling():
            op.check_labels(totals, inputs)
    else:
        sums, loss, totals = ops.region_fwd(*inputs, per_image, name)
    valid = totals[:, 0]
    if all_reduce is None:
        raised = name != "reference" and checks.validates(totals.device)
        return _Sums(sums, loss, valid, None if raised else totals[:, 1].sum() if per_image else totals[0, 1])
    sums, loss, valid, bad = reduce_all(all_reduce, [sums, loss, valid, totals[0, 1]])
    return _Sums(sums, loss, valid, bad)


def _cast(weight: Tensor | None, input: Tensor) -> Tensor | None:
    return None if weight is None else weight.detach().to(checks.accumulator(input.dtype)).contiguous()


def _check(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    formula: Formula,
    per_image: bool,
    ignore_index: IgnoreIndex,
    activation: str,
    all_reduce: Reduce | None,
) -> tuple[Tensor, int]:
    """Check the arguments, and return labels [B, H, W] or a floating target, and the label that takes no part."""
    check_logits("input", input, volumes=True)
    if not (isinstance(target, Tensor) and target.is_floating_point()):
        target = drop_channel(target, is_volume(input))
    dense = isinstance(target, Tensor) and target.ndim == input.ndim
    if dense and target.dtype in checks.LABELS:
        target = target.to(checks.accumulator(input.dtype))
    check_pair(input, target, dense, volumes=True)
    check_class_weight(weight, input)
    if input.shape[1] == 1 and activation == "softmax":
        raise ValueError(
            f"input must have two classes or more, got shape {tuple(input.shape)}: the softmax of one is always 1; "
            "activation 'sigmoid' takes a single one"
        )
    checks.number("smooth", formula.smooth, 0.0)
    checks.choice("average", formula.average, ("classes", "present"))
    checks.number("label_smoothing", formula.label_smoothing, 0.0, 1.0)
    checks.boolean("per_image", per_image)
    check_all_reduce(all_reduce, per_image)
    ignored = resolve_ignore_index(ignore_index, None if dense else max(input.shape[1], 2))
    if dense:
        _check_soft(target, ignored)
    return target, ignored


def _check_soft(target: Tensor, ignored: int) -> None:
    """Raise ValueError for a negative target, if that needs no host sync or METRICSEG_VALIDATE=1."""
    if torch.compiler.is_compiling() or not checks.validates(target.device) or target.numel() == 0:
        return
    if target.amin() >= 0:  # not if there is a NaN
        return
    bad = ~(target >= 0) & (target[:, :1] != ignored)
    if bad.any():
        raise ValueError(
            f"target holds {int(bad.sum())} soft values that are not >= 0: for example {target[bad][0].item():g}"
        )
