"""Private ops of the focal family: schemas, allocation, fakes, autograd. Derivation: docs/kernels/focal.md.

Kernels (one per backend, same signature) fill tensors that this file allocates, so launcher and fake cannot differ.
  focal_kernel          logits -> any of (loss, totals, argmax, gradient), in one pass
  sigmoid_focal_kernel  the same for the one-vs-rest form
  kth_largest_kernel    the order statistic that OHEM needs, or `most` if that is smaller
`divisor`, if asked for, is what the loss is divided by: the number of valid pixels, or `by_weight` the sum of their
class weights; 1 if that is 0. `ignored_loss` is that of pixels without a class, in the map. If a scalar loss needs a
gradient, forward returns that of the sum, and backward multiplies it by grad_loss.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ..core import backends, checks
from ..core.gradient import empty_gradient
from ..core.labels import labels_in_range
from ..core.library import define_kernel, define_op
from ..core.resize import label_size
from ..engines.resized.autograd import loss_autograd

TOTALS = 5  # valid pixels, sum of their weights, correct pixels, labels out of range, the largest such label

define_kernel(
    "focal_kernel(Tensor input, Tensor target, Tensor? weight, Tensor? keep_above, Tensor? grad_loss, float gamma, "
    "float label_smoothing, int ignore_index, bool align_corners, float ignored_loss, bool by_weight, "
    "Tensor(a!)? loss, Tensor(b!)? totals, Tensor(c!)? divisor, Tensor(d!)? argmax, Tensor(e!)? grad) -> ()"
)
define_kernel(
    "sigmoid_focal_kernel(Tensor input, Tensor target, Tensor? grad_loss, float gamma, float alpha, int ignore_index, "
    "bool align_corners, Tensor(a!)? loss, Tensor(b!)? totals, Tensor(c!)? grad) -> ()"
)
define_kernel("kth_largest_kernel(Tensor values, int k, float most, Tensor(a!) result) -> ()")


kernels = functools.partial(backends.kernels, "focal")  # (backend) -> module


def _loss_like(input: Tensor, shape: tuple[int, ...]) -> Tensor:
    return input.new_empty(shape, dtype=checks.accumulator(input.dtype))


def check_labels(totals: Tensor, input: Tensor, ignore_index: int) -> None:
    """Raise ValueError for labels out of range, if that needs no host sync or METRICSEG_VALIDATE=1."""
    if checks.validates(input.device):
        _, _, _, bad, example = totals.tolist()
        labels_in_range(bad, example, input.shape[1], ignore_index)


# --- focal ---------------------------------------------------------------------------------------------------------


def _focal_outputs(
    input: Tensor, target: Tensor, reduce: bool, with_grad: bool, with_argmax: bool, divide_by: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    loss = _loss_like(input, () if reduce else tuple(target.shape))
    totals = input.new_empty((TOTALS,), dtype=torch.float64)
    argmax = input.new_empty(tuple(target.shape) if with_argmax else (0,), dtype=torch.int32)
    divisor = _loss_like(input, () if divide_by else (0,))
    return loss, totals, argmax, divisor, empty_gradient(input) if with_grad else input.new_empty((0,))


def _focal_fwd(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    keep_above: Tensor | None,
    gamma: float,
    label_smoothing: float,
    ignore_index: int,
    align_corners: bool,
    reduce: bool,
    with_grad: bool,
    with_argmax: bool,
    divide_by: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    loss, totals, argmax, divisor, grad = _focal_outputs(input, target, reduce, with_grad, with_argmax, divide_by)
    kernels(backend).focal_kernel(
        input, target, weight, keep_above, None, gamma, label_smoothing, ignore_index, align_corners, 0.0,
        divide_by == "weight", loss, totals, divisor if divide_by else None, argmax if with_argmax else None,
        grad if with_grad else None,
    )  # fmt: skip
    check_labels(totals, input, ignore_index)
    return loss, totals, argmax, divisor, grad


def _focal_bwd(
    grad_loss: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    keep_above: Tensor | None,
    gamma: float,
    label_smoothing: float,
    ignore_index: int,
    align_corners: bool,
    backend: str,
) -> Tensor:
    grad = empty_gradient(input)
    kernels(backend).focal_kernel(
        input, target, weight, keep_above, grad_loss, gamma, label_smoothing, ignore_index, align_corners, 0.0,
        False, None, None, None, None, grad,
    )  # fmt: skip
    return grad


define_op(
    "focal_loss_fwd(Tensor input, Tensor target, Tensor? weight, Tensor? keep_above, float gamma, "
    "float label_smoothing, int ignore_index, bool align_corners, bool reduce, bool with_grad, bool with_argmax, "
    "str divide_by, str backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _focal_fwd,
    lambda input, target, *rest: _focal_outputs(input, target, *rest[-5:-1]),
    *loss_autograd("focal_bwd", tensors=4, divides=True),
)
define_op(
    "focal_bwd(Tensor grad_loss, Tensor input, Tensor target, Tensor? weight, Tensor? keep_above, float gamma, "
    "float label_smoothing, int ignore_index, bool align_corners, str backend) -> Tensor",
    _focal_bwd,
    lambda grad_loss, input, *_: empty_gradient(input),
)


# --- sigmoid focal -------------------------------------------------------------------------------------------------


def _sigmoid_outputs(input: Tensor, target: Tensor, reduce: bool, with_grad: bool) -> tuple[Tensor, Tensor, Tensor]:
    loss = _loss_like(input, () if reduce else (*input.shape[:2], *label_size(input, target)))
    totals = input.new_empty((TOTALS,), dtype=torch.float64)
    return loss, totals, empty_gradient(input) if with_grad else input.new_empty((0,))


def _sigmoid_forward(
    input: Tensor,
    target: Tensor,
    gamma: float,
    alpha: float,
    ignore_index: int,
    align_corners: bool,
    reduce: bool,
    with_grad: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    loss, totals, grad = _sigmoid_outputs(input, target, reduce, with_grad)
    kernels(backend).sigmoid_focal_kernel(
        input, target, None, gamma, alpha, ignore_index, align_corners, loss, totals, grad if with_grad else None
    )
    check_labels(totals, input, ignore_index)
    return loss, totals, grad


def _sigmoid_backward(
    grad_loss: Tensor,
    input: Tensor,
    target: Tensor,
    gamma: float,
    alpha: float,
    ignore_index: int,
    align_corners: bool,
    backend: str,
) -> Tensor:
    grad = empty_gradient(input)
    kernels(backend).sigmoid_focal_kernel(
        input, target, grad_loss, gamma, alpha, ignore_index, align_corners, None, None, grad
    )
    return grad


define_op(
    "sigmoid_focal_fwd(Tensor input, Tensor target, float gamma, float alpha, int ignore_index, "
    "bool align_corners, bool reduce, bool with_grad, str backend) -> (Tensor, Tensor, Tensor)",
    _sigmoid_forward,
    lambda input, target, *rest: _sigmoid_outputs(input, target, *rest[-3:-1]),
    *loss_autograd("sigmoid_focal_bwd", tensors=2),
)
define_op(
    "sigmoid_focal_bwd(Tensor grad_loss, Tensor input, Tensor target, float gamma, float alpha, int ignore_index, "
    "bool align_corners, str backend) -> Tensor",
    _sigmoid_backward,
    lambda grad_loss, input, *_: empty_gradient(input),
)


# --- OHEM ----------------------------------------------------------------------------------------------------------


def _ohem_threshold(
    input: Tensor, target: Tensor, min_kept: int, most: float, ignore_index: int, align_corners: bool, backend: str
) -> Tensor:
    nll, result = _loss_like(input, tuple(target.shape)), _loss_like(input, ())
    # an ignored pixel ranks below every valid one
    kernels(backend).focal_kernel(
        input, target, None, None, None, 0.0, 0.0, ignore_index, align_corners, -1.0, False, nll, None, None, None, None
    )
    kernels(backend).kth_largest_kernel(nll, min_kept, most, result)
    return result


define_op(
    "ohem_threshold(Tensor input, Tensor target, SymInt min_kept, float most, int ignore_index, bool align_corners, "
    "str backend) -> Tensor",
    _ohem_threshold,
    lambda input, *_: _loss_like(input, ()),
)
