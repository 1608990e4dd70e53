"""Private ops of the contrast family: schemas, allocation, fakes, autograd. Derivation: docs/kernels/contrast.md.

The forms "negatives", "all" and "margin" are epilogues of one stream of tiles. Forward leaves STATS sums a row, and
this file makes losses of them. Backward recomputes the tiles from COEFFICIENTS numbers a row. Both are in the order of
the sorted rows. The functions of a backend fill what they are given:
  contrast_fwd_kernel(x, y, form, stats, grad_x, grad_y)    gradients of the summed terms, if forward makes them
  contrast_bwd_kernel(x, y, form, coefficients, grad_x, grad_y)
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core import backends, checks
from ..core.gradient import scale_gradient
from ..core.library import define_op, ops
from ..engines.row_pairs.rows import Rows


class LseStats(NamedTuple):
    """Row statistics [R] of "negatives" and "all". The LSE of a row's denominator is row_max / temperature + lse."""

    row_max: Tensor  # any number near the largest <x, y>
    lse: Tensor  # log sum exp((<x, y> - row_max) / temperature); -inf without such a pair
    positives: Tensor
    loss_sum: Tensor  # sum over positives of softplus(LSE - s); for "all" of LSE - s
    sigmoid_sum: Tensor  # sum over positives of sigmoid(LSE - s); unused by "all"


class MarginRowStats(NamedTuple):
    """Row statistics [R] of "margin": sums over positives and over negatives, and what their means divide by."""

    pull: Tensor
    pulled: Tensor
    push: Tensor
    pushed: Tensor
    unused: Tensor


class RowCoefs(NamedTuple):
    """Coefficients [R] of backward: W = negative exp((<x, y> - row_max) / temperature) on the denominator's pairs, and
    positive sigmoid(LSE - s) off it on positives."""

    row_max: Tensor
    negative: Tensor
    positive: Tensor
    lse: Tensor


class MarginCoefs(NamedTuple):
    """Coefficients [R] of "margin": the gradients of both sums."""

    positive: Tensor
    negative: Tensor


STATS, COEFFICIENTS = len(LseStats._fields), len(RowCoefs._fields)
SIDES = (  # the fields of two Rows; without the second, x is compared with itself
    "Tensor x, Tensor x_order, Tensor x_groups, Tensor? x_ids, "
    "Tensor? y, Tensor? y_order, Tensor? y_groups, Tensor? y_ids"
)


class Form(NamedTuple):
    """Name of a loss, and its constants."""

    name: str  # "negatives", "all" or "margin"
    temperature: float = 1.0
    scale: float = 1.0  # c = temperature / base_temperature
    margin: float = 0.0
    positive_margin: float = 0.0
    power: int = 1
    nonzero: bool = False  # count only the terms above 0

    @classmethod
    def unpack(cls, name: str, numbers: list[float]) -> Form:
        """A form from the values that a schema can carry."""
        temperature, scale, margin, positive_margin, power, nonzero = numbers
        return cls(name, temperature, scale, margin, positive_margin, int(power), bool(nonzero))

    def pack(self) -> tuple[str, list[float]]:
        """Values that a schema can carry."""
        return self[0], [float(v) for v in self[1:]]


kernels = functools.partial(backends.kernels, "contrast")  # (backend) -> module


def gradient_in_forward(backend: str, features: Tensor, other: Tensor | None, form: Form) -> bool:
    """Whether forward also computes the gradients. It does for two sets: one product then serves both directions.

    A set with itself gains nothing (each pass visits half of the tiles). "margin" has two normalizers that are complete
    only at the end of the pass, and in float16 the gradient of a sum could leave the range.
    """
    if other is None or form.name == "margin" or features.dtype == torch.float16:
        return False
    return backends.has("contrast", backend, "GRADIENT_IN_FORWARD")


def terms_of(stats: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    """([R, 2] terms, [R, 2] counts) of row statistics [R, STATS]."""
    if form.name == "margin":
        margin = MarginRowStats(*stats.unbind(1))
        return torch.stack([margin.pull, margin.push], 1), torch.stack([margin.pulled, margin.pushed], 1)
    row = LseStats(*stats.unbind(1))
    zero = torch.zeros_like(row.positives)
    mean = form.scale * row.loss_sum / row.positives.clamp(min=1)
    return torch.stack([mean, zero], 1), torch.stack([row.positives, zero], 1)


def coefficients_of(stats: Tensor, grad_terms: Tensor, form: Form) -> Tensor:
    """Row coefficients [R, n], n the fields of `RowCoefs` or `MarginCoefs`; grad_terms [R, 2] or [2]."""
    grad_terms = grad_terms.to(stats.dtype).expand(stats.shape[0], 2)
    first, second = grad_terms.unbind(1)
    if form.name == "margin":
        return torch.stack(MarginCoefs(positive=first, negative=second), 1)
    row = LseStats(*stats.unbind(1))
    # a row without a positive, or without a pair in its denominator, contributes no gradient: exp(s - inf) = 0
    live = (row.positives > 0) & ~torch.isneginf(row.lse)
    step = first * (form.scale / form.temperature)
    positive = torch.where(live, step / row.positives, 0.0)
    negative = positive * row.sigmoid_sum if form.name == "negatives" else step
    coefs = RowCoefs(
        row_max=torch.where(live, row.row_max, torch.inf),
        negative=torch.where(live, negative * (-row.lse).exp(), 0.0),
        positive=positive,
        lse=torch.where(live, row.lse, 0.0),
    )
    return torch.stack(coefs, 1)


def _outputs(
    x: Tensor, y: Tensor | None, reduce: bool, with_grad_x: bool, with_grad_y: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    acc, rows = checks.accumulator(x.dtype), x.shape[0]
    terms = x.new_empty((2,) if reduce else (rows, 2), dtype=acc)
    counts = x.new_empty((rows, 2), dtype=acc)
    stats = x.new_empty((rows, STATS), dtype=acc)
    grad_x = x.new_empty(x.shape if with_grad_x else (0,))
    grad_y = x.new_empty(y.shape if with_grad_y and y is not None else (0,))
    return terms, counts, stats, grad_x, grad_y


def _sides(arguments: tuple[Any, ...]) -> tuple[Rows, Rows | None]:
    return Rows(*arguments[:4]), None if arguments[4] is None else Rows(*arguments[4:8])


def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    x, y = _sides(arguments)
    name, numbers, reduce, with_grad_x, with_grad_y, backend = arguments[8:]
    form = Form.unpack(name, numbers)
    terms, counts, stats, grad_x, grad_y = _outputs(x.features, arguments[4], reduce, with_grad_x, with_grad_y)
    kernels(backend).contrast_fwd_kernel(
        x, y, form, stats, grad_x if with_grad_x else None, grad_y if with_grad_y else None
    )
    sorted_terms, sorted_counts = terms_of(stats, form)
    counts.index_copy_(0, x.order, sorted_counts)
    if reduce:
        torch.sum(sorted_terms, 0, out=terms)
    else:
        terms.index_copy_(0, x.order, sorted_terms)
    return terms, counts, stats, grad_x, grad_y


def _backward(grad_terms: Tensor, stats: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    x, y = _sides(arguments)
    name, numbers, with_grad_x, with_grad_y, backend = arguments[8:]
    form = Form.unpack(name, numbers)
    _, _, _, grad_x, grad_y = _outputs(x.features, arguments[4], True, with_grad_x, with_grad_y)
    coefficients = coefficients_of(stats, grad_terms if grad_terms.ndim == 1 else grad_terms[x.order], form)
    kernels(backend).contrast_bwd_kernel(
        x, y, form, coefficients, grad_x if with_grad_x else None, grad_y if with_grad_y else None
    )
    return grad_x, grad_y


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, counts, stats, grad_x, grad_y = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(counts, stats, grad_x, grad_y)
    name, numbers, _, with_grad_x, with_grad_y, backend = inputs[8:]
    ctx.both, ctx.scalars = with_grad_x or with_grad_y, (name, numbers, backend)
    ctx.save_for_backward(*((grad_x, grad_y) if ctx.both else (stats, *inputs[:8])))


def _autograd(ctx: Any, grad_terms: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if grad_terms is None:
        return (None,) * 14
    wanted = ctx.needs_input_grad[0], ctx.needs_input_grad[4]
    if ctx.both:
        gradients = [scale_gradient(g, grad_terms[0]) for g in ctx.saved_tensors]
    else:
        stats, *sides = ctx.saved_tensors
        name, numbers, backend = ctx.scalars
        gradients = ops.contrast_backward(grad_terms, stats, *sides, name, numbers, *wanted, backend)
    grad_x, grad_y = (g if w else None for g, w in zip(gradients, wanted, strict=True))
    return grad_x, None, None, None, grad_y, *(None,) * 9


define_op(
    f"contrast_forward({SIDES}, str form, float[] numbers, bool reduce, bool with_grad_x, bool with_grad_y, "
    "str backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward,
    lambda *arguments: _outputs(arguments[0], arguments[4], *arguments[10:13]),
    _setup,
    _autograd,
)
define_op(
    f"contrast_backward(Tensor grad_terms, Tensor stats, {SIDES}, str form, float[] numbers, bool with_grad_x, "
    "bool with_grad_y, str backend) -> (Tensor, Tensor)",
    _backward,
    lambda _, stats, *arguments: _outputs(arguments[0], arguments[4], True, *arguments[10:12])[3:],
)
