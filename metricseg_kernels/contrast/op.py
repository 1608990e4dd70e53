"""Private ops of the contrast family: schemas, allocation, fakes, autograd. Derivation: docs/kernels/contrast.md.

A form (forms.py) is an epilogue of one stream of tiles. Forward leaves its statistics of each row, in the order of the
sorted rows, and terms of them. Backward recomputes the tiles. The functions of a backend fill what is not None:
  prototype_sets_kernel(labels, segment_ids, prototype_labels, ignore_index, x, y, ids, places)
  sort_rows_kernel(sides, ignore_index, rows)
  contrast_fwd_kernel(x, y, form, reduce, terms, counts, stats, grad_x, grad_y)    gradients of the summed terms
  contrast_bwd_kernel(grad_terms, stats, x, y, form, grad_x, grad_y)
  contrast_mean_kernel(terms, counts, weights, by_row, loss, totals, divisors)
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ..core import backends, checks
from ..core.gradient import scale_gradient
from ..core.library import define_op, ops
from ..engines.row_pairs.form import Form
from ..engines.row_pairs.rows import Labeled, Rows, Sorted
from .forms import FORMS
from .sets import mark_sets

SIDES = (  # the fields of two Rows; without y, x is compared with itself
    "Tensor x, Tensor x_order, Tensor x_groups, Tensor? x_ids, Tensor? x_weights, Tensor? x_factors, "
    "Tensor? y, Tensor? y_order, Tensor? y_groups, Tensor? y_ids, Tensor? y_weights, Tensor? y_factors"
)
Y, REST = len(Rows._fields), 2 * len(Rows._fields)  # where the second side and the other arguments begin
kernels = functools.partial(backends.kernels, "contrast")  # (backend) -> module


# --- order of the rows ---------------------------------------------------------------------------------------------


def _present_fields(sides: int, ids: bool, weights: bool, factors: bool) -> list[tuple[bool, ...]]:
    """Which fields of `Sorted` each side has: weights are those of the last side, factors those of the first."""
    return [(True, True, ids, weights and i == sides - 1, factors and i == 0) for i in range(sides)]


def _sorted(
    labels: list[Tensor], ids: list[Tensor], weights: Tensor | None, factors: Tensor | None, dtype: torch.dtype
) -> list[Sorted]:
    dtypes = torch.int64, torch.int32, torch.int32, dtype, dtype
    present = _present_fields(len(labels), len(ids) > 0, weights is not None, factors is not None)
    return [
        Sorted._make(
            side.new_empty(side.shape, dtype=d) if some else None for some, d in zip(fields, dtypes, strict=True)
        )
        for side, fields in zip(labels, present, strict=True)
    ]


def _present(rows: list[Sorted]) -> list[Tensor]:
    return [field for side in rows for field in side if field is not None]


def _sort(
    labels: list[Tensor],
    ids: list[Tensor],
    weights: Tensor | None,
    factors: Tensor | None,
    ignore_index: int,
    dtype: torch.dtype,
    backend: str,
) -> list[Tensor]:
    out = _sorted(labels, ids, weights, factors, dtype)
    sides = [Labeled(side, ids[i] if ids else None) for i, side in enumerate(labels)]
    sides[-1] = sides[-1]._replace(weights=weights)
    sides[0] = sides[0]._replace(factors=factors)
    kernels(backend).sort_rows_kernel(sides, ignore_index, out)
    return _present(out)


define_op(
    "sort_rows(Tensor[] labels, Tensor[] ids, Tensor? weights, Tensor? factors, int ignore_index, ScalarType dtype, "
    "str backend) -> Tensor[]",
    _sort,
    lambda labels, ids, weights, factors, ignore_index, dtype, backend: _present(
        _sorted(labels, ids, weights, factors, dtype)
    ),
)


def sort_rows(
    features: list[Tensor],
    labels: list[Tensor],
    ids: list[Tensor],
    ignore_index: int,
    backend: str,
    weights: Tensor | None = None,
    factors: Tensor | None = None,
) -> list[Rows]:
    """The sides of the pairs, one or two, whose labels and ids are compared across.

    weights: of the rows of the last side, as columns; of two sides, a row of weight 0 takes no part. factors: of the
    terms of the rows of the first side.
    """
    dtype = checks.accumulator(features[0].dtype)
    found = iter(ops.sort_rows(labels, ids, weights, factors, ignore_index, dtype, backend))
    present = _present_fields(len(labels), len(ids) > 0, weights is not None, factors is not None)
    return [
        Rows._make([side, *(next(found) if some else None for some in fields)])
        for side, fields in zip(features, present, strict=True)
    ]


def _set_labels(labels: Tensor, segment_ids: Tensor, prototype_labels: Tensor, *_: Any) -> tuple[Tensor, ...]:
    sizes = (
        (labels, torch.int32),
        (prototype_labels, torch.int32),
        (labels, torch.int64),
        (prototype_labels, torch.int64),
    )
    return tuple(side.new_empty(side.shape, dtype=dtype) for side, dtype in sizes)


def _prototype_sets(
    labels: Tensor, segment_ids: Tensor, prototype_labels: Tensor, ignore_index: int, backend: str
) -> tuple[Tensor, ...]:
    out = _set_labels(labels, segment_ids, prototype_labels)
    kernels(backend).prototype_sets_kernel(labels, segment_ids, prototype_labels, ignore_index, *out)
    return out


define_op(
    "prototype_sets(Tensor labels, Tensor segment_ids, Tensor prototype_labels, int ignore_index, str backend) -> "
    "(Tensor, Tensor, Tensor, Tensor)",
    _prototype_sets,
    _set_labels,
)


def prototype_sets(
    labels: Tensor, segment_ids: Tensor, prototype_labels: Tensor, ignore_index: int, backend: str
) -> tuple[Tensor, ...]:
    """Labels of pixels [N] and prototypes [P], -1 for those that take no part, and ids [N] and [P], int64."""
    if backend == "reference":
        out = _set_labels(labels, segment_ids, prototype_labels)
        mark_sets(labels, segment_ids, prototype_labels, ignore_index, *out)
        return out
    return tuple(ops.prototype_sets(labels, segment_ids, prototype_labels, ignore_index, backend))


# --- losses --------------------------------------------------------------------------------------------------------


def gradient_in_forward(backend: str, features: Tensor, other: Tensor | None, form: Form) -> bool:
    """Whether forward also computes the gradients, from the products that it has at hand: of two sets, for which one
    product then serves both directions, and of few rows with themselves.

    Of many rows with themselves each pass visits half of the tiles, and forward would have nothing to spare. In float16
    the gradient of a sum could leave the range.
    """
    if not form.gradient_in_forward or features.dtype == torch.float16:
        return False
    if other is not None:
        return bool(backends.capability("contrast", backend, "GRADIENT_IN_FORWARD"))
    return features.shape[0] <= backends.capability("contrast", backend, "ITSELF_IN_FORWARD")


def _outputs(
    x: Tensor, y: Tensor | None, form: str, reduce: bool, with_grad_x: bool, with_grad_y: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    acc, rows, sums = checks.accumulator(x.dtype), x.shape[0], FORMS[form].sums
    terms = x.new_empty((sums,) if reduce else (rows, sums), dtype=acc)
    counts = x.new_empty((rows, sums), dtype=acc)
    stats = x.new_empty((rows, len(FORMS[form].Stats._fields)), dtype=acc)
    grad_x = x.new_empty(x.shape if with_grad_x else (0,))
    grad_y = x.new_empty(y.shape if with_grad_y and y is not None else (0,))
    return terms, counts, stats, grad_x, grad_y


def flat(rows: list[Rows]) -> list[Tensor | None]:
    """One or two sorted sides in the order of `SIDES`."""
    fields = [field for side in rows for field in side]
    return fields + [None] * (REST - len(fields))


def _sides(arguments: tuple[Any, ...]) -> tuple[Rows, Rows | None]:
    return Rows(*arguments[:Y]), None if arguments[Y] is None else Rows(*arguments[Y:REST])


def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    x, y = _sides(arguments)
    name, numbers, reduce, with_grad_x, with_grad_y, backend = arguments[REST:]
    form = FORMS[name](*numbers)
    terms, counts, stats, grad_x, grad_y = _outputs(x.features, arguments[Y], name, reduce, with_grad_x, with_grad_y)
    kernels(backend).contrast_fwd_kernel(
        x, y, form, reduce, terms, counts, stats, grad_x if with_grad_x else None, grad_y if with_grad_y else None
    )
    return terms, counts, stats, grad_x, grad_y


def _backward(grad_terms: Tensor, stats: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    x, y = _sides(arguments)
    name, numbers, with_grad_x, with_grad_y, backend = arguments[REST:]
    form = FORMS[name](*numbers)
    *_, grad_x, grad_y = _outputs(x.features, arguments[Y], name, True, with_grad_x, with_grad_y)
    kernels(backend).contrast_bwd_kernel(
        grad_terms, stats, x, y, form, grad_x if with_grad_x else None, grad_y if with_grad_y else None
    )
    return grad_x, grad_y


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, counts, stats, grad_x, grad_y = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(counts, stats, grad_x, grad_y)
    name, numbers, _, with_grad_x, with_grad_y, backend = inputs[REST:]
    ctx.both, ctx.scalars = with_grad_x or with_grad_y, (name, numbers, backend)
    ctx.save_for_backward(*((grad_x, grad_y) if ctx.both else (stats, *inputs[:REST])))


def _autograd(ctx: Any, grad_terms: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if grad_terms is None:
        return (None,) * (REST + 6)
    wanted = ctx.needs_input_grad[0], ctx.needs_input_grad[Y]
    if ctx.both:
        gradients = [scale_gradient(g, grad_terms[0]) for g in ctx.saved_tensors]
    else:
        stats, *sides = ctx.saved_tensors
        name, numbers, backend = ctx.scalars
        gradients = ops.contrast_loss_bwd(grad_terms, stats, *sides, name, numbers, *wanted, backend)
    grad_x, grad_y = (g if w else None for g, w in zip(gradients, wanted, strict=True))
    found: list[Tensor | None] = [None] * (REST + 6)
    found[0], found[Y] = grad_x, grad_y
    return tuple(found)


define_op(
    f"contrast_loss_fwd({SIDES}, str form, float[] numbers, bool reduce, bool with_grad_x, bool with_grad_y, "
    "str backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward,
    lambda *arguments: _outputs(arguments[0], arguments[Y], arguments[REST], *arguments[REST + 2 : REST + 5]),
    _setup,
    _autograd,
)
define_op(
    f"contrast_loss_bwd(Tensor grad_terms, Tensor stats, {SIDES}, str form, float[] numbers, bool with_grad_x, "
    "bool with_grad_y, str backend) -> (Tensor, Tensor)",
    _backward,
    lambda _, stats, *arguments: _outputs(
        arguments[0], arguments[Y], arguments[REST], True, *arguments[REST + 2 : REST + 4]
    )[3:],
)


# --- means ---------------------------------------------------------------------------------------------------------


def _mean_outputs(terms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return terms.new_empty(()), terms.new_empty(terms.shape, dtype=torch.float64), terms.new_empty(terms.shape)


def _mean(
    terms: Tensor, counts: Tensor, weights: Tensor | None, by_row: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    out = _mean_outputs(terms)
    kernels(backend).contrast_mean_kernel(terms, counts, weights, by_row, *out)
    return out


def _setup_mean(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(output[2])


def _mean_backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Any, ...]:
    return None if grad_loss is None else grad_loss / ctx.saved_tensors[0], None, None, None, None


define_op(
    "contrast_mean(Tensor terms, Tensor counts, Tensor? weights, bool by_row, str backend) -> (Tensor, Tensor, Tensor)",
    _mean,
    lambda terms, *_: _mean_outputs(terms),
    _setup_mean,
    _mean_backward,
)


def mean(terms: Tensor, counts: Tensor, weights: Tensor | None, by_row: bool, backend: str) -> tuple[Tensor, Tensor]:
    """(loss [], totals [n] in float64) of summed terms [n] and counts [A, n]; a total of 0 divides by 1.

        loss = sum_k terms_k / totals_k,    totals_k = sum_i counts_ik

    by_row, with n = 1: a row with a count above 0 counts once, or as its weight, weights [A].
    """
    loss, totals, _ = ops.contrast_mean(terms, counts, weights, by_row, backend)
    return loss, totals
