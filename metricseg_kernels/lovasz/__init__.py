"""The Lovasz-softmax loss at label resolution, without a sort.

It takes logits [B, K, h, w] at the resolution of the network and labels [B, H, W] at their own. Interpolation,
probabilities and their histograms happen inside the kernel: no [B, K, H, W] tensor exists, and none is sorted.
"""

from __future__ import annotations

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
    check_pair,
    drop_channel,
    reduce_all,
)
from . import op, reference
from .formulas import lovasz_loss as loss_of_bins

MOST_BINS = 4096


def lovasz_loss(
    input: Tensor,
    target: Tensor,
    *,
    bins: int = 512,
    average: str = "present",
    per_image: bool = False,
    weight: Tensor | None = None,
    ignore_index: IgnoreIndex = "auto",
    align_corners: bool = False,
    all_reduce: Reduce | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""Lovasz extension of the Jaccard loss, of logits interpolated to label resolution.

    With p the softmax of a pixel's K logits after bilinear interpolation, the error of a valid pixel for class k is
    1 - p_k if its label is k, else p_k. With the errors e of all valid pixels of the batch, or of an image, in falling
    order, and J_i = 1 - I_i / U_i the Jaccard loss of the class if the first i of them are wrong, the loss of the class
    is

        sum_i e_i (J_i - J_(i-1))

    and the result is the mean over classes, and with `per_image` over the images.

    Errors are not sorted. They go to N = `bins` bins of equal width, and the pixels of a bin and kind (of the class, or
    not) share a J_i - J_(i-1). So the result differs from that of the sorted errors by at most 1 / N; the gradient is
    that of this sum with fixed differences, as it is with a sort. Errors below 1 / N of other classes count 0.

    Args:
        input: [B, K, h, w] logits, K >= 2; float64, float32, bfloat16 or float16; NCHW or channels-last. Probabilities
            are in float32 (float64 for float64), sums in float64.
        target: labels [B, H, W] or [B, 1, H, W], uint8, int32 or int64, read as they are.
        bins: N in [2, 4096].
        average: "present", the classes with a pixel, or "classes", all; an absent class has its largest error.
        per_image: take the order and the loss of each image, and their mean over the images that have a valid pixel.
            Else the order of the batch.
        weight: [K] class weights of the mean, which divides by their sum; None for 1.
        ignore_index: label of pixels that take no part; None for no label. "auto" is 255 if that is no class, and None
            if there are more than 255 classes.
        align_corners: as in torch.nn.functional.interpolate.
        all_reduce: applied to the vector of all counts and sums, [n] float64; for example a sum over processes, with
            its gradient. Not with per_image.
        backend: "reference", "cpu", "triton", or None for the first that can run. There is no "cuda".

    Returns:
        The loss, 0-d, in float32 (float64 for float64 input). No valid pixel: 0, with a zero gradient. A NaN in a valid
        pixel: NaN. The gradient has the dtype and memory format of `input`.

    Raises:
        TypeError, ValueError: an argument of wrong type, dtype, shape, device or range, named with its value. A label
            that is neither ignore_index nor in [0, K) raises on the CPU; on CUDA the loss is NaN, and with
            METRICSEG_VALIDATE=1 it raises there too.
        RuntimeError: a backend asked for by name can't run here; double backward without backend="reference".

    Within 1 / N of `lovasz_softmax(probas, labels, classes="present", per_image=..., ignore=...)` of the authors, and
    of the LovaszLoss of segmentation_models_pytorch (mode "multiclass") and of mmsegmentation, on interpolated logits
    and without weights. The latter multiplies a class by its weight and divides by the number of classes.

    Source: Berman et al., The Lovasz-Softmax loss, CVPR 2018.
    """
    checks.integer("bins", bins, 2, MOST_BINS)
    checks.choice("average", average, ("classes", "present"))
    checks.boolean("per_image", per_image)
    checks.boolean("align_corners", align_corners)
    target = drop_channel(target)
    check_pair(input, target, False)
    check_class_weight(weight, input)
    if input.shape[1] == 1:
        raise ValueError(
            f"input must have two classes or more, got shape {tuple(input.shape)}: the softmax of one is always 1"
        )
    check_all_reduce(all_reduce, per_image)
    inputs = op.Inputs(input, target, resolve_ignore_index(ignore_index, input.shape[1]), align_corners)
    name = choose("lovasz", input.device, input.dtype, backend)
    if name == "reference":
        found = reference.lovasz_bins(inputs, bins, per_image)
        if not torch.compiler.is_compiling():
            op.check_labels(found.totals, inputs)
    else:
        found = op.Bins(*ops.lovasz_fwd(*inputs, bins, per_image, name))
    if all_reduce is not None:
        found = op.Bins(*reduce_all(all_reduce, list(found)))
    valid, bad, _, undefined = found.totals.unbind(1)
    weight = None if weight is None else weight.detach()
    loss = loss_of_bins(found.counts.detach(), found.sums, valid, weight, average) + undefined.sum()
    return torch.where(bad.sum() > 0, torch.nan, loss).to(checks.accumulator(input.dtype))
