"""Host side of the Triton engine for pairs of rows: tiles, padded copies of both sides, and the launches of a form.

A family derives a class per form from `Epilogue`. Launches are deterministic and the same on every device of an
architecture: they do not depend on the number of multiprocessors.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from ...core.checks import accumulator
from ...core.triton import FUSED, cdiv, constant, on_device_of
from . import rows as plain
from .form import Form
from .rows import Labeled, Rows, Sorted
from .triton_config import SCAN, LaunchConfig, make_config
from .triton_kernels.kernels import gradient, stats, symmetric_stats
from .triton_kernels.rows import Backward, RowKind, Terms, add_shares, finish, make_coefs
from .triton_kernels.sides import Layout, gather_rows, survey
from .triton_kernels.sort import Keys
from .triton_kernels.sort import sort_rows as sort_kernel
from .triton_kernels.tiles import Earlier

SORTED_BY_COMPARISON = 16_384  # rows of both sides at most
PROGRAMS = 512
SYMMETRIC_PROGRAMS = 264  # each has a row [R] of sums
REGISTERS = 255  # of a thread that copies: left to itself, ptxas may spill for more programs on a multiprocessor
SPREAD = 60.0  # largest range of exponents for which one bound serves all rows
ROWS = 256  # that a program of the kernels in triton_kernels/rows.py takes
FINISHED_BY_ONE_PROGRAM = 1024  # rows at most; the sum of more takes another launch


class Side(NamedTuple):
    """One side of the pairs as the kernels take it: sorted rows, padded to R, a multiple of BM.

    Only tensors: Triton compiles a kernel anew for integers of another divisibility, and in a tuple it can't be told
    otherwise. All but `data` are parts of two buffers, some elements longer than they are said to be.
    """

    data: Tensor  # [R, WIDTH]
    squares: Tensor  # [R], squared norms
    groups: Tensor  # [R], -1 in the padding
    ids: Tensor | None  # [R]
    low: Tensor  # [tiles], least group of each tile
    high: Tensor  # [tiles], greatest
    spans: Tensor  # [4], see `find_alive`
    weights: Tensor | None = None  # [R], of the rows as columns, 0 in the padding
    coefs: Any = None  # tensors [R], for an epilogue

    @property
    def padded(self) -> int:
        return self.data.shape[0]


def sort_rows(sides: list[Labeled], ignore_index: int, out: list[Sorted]) -> None:
    """See rows.py; groups and ids are the numbers of rows with a smaller label or id."""
    counts = [side.labels.shape[0] for side in sides]
    if sum(counts) > SORTED_BY_COMPARISON:
        plain.sort_rows(sides, ignore_index, out)
        return
    if sum(counts) == 0:
        return
    sides = [Labeled._make(field if field is None else field.contiguous() for field in side) for side in sides]
    x, y = sides[0], sides[-1]
    block = 8
    keys = make_constants(
        Keys, BLOCK=block, CHUNK=128, LABEL=_comparable(x.labels, y.labels), ID=_comparable(x.ids, y.ids),
        WITH_IDS=x.ids is not None, WEIGHTED=y.weights is not None, FACTORS=x.factors is not None, TWO=len(sides) > 1,
    )  # fmt: skip
    with on_device_of(x.labels):
        sort_kernel[(sum(cdiv(count, block) for count in counts),)](
            x, y, out[0], out[-1], counts[0], counts[-1], ignore_index, keys, num_warps=4,
            maxnreg=168, **FUSED,
        )  # fmt: skip


def _comparable(*values: Tensor | None) -> Any:
    """The dtype in which these integers are compared."""
    return tl.int64 if any(v is not None and v.dtype == torch.int64 for v in values) else tl.int32


class Sides(NamedTuple):
    """Both sides, and what holds for all rows."""

    x: Side
    y: Side  # x for a set with itself
    earlier: Earlier  # before the first phase


@functools.cache
def make_constants(kind: Any, **fields: Any) -> Any:
    """A NamedTuple of compile-time constants; functions, and what is made of them, stay as they are."""
    return kind(**{name: _constant_field(value) for name, value in fields.items()})


def _constant_field(value: Any) -> Any:
    if isinstance(value, tuple):
        return type(value)(*map(constant, value))
    return constant(value) if isinstance(value, (bool, int, str, tl.dtype)) else value


def carve(like: Tensor, dtype: torch.dtype, sizes: list[int]) -> Iterator[Tensor]:
    """Parts of one buffer, each of at least so many elements, aligned."""
    whole = [cdiv(size, 16) * 16 for size in sizes]
    return iter(like.new_empty(sum(whole), dtype=dtype).split(whole))


def make_sides(x: Rows, y: Rows | None, config: LaunchConfig, scale: float) -> Sides:
    """Sorted and padded copies, and bounds for exponentials of scale <x, y>."""
    given = [x] if y is None else [x, y]
    shape, (features, with_ids, weighted) = config.shape, (x.features, x.ids is not None, given[-1].weights is not None)
    counts = [side.features.shape[0] for side in given]
    padded = [max(cdiv(count, shape.rows), 1) * shape.rows for count in counts]
    tiles = [rows // shape.columns for rows in padded]
    integers, numbers = [1], [3]
    for rows, n in zip(padded, tiles, strict=True):
        integers += [rows, rows * with_ids, n, n, 4]
        numbers += [rows, 3 * n]
    ints = carve(features, torch.int32, integers)
    floats = carve(features, accumulator(features.dtype), [*numbers, padded[-1] * weighted])
    earlier = Earlier(fixed=next(ints), bounds=next(floats))
    made, tops = [], []
    for rows in padded:
        data = features.new_empty((rows, config.width), dtype=config.dtype)
        groups, ids, low, high, spans = (next(ints) for _ in range(5))
        made.append(Side(data, next(floats), groups, ids if with_ids else None, low, high, spans))
        tops.append(next(floats))
    if weighted:
        made[-1] = made[-1]._replace(weights=next(floats))
    strides = [side.features.stride() for side in given]
    layout = make_constants(
        Layout, WIDTH=config.width, ROWS=shape.columns, BLOCK=min(64, 1 << (config.width - 1).bit_length()),
        ROUND=config.rounds and config.dtype == torch.float32,
        UNIT_STRIDE=all(stride[1] == 1 for stride in strides), WITH_IDS=with_ids, WEIGHTED=weighted, TWO=y is not None,
    )  # fmt: skip
    sources = [side._replace(factors=None) for side in given]
    gather_rows[(sum(tiles),)](
        sources[0], sources[-1], made[0], made[-1], (tops[0], tops[-1]), *strides[0], *strides[-1], counts[0],
        counts[-1], features.shape[1], tiles[0], tiles[-1], layout, num_warps=4, maxnreg=REGISTERS, **FUSED,
    )  # fmt: skip
    survey[(1,)](
        made[0], made[-1], (tops[0], tops[-1]), earlier, tiles[0], tiles[-1], scale, layout, SPREAD=SPREAD, BLOCK=SCAN,
        num_warps=4, **FUSED,
    )  # fmt: skip
    return Sides(made[0], made[-1], earlier)


def parts_of(side: Side, other: Side, config: LaunchConfig, programs: int) -> int:
    """Number of parts, of at least two tiles each, that the walk over `other` is cut into to reach so many programs."""
    shape = config.shape
    blocks = side.padded // shape.rows * (config.width // (shape.slice or config.width))
    return max(1, min(cdiv(programs, blocks), other.padded // shape.columns // 2))


class Kind(NamedTuple):
    """The compile-time side of a form in a launch.

    Functions are fields as they are: wrapped in tl.constexpr, they would be in the key of Triton's disk cache by name
    only, so a change of their code would go unnoticed.
    """

    TWIN: Any  # whether there are two launches, one for each value of FIXED, of which the data choose one
    FIXED: Any  # exponentials against one bound
    SELF: Any  # whether a row of X may also be in Y
    WITH_IDS: Any
    WEIGHTED: Any  # whether columns have weights
    POSITIVES: Any  # whether the pass counts positives
    NEGATIVES: Any
    FORM: Any  # compile-time constants of the form, a NamedTuple
    START: Any = None  # functions: see `Phase` and `Gradient`
    ADD: Any = None
    COEFS: Any = None
    TERMS: Any = None
    WEIGHTS: Any = None
    DISTANCES: Any = None
    SYMMETRIC: Any = None  # whether an earlier phase visited each pair of a set with itself once
    LATER: Any = None  # whether there is an earlier phase
    LOAD: Any = None
    BY_ROW: Any = None  # which side's rows have coefficients, in `gradient`
    BY_COLUMN: Any = None


class Phase(NamedTuple):
    """A pass over the pairs that leaves sums of each row, and its @triton.jit functions.

    With `terms`, the same for both rows of a pair, negatives of a set with itself are visited once if one bound serves
    all rows.
    """

    Sums: type[Any]  # a NamedTuple: the state of a row
    start: Any  # (zero [BM], numbers, kind) -> state of a row without pairs
    add: Any  # (s, pairs, state) -> state
    positives: bool = True  # which pairs count
    negatives: bool = True
    twin: bool = False  # whether there is a variant with one bound
    load: Any = None  # of a second phase: (earlier, parts, programs, r, padded, numbers, kind) -> coefs of rows
    coefs: Any = None  # (live [BM], numbers) -> coefs of rows
    terms: Any = None  # (s, pairs, coefs) -> [BM, BN]; 0 for rows that are not live


class RowForm(NamedTuple):
    """Formulas of rows, @triton.jit functions."""

    fields: int  # number of coefs
    load: Any  # (earlier, parts, programs, last, last_parts, r, padded, numbers, kind) -> statistics of rows
    terms: Any  # (statistics, numbers) -> (terms, counts)
    coefs: Any  # (fields of statistics, grad_terms, numbers) -> coefs, a NamedTuple
    largest: Any  # (fields of statistics, coefs, largest weight) -> bound of |W|, for rows kept in float16


class Gradient(NamedTuple):
    """The pass of backward."""

    weights: Any  # @triton.jit (s, pairs, sides) -> W [BM, BN], summed over the coefficients of one or two sides
    twin: bool = False
    distances: bool = False  # the gradient is sum_j W_ij (x_i - y_j), not sum_j W_ij y_j


class Passed(NamedTuple):
    """A phase that has run."""

    earlier: Earlier
    parts: int = 0
    programs: int = 0


class Epilogue:
    """Launches of a form on two sides, or on one against itself; a family derives a class per form.

    If |<x, y>| <= bound for all pairs, and twice that stays in fp32's range (`fixed`, a flag on the device; set for
    unit norm and temperature >= 1 / 30), exponentials are exp(scale (<x, y> - bound)): no running maximum, no
    rescaling, and one exponential serves both rows of a pair. Both variants are launched; the one that the flag rules
    out returns at once. Weights of the columns take their share of the range.
    """

    phases: tuple[Phase, ...]  # one or two
    gradient: ClassVar[Gradient]
    rows: RowForm

    def __init__(self, x: Rows, y: Rows | None, form: Form, second_product: bool, numbers: tuple[float, ...],
                 constants: Any, scale: float = 1.0) -> None:  # fmt: skip
        """Take at most three numbers of the form, and its compile-time constants as a NamedTuple."""
        self.form, self.numbers = form, (*numbers, 0.0, 0.0)[:3]
        self.constants = constants
        self.weighted = (x if y is None else y).weights is not None
        self.config = make_config(x.features, second_product, self.gradient.distances, self.weighted)
        self.x, self.y, self.earlier = make_sides(x, y, self.config, scale)
        self.count, self.factors = x.features.shape[0], x.factors
        self.orders = x.order, x.order if y is None else y.order
        self.symmetric = y is None and self.phases[0].terms is not None

    def forward(self, reduce: bool, terms: Tensor, counts: Tensor, stats: Tensor) -> None:
        """See the family's op.py."""
        passed = Passed(self.earlier)
        for phase in self.phases[:-1]:
            passed = self.run(phase, passed)
        last = self.run(self.phases[-1], passed)
        steps = 1 if self.count > FINISHED_BY_ONE_PROGRAM else FINISHED_BY_ONE_PROGRAM // ROWS
        programs = max(cdiv(self.count, ROWS * steps), 1)
        parted = reduce and programs > 1
        out = terms.new_empty((programs, self.form.sums)) if parted else terms
        finish[(programs,)](
            Terms(last.earlier.parts, self.orders[0], self.factors, out, counts, stats), passed.earlier, self.count,
            self.x.padded, last.parts, passed.parts, passed.programs, *self.numbers,
            self._row_kind(steps, reduce, LOAD=self.rows.load, TERMS=self.rows.terms),
            num_warps=8, **FUSED,
        )  # fmt: skip
        if parted:
            torch.sum(out, 0, out=terms)

    def backward(self, grad_terms: Tensor, stats: Tensor, grad_x: Tensor | None, grad_y: Tensor | None) -> None:
        """See the family's op.py."""
        x = self.x._replace(coefs=self.coefs(grad_terms, stats))
        if grad_x is not None:
            self._add_gradient(x, x if self.x is self.y else self.y, self.orders[0], grad_x)
        if grad_y is not None:
            self._add_gradient(self.y, x, self.orders[1], grad_y)

    def run(self, phase: Phase, passed: Passed) -> Passed:
        """Sums of a phase: [parts, n, R], and for a set with itself [programs, R], right if `fixed`."""
        earlier, padded = passed.earlier, self.x.padded
        symmetric = self.symmetric and phase.terms is not None
        parts = parts_of(self.x, self.y, self.config, PROGRAMS)
        out = self.x.squares.new_empty((parts, len(phase.Sums._fields), padded))
        for fixed in (True, False) if phase.twin and not symmetric else (False,):
            kind = self._kind(
                TWIN=phase.twin, FIXED=fixed, POSITIVES=phase.positives, NEGATIVES=phase.negatives,
                LATER=phase.load is not None, LOAD=phase.load, START=phase.start, ADD=phase.add,
            )  # fmt: skip
            stats[(padded // self.config.shape.rows, parts)](
                self.x, self.y, earlier, out, parts, passed.parts, passed.programs, *self.numbers, kind,
                self.config.tile, **self.config.options,
            )  # fmt: skip
        if not symmetric:
            return Passed(Earlier(earlier.bounds, earlier.fixed, out), parts)
        blocks = padded // self.config.shape.rows
        programs = min(SYMMETRIC_PROGRAMS, blocks * (blocks // 2 + 1))
        sums = self.x.squares.new_empty((programs, padded))
        kind = self._kind(
            TWIN=True, FIXED=True, POSITIVES=phase.positives, NEGATIVES=True, COEFS=phase.coefs, TERMS=phase.terms
        )
        symmetric_stats[(programs,)](
            self.x, earlier, sums, padded, *self.numbers, kind, self.config.tile, **self.config.options
        )
        return Passed(Earlier(earlier.bounds, earlier.fixed, out, sums), parts, programs)

    def coefs(self, grad_terms: Tensor, stats: Tensor) -> tuple[Tensor, ...]:
        """Coefficients [R] of the rows of x."""
        padded, fields = self.x.padded, self.rows.fields
        coefs = self.x.squares.new_empty((fields, padded))
        programs = cdiv(padded, ROWS)
        half = self.config.dtype == torch.float16
        io = Backward(
            stats, grad_terms, self.orders[0], self.factors, coefs,
            self.x.squares.new_empty(programs) if half else None,
        )  # fmt: skip
        strides = (0, *grad_terms.stride())[-2:]
        functions = {"COEFS": self.rows.coefs, "LARGEST": self.rows.largest}
        for scaling in ("measure", "apply") if half else ("",):
            make_coefs[(programs,)](
                io, self.earlier.bounds, self.count, padded, *strides, *self.numbers,
                self._row_kind(1, False, SCALING=scaling, **functions),
                num_warps=8, **FUSED,
            )  # fmt: skip
        return coefs.unbind(0)

    def _row_kind(self, steps: int, reduce: bool, **functions: Any) -> RowKind:
        return make_constants(
            RowKind, BLOCK=ROWS, STEPS=steps, SYMMETRIC=self.symmetric, FACTORS=self.factors is not None, REDUCE=reduce,
            SUMS=self.form.sums, FIELDS=len(self.form.Stats._fields), FORM=self.constants, **functions,
        )  # fmt: skip

    def _kind(self, **fields: Any) -> Kind:
        with_ids = self.x.ids is not None
        return make_constants(
            Kind, FORM=self.constants, SELF=self.x is self.y or with_ids, WITH_IDS=with_ids, WEIGHTED=self.weighted,
            SYMMETRIC=self.symmetric, **fields,
        )  # fmt: skip

    def _add_gradient(self, x: Side, y: Side, order: Tensor, out: Tensor) -> None:
        """The gradient of the rows of x, from the coefficients of either side."""
        if out.numel() == 0:
            return
        (rows, depth), width, slice = out.shape, self.config.width, self.config.shape.slice
        parts = parts_of(x, y, self.config, PROGRAMS // 2)
        grid = (x.padded // self.config.shape.rows, cdiv(depth, slice or depth), parts)
        # Unaligned rows can't be stored in wide words; elements one by one take more registers than there are.
        shares = out
        if parts > 1 or depth < width or not out.is_contiguous():
            shares = out.new_empty((parts, rows, width), dtype=out.dtype if parts == 1 else x.squares.dtype)
        form = self.gradient
        for fixed in (True, False) if form.twin else (False,):
            kind = self._kind(
                TWIN=form.twin, FIXED=fixed, POSITIVES=True, NEGATIVES=True, WEIGHTS=form.weights,
                DISTANCES=form.distances, BY_ROW=x.coefs is not None, BY_COLUMN=y.coefs is not None,
            )  # fmt: skip
            gradient[grid](
                x, y, self.earlier, order, shares, rows, parts, *self.numbers, kind, self.config.tile,
                **self.config.options,
            )  # fmt: skip
        if shares is not out:
            block = min(128, 1 << (depth - 1).bit_length())
            add_shares[(cdiv(rows, 8), cdiv(depth, block))](
                shares, out, rows, depth, parts, *out.stride(), WIDTH=width, ROWS=8, BLOCK=block, num_warps=4, **FUSED
            )
