"""Private ops of the anchors family: schemas, allocation, fakes, autograd. Derivation: docs/kernels/anchors.md.

Kernels (one per backend, same signature) fill tensors that this file allocates, so launcher and fake cannot differ.
  sample_anchors_kernel     labels, predictions and preferred pixels -> indices of the chosen pixels
  gather_pixels_fwd_kernel  their rows out of a feature map, and the norms
  gather_pixels_bwd_kernel  the gradient of a feature map; indices come sorted, so each pixel has one owner
Backward needs the rows, the norms and the indices. The feature map itself is not kept alive.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core import backends, checks
from ..core.labels import labels_in_range
from ..core.library import define_kernel, define_op, ops
from .reference import SAMPLE_COUNTS, SampleInputs

INPUTS = (  # the fields of SampleInputs
    "Tensor labels, Tensor? predictions, Tensor? first, Tensor seed, SymInt max_samples, int max_views, "
    "int min_pixels, bool half, int num_classes, int ignore_index, int ignore_label"
)

define_kernel(
    "gather_pixels_fwd_kernel(Tensor features, Tensor index, bool normalize, float eps, "
    "Tensor(a!) rows, Tensor(b!) norms) -> ()"
)
define_kernel(
    "gather_pixels_bwd_kernel(Tensor grad_rows, Tensor rows, Tensor norms, Tensor index, Tensor order, "
    "bool normalize, float eps, Tensor(a!) grad) -> ()"
)


kernels = functools.partial(backends.kernels, "anchors")  # (backend) -> module


def check_labels(bad: Tensor, num_classes: int, ignore_index: int) -> None:
    """Raise ValueError for labels out of range, if that needs no host sync or METRICSEG_VALIDATE=1."""
    if checks.validates(bad.device):
        count, example = bad.tolist()
        labels_in_range(count, example, num_classes, ignore_index, name="labels")


def check_index(index: Tensor, pixels: int) -> None:
    """Raise ValueError for indices out of range, if that needs no host sync or METRICSEG_VALIDATE=1."""
    if checks.validates(index.device) and index.numel():
        low, high = (int(bound) for bound in torch.aminmax(index))
        if low < -1 or high >= pixels:
            raise ValueError(
                f"index must hold -1 or the number of a pixel in [0, {pixels}), got {low if low < -1 else high}"
            )


# --- sampling ------------------------------------------------------------------------------------------------------


class Sampled(NamedTuple):
    """Outputs of sample_anchors_kernel, int64."""

    index: Tensor  # type: ignore[assignment]  # [S]; tuple has methods of these names
    labels: Tensor  # [S]
    count: Tensor  # type: ignore[assignment]  # []
    bad: Tensor  # [2]: number of labels out of range, the largest of them or 0


def _sample_outputs(labels: Tensor, max_samples: int) -> Sampled:
    shapes = ((max_samples,), (max_samples,), (), (SAMPLE_COUNTS,))
    return Sampled._make(labels.new_empty(shape, dtype=torch.int64) for shape in shapes)


def _sample(labels: Tensor, predictions: Tensor | None, first: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    *scalars, backend = rest
    inputs = SampleInputs(labels, predictions, None if first is None else first.view(torch.uint8), *scalars)
    found = _sample_outputs(labels, inputs.max_samples)
    kernels(backend).sample_anchors_kernel(inputs, found)
    check_labels(found.bad, inputs.num_classes, inputs.ignore_index)
    return found[:3]


define_op(
    f"sample_pixels({INPUTS}, str backend) -> (Tensor, Tensor, Tensor)",
    _sample,
    lambda labels, predictions, first, seed, max_samples, *_: tuple(_sample_outputs(labels, max_samples)[:3]),
)


# --- gathering -----------------------------------------------------------------------------------------------------


def _rows(features: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    rows = features.new_empty((index.shape[0], features.shape[1]))
    return rows, features.new_empty((index.shape[0],), dtype=checks.accumulator(features.dtype))


def _gather(features: Tensor, index: Tensor, normalize: bool, eps: float, backend: str) -> tuple[Tensor, Tensor]:
    check_index(index, features.shape[0] * features.shape[2] * features.shape[3])
    rows, norms = _rows(features, index)
    kernels(backend).gather_pixels_fwd_kernel(features, index.contiguous(), normalize, eps, rows, norms)
    return rows, norms


def _gather_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    features, index, *ctx.scalars = inputs
    rows, norms = output
    ctx.mark_non_differentiable(norms)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(rows, norms, index)
    ctx.size = features.shape
    ctx.channels_last = not features.is_contiguous() and features.is_contiguous(memory_format=torch.channels_last)


def _gather_autograd(ctx: Any, grad_rows: Tensor | None, _: Any) -> tuple[Any, ...]:
    grad = None
    if grad_rows is not None:
        normalize, eps, backend = ctx.scalars
        grad = ops.gather_pixels_backward(
            grad_rows, *ctx.saved_tensors, ctx.size, ctx.channels_last, normalize, eps, backend
        )
    return grad, None, None, None, None


def _gradient(rows: Tensor, size: list[int], channels_last: bool) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(size, dtype=rows.dtype, device=rows.device, memory_format=layout)


def _gather_backward(
    grad_rows: Tensor,
    rows: Tensor,
    norms: Tensor,
    index: Tensor,
    size: list[int],
    channels_last: bool,
    normalize: bool,
    eps: float,
    backend: str,
) -> Tensor:
    grad = _gradient(rows, size, channels_last)
    index, order = index.sort(stable=True)
    kernels(backend).gather_pixels_bwd_kernel(grad_rows, rows, norms, index, order, normalize, eps, grad)
    return grad


define_op(
    "gather_pixels(Tensor features, Tensor index, bool normalize, float eps, str backend) -> (Tensor, Tensor)",
    _gather,
    lambda features, index, *_: _rows(features, index),
    _gather_setup,
    _gather_autograd,
)
define_op(
    "gather_pixels_backward(Tensor grad_rows, Tensor rows, Tensor norms, Tensor index, SymInt[] size, "
    "bool channels_last, bool normalize, float eps, str backend) -> Tensor",
    _gather_backward,
    lambda grad_rows, rows, norms, index, size, channels_last, *_: _gradient(rows, size, channels_last),
)
