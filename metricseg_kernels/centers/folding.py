"""Weights and bias of centers as an op with a gradient, for backends that have kernels of it (FOLDS)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..core import backends, checks
from ..core.library import define_op, ops
from .op import folded, kernels


def fold(centers: Tensor, metric: str, scale: float, backend: str) -> tuple[Tensor, Tensor | None]:
    """`op.folded`, in one launch where a backend FOLDS; its gradient too."""
    if not backends.capability("centers", backend, "FOLDS"):
        return folded(centers, metric, scale)
    weights, bias = ops.fold_centers_fwd(centers, metric, scale, backend)
    return weights, bias if metric == "euclidean" else None


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
