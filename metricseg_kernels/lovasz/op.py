"""Private ops of the lovasz family: schemas, allocation, fakes, autograd. Derivation: docs/kernels/lovasz.md.

Kernels (one module per backend, same functions):
  lovasz_fwd_kernel  logits -> counts and sums of errors in bins, and counts of pixels
  lovasz_bwd_kernel  gradients of those sums -> that of the logits
The loss is a function of counts and sums, in plain PyTorch: formulas.py. Backward needs the inputs and the gradients of
the sums, one number for each bin, and is a second pass over the logits.
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

SCHEMA = "Tensor input, Tensor target, int ignore_index, bool align_corners"

kernels = functools.partial(backends.kernels, "lovasz")  # (backend) -> module


class Inputs(NamedTuple):
    """Arguments of both kernels."""

    input: Tensor  # [B, K, h, w]
    target: Tensor  # labels [B, H, W]
    ignore_index: int
    align_corners: bool


class Bins(NamedTuple):
    """The results of forward, in float64; S = B if the images are apart, else 1.

    Errors of a class are 1 - p of its own pixels (kind 1) and p of the others (kind 0). Bin b holds those in
    [b / N, (b + 1) / N), the last one also 1. Bin 0 of kind 0 stays empty.
    """

    counts: Tensor  # [S, K, 2, N]
    sums: Tensor  # [S, K, 2, N] of errors
    totals: Tensor  # [S, 4]: valid pixels, labels out of range, the largest such label or 0, 0 or NaN if an error is


def check_labels(totals: Tensor, inputs: Inputs) -> None:
    """Raise ValueError for labels out of range, if that needs no host sync or METRICSEG_VALIDATE=1."""
    if checks.validates(totals.device):
        bad = totals[:, 1].sum().item()
        if bad:
            example = totals[totals[:, 1] > 0, 2].amax().item()
            labels_in_range(bad, example, inputs.input.shape[1], inputs.ignore_index)


def _outputs(input: Tensor, bins: int, per_image: bool) -> Bins:
    images = input.shape[0] if per_image else 1
    shape = (images, input.shape[1], 2, bins)
    return Bins(*(input.new_empty(size, dtype=torch.float64) for size in (shape, shape, (images, 4))))


def _fwd(
    input: Tensor, target: Tensor, ignore_index: int, align_corners: bool, bins: int, per_image: bool, backend: str
) -> Bins:
    inputs, outputs = Inputs(input, target, ignore_index, align_corners), _outputs(input, bins, per_image)
    kernels(backend).lovasz_fwd_kernel(inputs, *outputs)
    check_labels(outputs.totals, inputs)
    return outputs


def _bwd(
    grad_sums: Tensor, input: Tensor, target: Tensor, ignore_index: int, align_corners: bool, backend: str
) -> Tensor:
    grad = empty_gradient(input)
    inputs = Inputs(input, target, ignore_index, align_corners)
    table = grad_sums.to(checks.accumulator(input.dtype)).contiguous()
    kernels(backend).lovasz_bwd_kernel(inputs, table, grad)
    return grad


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    input, target, *ctx.scalars, _, _, ctx.backend = inputs
    ctx.save_for_backward(input, target)
    found = Bins(*output)
    ctx.mark_non_differentiable(found.counts, found.totals)


def _backward(ctx: Any, _: Any, grad_sums: Tensor, __: Any) -> tuple[Any, ...]:
    return ops.lovasz_bwd(grad_sums, *ctx.saved_tensors, *ctx.scalars, ctx.backend), *(None,) * 6


define_op(
    f"lovasz_fwd({SCHEMA}, int bins, bool per_image, str backend) -> (Tensor, Tensor, Tensor)",
    _fwd,
    lambda input, target, ignore_index, align_corners, bins, per_image, backend: _outputs(input, bins, per_image),
    _setup_context,
    _backward,
)
define_op(
    f"lovasz_bwd(Tensor grad_sums, {SCHEMA}, str backend) -> Tensor",
    _bwd,
    lambda grad_sums, input, *_: empty_gradient(input),
)
