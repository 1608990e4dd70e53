"""Allocation of a gradient, and scaling of one that forward has made."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .library import define_op, ops


def empty_gradient(input: Tensor, size: Any = None) -> Tensor:
    """An uninitialized gradient of a map, or a map of another size: channels-last if the input is, else contiguous."""
    channels_last = torch.channels_last_3d if input.ndim == 5 else torch.channels_last
    last = not input.is_contiguous() and input.is_contiguous(memory_format=channels_last)
    return torch.empty(
        input.shape if size is None else size,
        dtype=input.dtype,
        device=input.device,
        memory_format=channels_last if last else torch.contiguous_format,
    )


def _empty_like(grad: Tensor) -> Tensor:
    return grad.new_empty_strided(grad.shape, grad.stride())


def _scale(grad: Tensor, scale: Tensor) -> Tensor:
    # A one-element (not 0-d) factor takes part in type promotion: the product is formed in fp32 and rounded once.
    return torch.mul(grad, scale.reshape(1), out=_empty_like(grad))


define_op(
    "scale_gradient(Tensor grad, Tensor scale) -> Tensor",
    _scale,
    lambda grad, scale: _empty_like(grad),
)


def scale_gradient(grad: Tensor, scale: Tensor) -> Tensor:
    """grad times a 0-d scale, formed in the accumulator dtype.

    Raises RuntimeError in a backward with create_graph=True, in which `grad` would be a constant.
    """
    if torch.is_grad_enabled():
        raise RuntimeError("metricseg: create_graph=True, for double backward, runs only with backend='reference'")
    scaled: Tensor = ops.scale_gradient(grad, scale)
    return scaled
