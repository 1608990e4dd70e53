"""CPU kernels of the segments family, in the extension (csrc/segments); sums of segments are the engine's by label."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.labels import NO_LABEL
from ..core.library import define_kernel, ops
from ..core.unit import EPS
from ..engines.pixel_rows.cpu import label_sums_bwd, label_sums_fwd
from .op import KmeansInputs

define_kernel(
    "kmeans_kernel(Tensor embeddings, Tensor? location, Tensor? valid, Tensor? init, int rows, int columns, "
    "int iterations, bool coordinated, bool align_corners, float eps, Tensor(a!) ids) -> ()"
)
define_kernel(
    "split_by_label_kernel(Tensor ids, Tensor labels, int num_classes, int ignore_index, Tensor(a!) dense, "
    "Tensor(b!) found, Tensor(c!) count) -> ()"
)

split_by_label_kernel = ops.split_by_label_kernel


def spherical_kmeans_kernel(inputs: KmeansInputs, ids: Tensor) -> None:
    """See op.py."""
    valid = None if inputs.valid is None else inputs.valid.view(torch.uint8)
    ops.kmeans_kernel(*inputs._replace(valid=valid), EPS, ids)


def segment_sums_fwd_kernel(x: Tensor, ids: Tensor, sums: Tensor, mass: Tensor) -> None:
    """See op.py."""
    label_sums_fwd(x, ids, NO_LABEL, sums[None], mass[None])


def segment_sums_bwd_kernel(grad_sums: Tensor, ids: Tensor, grad: Tensor) -> None:
    """See op.py."""
    label_sums_bwd(grad_sums[None], ids, NO_LABEL, grad)
