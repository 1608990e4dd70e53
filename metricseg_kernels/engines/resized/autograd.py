"""Autograd of losses of logits against labels, whose forward may return the gradient of the sum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ...core.gradient import scale_gradient
from ...core.library import ops

Exchange = Callable[[list[Tensor | None], list[Any]], tuple[list[Tensor | None], list[Any]]]


def loss_autograd(
    name: str, tensors: int, scalars: int = 4, divides: bool = False, exchange: Exchange | None = None
) -> tuple[Callable[..., None], Callable[..., tuple[Any, ...]]]:
    """setup_context and backward of a forward op, by the op `name`.

    The forward op takes `tensors` tensors and `scalars` scalars, which `name` takes too, then reduce, with_grad, and at
    last the backend; it returns the loss first and the gradient of its first argument last. divides: the argument
    before the backend says whether, or by what, the loss is divided; the result before the gradient is the divisor.
    exchange: makes of the tensors and scalars those whose first gradient is that of the second argument; without, there
    is none.
    """

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.scalars, ctx.fused = list(inputs[tensors : tensors + scalars]), inputs[tensors + scalars + 1]
        ctx.set_materialize_grads(False)  # else backward gets zeros of the size of the saved gradient
        ctx.mark_non_differentiable(*output[1:])
        ctx.divides = divides and bool(inputs[-2])
        ctx.exchanges = exchange is not None and ctx.needs_input_grad[1]
        kept = inputs[:tensors] if not ctx.fused or ctx.exchanges else ()
        divisor = output[-2:-1] if ctx.divides else ()
        ctx.save_for_backward(*divisor, *(output[-1:] if ctx.fused else ()), *kept)
        ctx.backend, ctx.inputs = inputs[-1], len(inputs)

    def backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Any, ...]:
        grad = second = None
        if grad_loss is not None:
            saved = list(ctx.saved_tensors)
            if ctx.divides:
                grad_loss = grad_loss / saved.pop(0)
            if ctx.fused:
                grad = scale_gradient(saved.pop(0), grad_loss)
            elif ctx.needs_input_grad[0]:
                grad = getattr(ops, name)(grad_loss, *saved, *ctx.scalars, ctx.backend)
            if exchange is not None and ctx.exchanges:
                others, other_scalars = exchange(saved, ctx.scalars)
                second = getattr(ops, name)(grad_loss, *others, *other_scalars, ctx.backend)
        return grad, second, *(None,) * (ctx.inputs - 2)

    return setup_context, backward
