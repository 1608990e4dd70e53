"""Private ops of the distill family: schemas, allocation, fakes, autograd. Derivation: docs/kernels/distill.md.

One kernel (one per backend, same signature) fills tensors that this file allocates:
  distill_kernel  logits of two maps -> any of (loss, divisor, gradient of the first map), in one pass
`kind` is 0, 1 or 2, see `KINDS`. `divisor`, if asked for, is the number of valid pixels, at least 1, by which the loss
is divided. If a scalar loss needs a gradient, forward returns that of the sum, and backward multiplies it by grad_loss.
The gradient of the teacher is that of the first map of the same kernel with both maps exchanged.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor

from ..core import backends, checks
from ..core.gradient import empty_gradient
from ..core.library import define_kernel, define_op
from ..engines.resized.autograd import loss_autograd

KINDS = ("kl", "reverse_kl", "js")
EXCHANGED = {"kl": "reverse_kl", "reverse_kl": "kl", "js": "js"}  # the same divergence, arguments in the other order

SCALARS = "int height, int width, float temperature, {kind} kind, int ignore_index, bool align_corners"
OP_SCALARS = SCALARS.format(kind="str").replace("int height, int width", "SymInt height, SymInt width")

define_kernel(
    f"distill_kernel(Tensor input, Tensor other, Tensor? target, Tensor? grad_loss, {SCALARS.format(kind='int')}, "
    "Tensor(a!)? loss, Tensor(b!)? divisor, Tensor(c!)? grad) -> ()"
)

kernels = functools.partial(backends.kernels, "distill")  # (backend) -> module


def _outputs(
    student: Tensor, height: int, width: int, reduce: bool, with_grad: bool, mean: bool
) -> tuple[Tensor, Tensor, Tensor]:
    acc = checks.accumulator(student.dtype)
    loss = student.new_empty(() if reduce else (student.shape[0], height, width), dtype=acc)
    divisor = student.new_empty(() if mean else (0,), dtype=acc)
    return loss, divisor, empty_gradient(student) if with_grad else student.new_empty((0,))


def _fwd(
    student: Tensor,
    teacher: Tensor,
    target: Tensor | None,
    height: int,
    width: int,
    temperature: float,
    kind: str,
    ignore_index: int,
    align_corners: bool,
    reduce: bool,
    with_grad: bool,
    mean: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    loss, divisor, grad = _outputs(student, height, width, reduce, with_grad, mean)
    kernels(backend).distill_kernel(
        student, teacher, target, None, height, width, temperature, KINDS.index(kind), ignore_index, align_corners,
        loss, divisor if mean else None, grad if with_grad else None,
    )  # fmt: skip
    return loss, divisor, grad


def _bwd(
    grad_loss: Tensor,
    student: Tensor,
    teacher: Tensor,
    target: Tensor | None,
    height: int,
    width: int,
    temperature: float,
    kind: str,
    ignore_index: int,
    align_corners: bool,
    backend: str,
) -> Tensor:
    grad = empty_gradient(student)
    kernels(backend).distill_kernel(
        student, teacher, target, grad_loss, height, width, temperature, KINDS.index(kind), ignore_index, align_corners,
        None, None, grad,
    )  # fmt: skip
    return grad


def _exchange(tensors: list[Tensor | None], scalars: list[Any]) -> tuple[list[Tensor | None], list[Any]]:
    (student, teacher, target), (height, width, temperature, kind, *rest) = tensors, scalars
    return [teacher, student, target], [height, width, temperature, EXCHANGED[kind], *rest]


define_op(
    f"distill_fwd(Tensor student, Tensor teacher, Tensor? target, {OP_SCALARS}, bool reduce, bool with_grad, "
    "bool mean, str backend) -> (Tensor, Tensor, Tensor)",
    _fwd,
    lambda student, _, target, height, width, *rest: _outputs(student, height, width, *rest[-4:-1]),
    *loss_autograd("distill_bwd", tensors=3, scalars=6, divides=True, exchange=_exchange),
)
define_op(
    f"distill_bwd(Tensor grad_loss, Tensor student, Tensor teacher, Tensor? target, {OP_SCALARS}, str backend) "
    "-> Tensor",
    _bwd,
    lambda grad_loss, student, *_: empty_gradient(student),
)
