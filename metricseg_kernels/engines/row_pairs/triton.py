"""Host side of the Triton engine for pairs of rows: tiles, padded copies of both sides, and the launches of a form.

A family derives a class per form from `Epilogue`. Launches are deterministic and the same on every device of an
architecture: they do not depend on the number of multiprocessors.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...core.checks import accumulator
from ...core.triton import FUSED, constant, on_device_of
from . import rows as plain
from .rows import Labeled, Rows, Sorted, log_range
from .triton_config import SCAN, LaunchConfig, make_config
from .triton_kernels.kernels import gradient, stats, symmetric_stats
from .triton_kernels.sort import Keys
from .triton_kernels.sort import sort_rows as sort_kernel
from .triton_kernels.tiles import find_alive, gather_rows

SORTED_BY_COMPARISON = 16_384  # rows of both sides at most
PROGRAMS = 512
SYMMETRIC_PROGRAMS = 264  # each has a row [R] of sums
SPREAD = 60.0  # largest range of exponents for which one bound serves all rows
# fp16 weights are scaled so that the largest is close to the end of the range, since most are as small as 1 / M
FP16_TOP = 2.0**14


class Side(NamedTuple):
    """One side of the pairs as the kernels take it: sorted rows, padded to R, a multiple of BM.

    Only tensors: Triton compiles a kernel anew for integers of another divisibility, and in a tuple it can't be told
    otherwise.
    """

    data: Tensor  # [R, WIDTH]
    squares: Tensor  # [R], squared norms
    groups: Tensor  # [R], -1 in the padding
    ids: Tensor | None  # [R]
    low: Tensor  # [tiles], least group of each tile
    high: Tensor  # [tiles], greatest
    spans: Tensor  # [4], see `find_alive`
    weights: Tensor | None = None  # [R], of the rows as columns, 0 in the padding
    coefs: Any = None  # tensors [R] by name, for an epilogue

    @property
    def padded(self) -> int:
        return self.data.shape[0]

    @property
    def tiles(self) -> int:
        return self.low.shape[0]


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
    keys = Keys(
        BLOCK=16, CHUNK=64, LABEL=_comparable(x.labels, y.labels), ID=_comparable(x.ids, y.ids),
        WITH_IDS=x.ids is not None, WEIGHTED=y.weights is not None, FACTORS=x.factors is not None, TWO=len(sides) > 1,
    )  # fmt: skip
    with on_device_of(x.labels):
        sort_kernel[(sum(triton.cdiv(count, keys.BLOCK) for count in counts),)](
            x, y, out[0], out[-1], counts[0], counts[-1], ignore_index, Keys(*map(constant, keys)), num_warps=4,
            maxnreg=168, **FUSED,
        )  # fmt: skip


def _comparable(*values: Tensor | None) -> Any:
    """The dtype in which these integers are compared."""
    return tl.int64 if any(v is not None and v.dtype == torch.int64 for v in values) else tl.int32


def make_side(rows: Rows, config: LaunchConfig) -> Side:
    """The sorted and padded copy of one side."""
    features, (count, depth) = rows.features, rows.features.shape
    shape = config.shape
    padded = max(triton.cdiv(count, shape.rows), 1) * shape.rows
    tiles = padded // shape.columns
    data = features.new_empty((padded, config.width), dtype=config.dtype)
    squares = features.new_empty(padded, dtype=accumulator(features.dtype))
    groups, low, high, spans = (features.new_empty(n, dtype=torch.int32) for n in (padded, tiles, tiles, 4))
    ids = None if rows.ids is None else torch.nn.functional.pad(rows.ids, (0, padded - count), value=-1)
    weights = None if rows.weights is None else torch.nn.functional.pad(rows.weights, (0, padded - count))
    rounds = config.dtype == torch.float32 and config.tile.PRECISION.value == "tf32"
    gather_rows[(tiles,)](
        features, *features.stride(), rows.order, rows.groups, count, depth, data, squares, groups, low, high,
        WIDTH=config.width, ROWS=shape.columns, BLOCK=min(64, triton.next_power_of_2(config.width)), ROUND=rounds,
        UNIT_STRIDE=features.stride(1) == 1, num_warps=4, **FUSED,
    )  # fmt: skip
    find_alive[(1,)](low, high, tiles, spans, BLOCK=SCAN, num_warps=4, **FUSED)
    return Side(data, squares, groups, ids, low, high, spans, weights)


def parts_of(side: Side, other: Side, config: LaunchConfig, programs: int) -> int:
    """Number of parts, of at least two tiles each, that the walk over `other` is cut into to reach so many programs."""
    blocks = side.padded // config.shape.rows * (config.width // (config.shape.slice or config.width))
    return max(1, min(triton.cdiv(programs, blocks), other.tiles // 2))


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
    coefs: Any = None  # (live [BM], numbers) -> coefs of rows
    terms: Any = None  # (s, pairs, coefs) -> [BM, BN]; 0 for rows that are not live


class Gradient(NamedTuple):
    """The pass of backward."""

    weights: Any  # @triton.jit (s, pairs, sides) -> W [BM, BN], summed over the coefficients of one or two sides
    twin: bool = False
    distances: bool = False  # the gradient is sum_j W_ij (x_i - y_j), not sum_j W_ij y_j


class Epilogue:
    """Launches of a form on two sides, or on one against itself; a family derives a class per form.

    If |<x, y>| <= `bound` for all pairs, and twice that stays in fp32's range (`fixed`, a flag on the device; set for
    unit norm and temperature >= 1 / 30), exponentials are exp(scale (<x, y> - bound)): no running maximum, no
    rescaling, and one exponential serves both rows of a pair. Both variants are launched; the one that the flag rules
    out returns at once. Weights of the columns take their share of the range.
    """

    gradient: ClassVar[Gradient]
    proportional: ClassVar[tuple[str, ...]] = ()  # coefficients that W is proportional to

    def __init__(self, x: Rows, y: Rows | None, second_product: bool, numbers: tuple[float, ...], constants: Any,
                 scale: float = 1.0) -> None:  # fmt: skip
        """Take at most three numbers of the form, and its compile-time constants as a NamedTuple."""
        self.numbers = (*numbers, 0.0, 0.0)[:3]
        self.constants = constants._make(map(constant, constants))
        weighted = (x if y is None else y).weights is not None
        self.config = make_config(x.features, second_product, self.gradient.distances, weighted)
        self.x = make_side(x, self.config)
        self.y = self.x if y is None else make_side(y, self.config)
        self.orders = x.order, x.order if y is None else y.order
        # |<x, y>| <= |x|max |y|max
        self.bound = self.x.squares.amax().sqrt() * self.y.squares.amax().sqrt()
        spread = 2 * scale * self.bound
        if self.y.weights is not None:
            spread = spread + log_range(self.y.weights)
        self.fixed = (spread <= SPREAD).int()

    def row_stats(self) -> Any:
        """Statistics [R] of the rows of x, by name."""
        raise NotImplementedError

    def row_coefs(self, coefs: Any) -> Any:
        """Coefficients [rows] of the rows of x by name, as `weights` takes them."""
        return coefs

    def largest(self, coefs: Any) -> Tensor:
        """Bound of |W|, for rows kept in float16."""
        return torch.stack([getattr(coefs, name).abs().amax() for name in self.proportional]).amax()

    def sums(self, phase: Phase, before: Any = ()) -> Tensor:
        """Sums [n, parts, R] of a phase; `before`: tensors [R] of earlier phases, the coefs of its rows."""
        parts = parts_of(self.x, self.y, self.config, PROGRAMS)
        out = self.x.squares.new_empty((parts, len(phase.Sums._fields), self.x.padded))
        for fixed in (True, False) if phase.twin and not self._symmetric(phase) else (False,):
            kind = self._kind(
                TWIN=phase.twin, FIXED=fixed, POSITIVES=phase.positives, NEGATIVES=phase.negatives, START=phase.start,
                ADD=phase.add,
            )  # fmt: skip
            stats[(self.x.padded // self.config.shape.rows, parts)](
                self.x, self.y, before, out, self.bound, self.fixed, *self.numbers, kind,
                self.config.tile, parts, **self.config.options,
            )  # fmt: skip
        return out.transpose(0, 1)

    def totals(self, phase: Phase, before: Any = ()) -> Any:
        """Sums [R] of a phase over all parts."""
        return phase.Sums(*self.sums(phase, before).sum(1))

    def symmetric_sums(self, phase: Phase) -> Tensor | None:
        """Sums [R] of a phase's terms, right if `fixed`; None for two sets."""
        if not self._symmetric(phase):
            return None
        blocks = self.x.padded // self.config.shape.rows
        programs = min(SYMMETRIC_PROGRAMS, blocks * (blocks // 2 + 1))
        out = self.x.squares.new_zeros((programs, self.x.padded))
        kind = self._kind(
            TWIN=True, FIXED=True, POSITIVES=phase.positives, NEGATIVES=True, COEFS=phase.coefs, TERMS=phase.terms
        )
        symmetric_stats[(programs,)](
            self.x, out, self.x.padded, self.bound, self.fixed, *self.numbers, kind, self.config.tile,
            **self.config.options,
        )  # fmt: skip
        return out.sum(0)

    def gradients(self, coefs: Any, grad_x: Tensor | None, grad_y: Tensor | None) -> None:
        """Fill what is given, from the coefficients [rows] of the rows of x."""
        unit = self.x.squares.new_ones(())
        if self.config.dtype == torch.float16 and coefs[0].numel():
            unit = FP16_TOP / self.largest(coefs).clamp(min=1e-30)
            coefs = coefs._replace(**{name: getattr(coefs, name) * unit for name in self.proportional})
        coefs = self.row_coefs(coefs)
        padding = (0, self.x.padded - coefs[0].shape[0])
        x = self.x._replace(coefs=coefs._make(torch.nn.functional.pad(torch.stack(coefs), padding).unbind(0)))
        if grad_x is not None:
            self._add_gradient(x, x if self.x is self.y else self.y, self.orders[0], unit, grad_x)
        if grad_y is not None:
            self._add_gradient(self.y, x, self.orders[1], unit, grad_y)

    def _symmetric(self, phase: Phase) -> bool:
        return self.x is self.y and phase.terms is not None and phase.negatives

    def _kind(self, **fields: Any) -> Kind:
        with_ids = self.x.ids is not None
        fields.update(SELF=self.x is self.y or with_ids, WITH_IDS=with_ids, WEIGHTED=self.y.weights is not None)
        return Kind(FORM=self.constants, **{n: constant(v) if isinstance(v, bool) else v for n, v in fields.items()})

    def _add_gradient(self, x: Side, y: Side, order: Tensor, unit: Tensor, out: Tensor) -> None:
        """The gradient of the rows of x, from the coefficients of either side."""
        if out.numel() == 0:
            return
        (rows, depth), width, slice = out.shape, self.config.width, self.config.shape.slice
        parts = parts_of(x, y, self.config, PROGRAMS // 2)
        grid = (x.padded // self.config.shape.rows, triton.cdiv(depth, slice or depth), parts)
        # Unaligned rows can't be stored in wide words; elements one by one take more registers than there are.
        shares = out
        if parts > 1 or depth < width or not out.is_contiguous():
            shares = out.new_empty((parts * rows, width), dtype=out.dtype if parts == 1 else x.squares.dtype)
        form = self.gradient
        for fixed in (True, False) if form.twin else (False,):
            kind = self._kind(
                TWIN=form.twin, FIXED=fixed, POSITIVES=True, NEGATIVES=True, WEIGHTS=form.weights,
                DISTANCES=form.distances, BY_ROW=x.coefs is not None, BY_COLUMN=y.coefs is not None,
            )  # fmt: skip
            gradient[grid](
                x, y, order, shares, rows, self.bound, self.fixed, unit, *self.numbers, kind, self.config.tile, parts,
                **self.config.options,
            )  # fmt: skip
        if shares is not out:
            out.copy_(shares.view(parts, rows, width)[..., :depth].sum(0) if parts > 1 else shares[:, :depth])
