"""Sums of pixels by label on the CPU, in the extension (csrc/engines/pixel_rows/label_sums.cpp)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ...core.library import define_kernel, ops

define_kernel(
    "label_sums_fwd_kernel(Tensor features, Tensor labels, int ignore_index, Tensor(a!) sums, Tensor(b!) mass) -> ()"
)
define_kernel("label_sums_bwd_kernel(Tensor rows, Tensor labels, int ignore_index, Tensor(a!) maps) -> ()")


def label_sums_fwd(features: Tensor, labels: Tensor, ignore_index: int, sums: Tensor, mass: Tensor) -> None:
    """sums [B or 1, K, C] and mass [B or 1, K] of features [B, C, h, w] by labels [B, h, w]: of each image, or of all.

    Labels outside [0, K) belong to no class. sums and mass are in the accumulator dtype, contiguous.
    """
    ops.label_sums_fwd_kernel(features, labels, ignore_index, sums, mass)


def label_sums_bwd(grad_sums: Tensor, labels: Tensor, ignore_index: int, grad_features: Tensor) -> None:
    """grad_features [B, C, h, w], contiguous or channels-last: the row of grad_sums [B or 1, K, C] of each label."""
    rows = F.pad(grad_sums, (0, 0, 0, 1))  # and zeros for pixels without a class
    if grad_features.is_contiguous():
        rows = rows.mT.contiguous().mT
    ops.label_sums_bwd_kernel(rows.expand(grad_features.shape[0], -1, -1), labels, ignore_index, grad_features)
