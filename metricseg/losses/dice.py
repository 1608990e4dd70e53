"""The soft Dice loss, of regions rather than of pixels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metricseg.losses.base import LOSSES
from metricseg.losses.classification import PixelLoss, check_plain_mean
from metricseg.utils.labels import check_labels, check_maps, nearest
from metricseg_kernels.core.labels import is_label, resolve_ignore_index


@LOSSES.register("dice")
class DiceLoss(PixelLoss):
    """Soft Dice loss of logits z [B, K, h, w] against labels [B, H, W], at the logits' own grid, in plain PyTorch.

    With q = softmax_k(z), y_ik whether pixel i has label k, and sums over all pixels of the batch that have a label:

        loss = 1 - mean_k 2 sum_i q_ik y_ik / (sum_i q_ik + sum_i y_ik),

    the mean over the classes that have a pixel, weighted by `class_weight` if given; 0 if there is none. The
    labels taken are those of F.interpolate(mode="nearest"). A label out of range raises on the CPU, and on CUDA with
    METRICSEG_VALIDATE=1; without it the loss is NaN.

    Args:
        options: see `PixelLoss`. The reduction is always that mean, so another one, pixel weights and `avg_factor`
            raise ValueError; nothing is interpolated, and no kernel chosen.

    Source: Milletari et al. 2016, V-Net, in its multi-class form and without the squares.
    """

    def compute(self, input: Tensor, target: Tensor, **options: Any) -> Tensor:
        """See the class."""
        check_plain_mean(self, options)
        check_maps("input", input, "[B, K, h, w]", "target", target)
        classes = input.shape[1]
        ignored = resolve_ignore_index(options["ignore_index"], classes)
        check_labels(target, classes, ignored, "target")
        labels = nearest(target, input.shape[-2:])[:, None]  # [B, 1, h, w]
        valid = ~is_label(labels, ignored)
        y = (labels == torch.arange(classes, device=labels.device).view(-1, 1, 1)) & valid  # [B, K, h, w]
        q = input.to(torch.promote_types(input.dtype, torch.float32)).softmax(1) * valid
        hits, mass, count = ((q * y).sum((0, 2, 3)), q.sum((0, 2, 3)), y.sum((0, 2, 3)))  # [K]
        weight = (count > 0).to(q.dtype) if self.class_weight is None else (count > 0) * self.class_weight
        total = weight.sum()
        dice = 2 * hits / torch.where(count > 0, mass + count, 1)
        loss = torch.where(total > 0, 1 - (weight * dice).sum() / torch.where(total > 0, total, 1), 0.0)
        return torch.where((valid & ~y.any(1, keepdim=True)).any(), torch.nan, loss)
