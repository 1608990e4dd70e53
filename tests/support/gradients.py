"""A loss of a map against labels, its gradient, and the same call in fp64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def widen(value: Any) -> Any:
    """Floating tensors in fp64 on the CPU, anything else as it is."""
    return value.double().cpu() if isinstance(value, Tensor) and value.is_floating_point() else value


def loss_and_grad(function: Any, input: Tensor, target: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    x = input.detach().requires_grad_()
    loss = function(x, target, **options)
    (grad,) = torch.autograd.grad(loss, x)
    return loss.detach(), grad
