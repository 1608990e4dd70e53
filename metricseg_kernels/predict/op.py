"""Private ops of the predict family: schemas, allocation, fakes. Derivation: docs/kernels/predict.md.

z_m is map m interpolated to [H, W], mirrored if it is flipped. The score of class k is
  z_k                                       of a single map
  sum_m share_m exp(z_mk - lse_m)           of several
and the label is the first class of the largest score.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from ..core import backends, checks
from ..core.labels import labels_in_range
from ..core.library import define_op, ops

kernels = functools.partial(backends.kernels, "predict")  # (backend) -> module


class Inputs(NamedTuple):
    """Maps of logits [B, K, (d_m,) h_m, w_m] of one dtype, and how they are read and weighed."""

    maps: list[Tensor]
    flipped: list[bool]
    shares: list[float]  # >= 0, of sum 1
    align_corners: bool


def _predict_outputs(
    maps: list[Tensor], size: list[int], dtype: torch.dtype, with_confidence: bool, with_entropy: bool
) -> tuple[Tensor, Tensor, Tensor]:
    pixels, acc = (maps[0].shape[0], *size), checks.accumulator(maps[0].dtype)
    confidence, entropy = (
        maps[0].new_empty(pixels if wanted else (0,), dtype=acc) for wanted in (with_confidence, with_entropy)
    )
    return maps[0].new_empty(pixels, dtype=dtype), confidence, entropy


def _predict(
    maps: list[Tensor],
    flipped: list[bool],
    shares: list[float],
    align_corners: bool,
    size: list[int],
    dtype: torch.dtype,
    with_confidence: bool,
    with_entropy: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    labels, confidence, entropy = _predict_outputs(maps, size, dtype, with_confidence, with_entropy)
    kernels(backend).predict_kernel(
        Inputs(maps, flipped, shares, align_corners), labels,
        confidence if with_confidence else None, entropy if with_entropy else None,
    )  # fmt: skip
    return labels, confidence, entropy


def check_labels(bad: Tensor, classes: int, ignore_index: int) -> None:
    """Raise ValueError for `bad` (count, example) labels, if that needs no host sync or METRICSEG_VALIDATE=1."""
    if checks.validates(bad.device):
        count, example = bad.tolist()
        labels_in_range(count, example, classes, ignore_index)


def _confusion_outputs(maps: list[Tensor]) -> tuple[Tensor, Tensor]:
    classes = maps[0].shape[1]
    return maps[0].new_empty((classes, classes), dtype=torch.int64), maps[0].new_empty((2,), dtype=torch.float64)


def _confusion(
    maps: list[Tensor],
    flipped: list[bool],
    shares: list[float],
    align_corners: bool,
    target: Tensor,
    ignore_index: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    counts, bad = _confusion_outputs(maps)
    kernels(backend).confusion_kernel(Inputs(maps, flipped, shares, align_corners), target, ignore_index, counts, bad)
    check_labels(bad, maps[0].shape[1], ignore_index)  # here, so that it runs under torch.compile
    return counts, bad


define_op(
    "predict_labels(Tensor[] maps, bool[] flipped, float[] shares, bool align_corners, SymInt[] size, "
    "ScalarType dtype, bool with_confidence, bool with_entropy, str backend) -> (Tensor, Tensor, Tensor)",
    _predict,
    lambda maps, _, __, ___, *rest: _predict_outputs(maps, *rest[:-1]),
)
define_op(
    "confusion_matrix(Tensor[] maps, bool[] flipped, float[] shares, bool align_corners, Tensor target, "
    "int ignore_index, str backend) -> (Tensor, Tensor)",
    _confusion,
    lambda maps, *_: _confusion_outputs(maps),
)
predict_labels, confusion_matrix = ops.predict_labels, ops.confusion_matrix
