"""Private ops of the region family: schemas, allocation, fakes, autograd. Derivation: docs/kernels/region.md.

Kernels (one module per backend, same functions):
  region_fwd_kernel  logits -> I, P and Y of each class, the sum of the pixel loss, and counts of pixels
  region_bwd_kernel  gradients of those sums -> that of the logits
The formulas of the losses are functions of the sums, in plain PyTorch: formulas.py. Backward needs the inputs and the
gradients of the sums, and is a second pass over the logits.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core import backends, checks
from ..core.gradient import empty_gradient
from ..core.labels import labels_in_range
from ..core.library import define_op, ops

SCHEMA = (
    "Tensor input, Tensor target, Tensor? weight, float gamma, float label_smoothing, int ignore_index, "
    "bool align_corners, bool softmax, bool pixel_loss"
)

kernels = functools.partial(backends.kernels, "region")  # (backend) -> module


class Inputs(NamedTuple):
    """Arguments of both kernels. weight, gamma and label_smoothing belong to the pixel loss, cross-entropy or focal."""

    input: Tensor  # [B, K, (d,) h, w]
    target: Tensor  # labels [B, (D,) H, W], or soft [B, K, (D,) H, W]
    weight: Tensor | None  # [K] in the accumulator dtype
    gamma: float
    label_smoothing: float
    ignore_index: int
    align_corners: bool
    softmax: bool  # else sigmoid
    pixel_loss: bool

    @property
    def label_classes(self) -> int:
        """Labels of a single class are a mask, 0 and 1."""
        return max(self.input.shape[1], 2)


class Sums(NamedTuple):
    """The results of forward, in float64; S = B if the images are apart, else 1."""

    sums: Tensor  # [S, K, 3]: I = sum p y, P = sum p, Y = sum y over the valid pixels
    loss: Tensor  # []: sum of the pixel loss, or 0
    totals: Tensor  # [S, 3]: valid pixels, labels out of range, the largest such label or 0


def check_labels(totals: Tensor, inputs: Inputs) -> None:
    """Raise ValueError for labels out of range, if that needs no host sync or METRICSEG_VALIDATE=1."""
    if checks.validates(totals.device):
        bad = totals[:, 1].sum().item()
        if bad:
            example = totals[totals[:, 1] > 0, 2].amax().item()
            labels_in_range(bad, example, inputs.label_classes, inputs.ignore_index)


def _outputs(input: Tensor, per_image: bool) -> Sums:
    shape = (input.shape[0] if per_image else 1, input.shape[1], 3)
    sizes: tuple[tuple[int, ...], ...] = (shape, (), (shape[0], 3))
    return Sums(*(input.new_empty(size, dtype=torch.float64) for size in sizes))


def _fwd(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    gamma: float,
    label_smoothing: float,
    ignore_index: int,
    align_corners: bool,
    softmax: bool,
    pixel_loss: bool,
    per_image: bool,
    backend: str,
) -> Sums:
    inputs = Inputs(input, target, weight, gamma, label_smoothing, ignore_index, align_corners, softmax, pixel_loss)
    outputs = _outputs(input, per_image)
    kernels(backend).region_fwd_kernel(inputs, *outputs)
    check_labels(outputs.totals, inputs)
    return outputs


def _bwd(
    grad_sums: Tensor,
    grad_loss: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    gamma: float,
    label_smoothing: float,
    ignore_index: int,
    align_corners: bool,
    softmax: bool,
    pixel_loss: bool,
    backend: str,
) -> Tensor:
    inputs = Inputs(input, target, weight, gamma, label_smoothing, ignore_index, align_corners, softmax, pixel_loss)
    grad = empty_gradient(input)
    kernels(backend).region_bwd_kernel(inputs, grad_sums.contiguous(), grad_loss.contiguous(), grad)
    return grad


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *given, _, ctx.backend = inputs
    input, target, weight, *ctx.scalars = Inputs(*given)
    ctx.save_for_backward(input, target, weight)
    ctx.mark_non_differentiable(Sums(*output).totals)


def _backward(ctx: Any, grad_sums: Tensor, grad_loss: Tensor, _: Any) -> tuple[Any, ...]:
    grad = ops.region_bwd(grad_sums, grad_loss, *ctx.saved_tensors, *ctx.scalars, ctx.backend)
    return grad, *(None,) * 10


define_op(
    f"region_fwd({SCHEMA}, bool per_image, str backend) -> (Tensor, Tensor, Tensor)",
    _fwd,
    lambda input, *rest: _outputs(input, rest[-2]),
    _setup_context,
    _backward,
)
define_op(
    f"region_bwd(Tensor grad_sums, Tensor grad_loss, {SCHEMA}, str backend) -> Tensor",
    _bwd,
    lambda grad_sums, grad_loss, input, *_: empty_gradient(input),
)
