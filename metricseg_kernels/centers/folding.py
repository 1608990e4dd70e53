"""Weights and bias of centers as an op with a gradient. On CUDA each of its operators would be a launch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core import checks
from ..core.library import define_op, ops
from ..core.unit import EPS
from .op import folded, kernels


def fold(centers: Tensor, metric: str, scale: float, backend: str) -> tuple[Tensor, Tensor | None]:
    """`op.folded`, by a backend."""
    weights, bias = ops.fold_centers_fwd(centers, metric, scale, backend)
    return weights, bias if metric == "euclidean" else None


def fold_weights(centers: Tensor, metric: str, scale: float, weights: Tensor, bias: Tensor) -> None:
    """Fill weights, and the bias of "euclidean", in plain PyTorch."""
    found, found_bias = folded(centers, metric, scale)
    weights.copy_(found)
    if found_bias is not None:
        bias.copy_(found_bias)


def fold_gradient(
    grad_weights: Tensor, grad_bias: Tensor | None, centers: Tensor, metric: str, scale: float, grad: Tensor
) -> None:
    """Fill the gradient of the centers, in plain PyTorch."""
    x, value = centers.to(grad_weights.dtype).view(grad_weights.shape), grad_weights
    if metric == "cosine":  # (g - u <u, g>) / |x|, u = x / |x|; of a norm below EPS, g / EPS; of 0, 0
        norm = x.square().sum(2, keepdim=True).sqrt()
        least = norm.clamp(min=EPS)
        unit = x / least
        along = torch.where(norm < EPS, 0.0, (unit * value).sum(2, keepdim=True))
        value = torch.where(norm == 0, 0.0, (value - unit * along) / least)
    elif metric == "euclidean":
        value = 2 * (value if grad_bias is None else value - x * grad_bias[..., None])
    grad.copy_((scale * value).view(grad.shape))


def _outputs(centers: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    shape, acc = (1, *centers.shape)[-3:], checks.accumulator(centers.dtype)
    bias = centers.new_empty(shape[:2] if metric == "euclidean" else (0,), dtype=acc)
    return centers.new_empty(shape, dtype=acc), bias


def _forward(centers: Tensor, metric: str, scale: float, backend: str) -> tuple[Tensor, Tensor]:
    out = _outputs(centers, metric)
    kernels(backend).fold_centers_fwd_kernel(centers.contiguous(), metric, scale, *out)
    return out


def _backward(
    grad_weights: Tensor, grad_bias: Tensor | None, centers: Tensor, metric: str, scale: float, backend: str
) -> Tensor:
    grad = centers.new_empty(centers.shape)
    grad_bias = None if grad_bias is None else grad_bias.contiguous()
    kernels(backend).fold_centers_bwd_kernel(
        grad_weights.contiguous(), grad_bias, centers.contiguous(), metric, scale, grad
    )
    return grad


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    centers, *ctx.scalars = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(centers)


def _autograd(ctx: Any, grad_weights: Tensor | None, grad_bias: Tensor | None) -> tuple[Any, ...]:
    if grad_weights is None:
        return (None,) * 4
    if ctx.scalars[0] != "euclidean":  # AOTAutograd passes a gradient of an output without elements, too
        grad_bias = None
    return ops.fold_centers_bwd(grad_weights, grad_bias, *ctx.saved_tensors, *ctx.scalars), None, None, None


define_op(
    "fold_centers_fwd(Tensor centers, str metric, float scale, str backend) -> (Tensor, Tensor)",
    _forward,
    lambda centers, metric, *_: _outputs(centers, metric),
    _setup,
    _autograd,
)
define_op(
    "fold_centers_bwd(Tensor grad_weights, Tensor? grad_bias, Tensor centers, str metric, float scale, str backend) "
    "-> Tensor",
    _backward,
    lambda _, __, centers, *rest: centers.new_empty(centers.shape),
)
