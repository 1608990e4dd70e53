"""Private ops of the refine family: schemas, allocation, fakes, autograd. Derivation: docs/kernels/refine.md.

Kernels (one per backend, same signature) fill tensors that this file allocates, so launcher and fake cannot differ.
  refine_fwd_kernel   the output
  refine_bwd_kernel   the gradients that are asked for
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from torch import Tensor

from ..core import backends
from ..core.gradient import empty_gradient
from ..core.library import define_op, ops

kernels = functools.partial(backends.kernels, "refine")  # (backend) -> module


class RefineInputs(NamedTuple):
    """Inputs of both kernels."""

    features: Tensor
    offsets: Tensor
    neighbor_logits: Tensor | None
    align_corners: bool
    zeros: bool  # samples outside are 0, else the border's


def _output(features: Tensor, offsets: Tensor, *_: Any) -> Tensor:
    return empty_gradient(features, (*features.shape[:2], *offsets.shape[2:]))


def _fwd(
    features: Tensor, offsets: Tensor, neighbor_logits: Tensor | None, align_corners: bool, zeros: bool, backend: str
) -> Tensor:
    output = _output(features, offsets)
    inputs = RefineInputs(features, offsets, neighbor_logits, align_corners, zeros)
    kernels(backend).refine_fwd_kernel(inputs, output)
    return output


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, offsets, neighbor_logits, ctx.align_corners, ctx.zeros, ctx.backend = inputs
    ctx.save_for_backward(features, offsets, neighbor_logits)
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
    found: list[Tensor | None] = [None] * 3
    wanted = list(ctx.needs_input_grad[:3])
    if grad is not None and any(wanted):
        got = ops.refine_upsample_bwd(grad, *ctx.saved_tensors, ctx.align_corners, ctx.zeros, wanted, ctx.backend)
        found = [g if want else None for g, want in zip(got, wanted, strict=True)]
    return (*found, None, None, None)


def _gradients(grad: Tensor, inputs: tuple[Tensor | None, ...], wanted: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    features, offsets, neighbor_logits = (
        empty_gradient(x) if want and x is not None else grad.new_empty(0)
        for x, want in zip(inputs, wanted, strict=True)
    )
    return features, offsets, neighbor_logits


def _bwd(
    grad: Tensor, features: Tensor, offsets: Tensor, neighbor_logits: Tensor | None, align_corners: bool, zeros: bool,
    wanted: list[bool], backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    found = _gradients(grad, (features, offsets, neighbor_logits), wanted)
    if grad.numel() == 0:
        for g in found:
            g.zero_()
        return found
    inputs = RefineInputs(features, offsets, neighbor_logits, align_corners, zeros)
    kernels(backend).refine_bwd_kernel(
        inputs, grad, *(g if want else None for g, want in zip(found, wanted, strict=True))
    )
    return found


define_op(
    "refine_upsample_fwd(Tensor features, Tensor offsets, Tensor? neighbor_logits, bool align_corners, bool zeros, "
    "str backend) -> Tensor",
    _fwd,
    _output,
    _setup,
    _autograd,
)
define_op(
    "refine_upsample_bwd(Tensor grad, Tensor features, Tensor offsets, Tensor? neighbor_logits, bool align_corners, "
    "bool zeros, bool[] wanted, str backend) -> (Tensor, Tensor, Tensor)",
    _bwd,
    lambda grad, features, offsets, neighbor_logits, _, __, wanted, ___: _gradients(
        grad, (features, offsets, neighbor_logits), wanted
    ),
)
