"""CPU kernels of the predict family, in the extension (csrc/predict)."""

from __future__ import annotations

from torch import Tensor

from ..core.library import define_kernel, ops
from .op import Inputs

INPUTS = "Tensor[] maps, bool[] flipped, float[] shares, bool align_corners, "
define_kernel(f"predict_labels_kernel({INPUTS} Tensor(a!) labels, Tensor(b!)? confidence, Tensor(c!)? entropy) -> ()")
define_kernel(
    f"confusion_matrix_kernel({INPUTS} Tensor target, int ignore_index, Tensor(a!) counts, Tensor(b!) bad) -> ()"
)


def predict_kernel(inputs: Inputs, labels: Tensor, confidence: Tensor | None, entropy: Tensor | None) -> None:
    """See op.py."""
    ops.predict_labels_kernel(*inputs, labels, confidence, entropy)


def confusion_kernel(inputs: Inputs, target: Tensor, ignore_index: int, counts: Tensor, bad: Tensor) -> None:
    """See op.py."""
    ops.confusion_matrix_kernel(*inputs, target, ignore_index, counts, bad)
