"""Gradients of calls: a loss of a map against labels and its gradient, the same call in fp64, and torch's check."""

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


def gradcheck(function: Any, inputs: Any, backend: str, device: str, **options: Any) -> None:
    """torch's, of every element. Where a GPU's kernels run on the CPU, each call takes a fraction of a second: there it
    is one random projection of the Jacobian, whose elements are held against the reference's elsewhere."""
    on_host = device == "cpu" and backend in ("triton", "cuda")
    assert torch.autograd.gradcheck(function, inputs, fast_mode=on_host, **options)
