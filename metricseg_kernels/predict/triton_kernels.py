"""Kernels of the predict family: labels out of low-resolution logits, without logits at label size.

Grid: image x label rows x tile of P label columns; a thread holds a block of classes of its column. `best_logit`: one
map, the largest logit, for up to R label rows between two rows of cells. `best_probability`: one row; a first walk over
the classes leaves the maximum and the sum of the softmax of each map, a second one interpolates again, averages, and
takes the largest. The label is written, or counted against the target. Derivation: docs/kernels/predict.md.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ..core.triton_kernels import divide, exp, plain
from ..engines.resized.triton_kernels.axes import Axis, blend, class_blocks, first_label, load_row

NAN_CLASS = tl.constexpr(1 << 29)  # subtracted from the class of a NaN, which comes before all others
NO_CLASS = tl.constexpr(1 << 30)


class Map(NamedTuple):
    """Logits [B, K, h, w], read in place. Integers are disguised, see `plain`."""

    data: Any
    b: Any  # strides
    k: Any
    y: Any
    x: Any
    flipped: Any  # 0 or 1
    y_cells: Any  # Axis of the rows, without labels
    y_mul: Any
    y_add: Any
    y_den: Any
    x_cells: Any
    x_mul: Any
    x_add: Any
    x_den: Any
    share: Any  # of the average, in fp32
    share_rest: Any  # what fp32 leaves of it


class Outputs(NamedTuple):
    """Contiguous tensors to fill, None for those that are not wanted; with `target`, counts instead of labels."""

    labels: Any = None  # [B, H, W]
    confidence: Any = None  # [B, H, W]
    entropy: Any = None  # [B, H, W]
    target: Any = None  # [B, H, W], of any strides
    counts: Any = None  # [K, K]
    bad: Any = None  # [2]


class Kind(NamedTuple):
    """The constants that a kernel is compiled for."""

    KS: Any  # sizes of the class blocks of a chunk
    BK: Any  # their sum
    P: Any  # label columns
    R: Any  # label rows
    BLEND_Y: Any  # whether rows are interpolated
    BLEND_X: Any
    ACC: Any
    INT: Any  # type that holds twice the cells times the labels of an axis
    BINS: Any  # a power of two above K K for a histogram of each program, or 0


class Sizes(NamedTuple):
    """Run-time numbers of a call."""

    classes: Any
    height: Any
    width: Any
    ignore_index: Any
    target: Any  # strides (b, y, x)


class Columns(NamedTuple):
    """Cells of label columns, each [1, P]."""

    left: Any
    right: Any
    fx: Any  # share of the right cell


@triton.jit
def again(map, zero):
    """The same map, by a 0 that the compiler can't see through: it keeps no number of it in registers for later."""
    return Map(
        map.data, map.b + zero, map.k + zero, map.y + zero, map.x + zero, map.flipped + zero, map.y_cells + zero,
        map.y_mul + zero, map.y_add + zero, map.y_den + zero, map.x_cells + zero, map.x_mul + zero, map.x_add + zero,
        map.x_den + zero, map.share, map.share_rest,
    )  # fmt: skip


@triton.jit
def between(label, cells, mul, add, den, ACC: tl.constexpr):
    """(cell, next cell, its share) of labels; the same cell twice where there is nothing to blend."""
    n = tl.maximum(label * mul.to(label.dtype) + add.to(label.dtype), 0)
    den = den.to(label.dtype)
    cell = n // den
    rest = n - cell * den
    alone = (rest == 0) | (cell >= cells.to(label.dtype) - 1)
    share = divide(rest.to(ACC), tl.zeros_like(rest.to(ACC)) + den.to(ACC))
    return cell, tl.where(alone, cell, cell + 1), tl.where(alone, 0.5, share).to(ACC)


@triton.jit
def columns_of(map, X, width, kind):
    """The cells of label columns X [P]; those beyond the last are read there."""
    X = tl.minimum(X, width - 1).to(kind.INT)
    X = tl.where(map.flipped > 2, width.to(kind.INT) - 1 - X, X)
    left, right, fx = between(X, plain(map.x_cells), plain(map.x_mul), plain(map.x_add), plain(map.x_den), kind.ACC)
    return Columns(left.to(tl.int64)[None, :], right.to(tl.int64)[None, :], fx[None, :])


@triton.jit
def load_logits(map, image, Y, X, k0, ks, sizes, kind):
    """Logits [k, P] of label row Y, block by block, from class k0 on; -inf if there is no such class."""
    at = columns_of(map, X, sizes.width, kind)
    top, bottom, fy = between(
        Y.to(kind.INT), plain(map.y_cells), plain(map.y_mul), plain(map.y_add), plain(map.y_den), kind.ACC
    )
    count = sizes.classes - k0
    s_k, s_y, s_x = plain(map.k), plain(map.y), plain(map.x)
    p_class = map.data + image * plain(map.b) + tl.cast(k0, tl.int64) * s_k
    upper = load_row(p_class + top.to(tl.int64) * s_y, s_k, s_x, ks, count, at, True, float("-inf"), kind.ACC)
    lower = load_row(p_class + bottom.to(tl.int64) * s_y, s_k, s_x, ks, count, at, True, float("-inf"), kind.ACC)
    return blend(upper, lower, fy)


@triton.jit
def take_best(z, k0, ks, best, at):
    """The largest value so far and its class: NaN is larger than all, ties go to the lowest class."""
    for i in tl.static_range(len(z)):
        top = tl.max(z[i], 0)
        found = tl.where(z[i] == top[None, :], ks[i], NO_CLASS)
        found = tl.min(tl.where(z[i] == z[i], found, ks[i] - NAN_CLASS), 0)
        nan = found < 0
        better = (nan | (top > best)) & (best == best)
        at = tl.where(better, k0 + tl.where(nan, found + NAN_CLASS, found), at)
        best = tl.where(better, tl.where(nan, float("nan"), top), best)
    return best, at


@triton.jit
def softmax_stats(map, image, Y, X, ks, sizes, LABEL: tl.constexpr, kind):
    """(row_max, sum of exp(z - row_max), label) of a map, each [P]; the label only with LABEL."""
    low = tl.full((kind.P,), float("-inf"), kind.ACC)
    row_max, best = low, low
    total = tl.zeros((kind.P,), kind.ACC)
    at = tl.zeros((kind.P,), tl.int32)
    for k0 in range(0, sizes.classes, kind.BK):
        z = load_logits(map, image, Y, X, k0, ks, sizes, kind)
        before = row_max
        for i in tl.static_range(len(z)):
            row_max = tl.maximum(row_max, tl.max(z[i], 0))
        reference = tl.where(row_max == float("-inf"), 0.0, row_max)
        total *= exp(before - reference)
        for i in tl.static_range(len(z)):
            total += tl.sum(exp(z[i] - reference[None, :]), 0)
        if LABEL:
            best, at = take_best(z, k0, ks, best, at)
    return tl.where(row_max == float("-inf"), 0.0, row_max), total, at


@triton.jit
def average(maps, stats, image, Y, X, k0, ks, zero, sizes, kind):
    """p [k, P] = sum_m share_m exp(z_m - row_max_m) / total_m, block by block; 0 if there is no such class."""
    p = ()
    for i in tl.static_range(len(ks)):
        p += (tl.zeros_like(ks[i]).to(kind.ACC) + tl.zeros((1, kind.P), kind.ACC),)
    for m in tl.static_range(len(maps)):
        z = load_logits(again(maps[m], zero), image, Y, X, k0, ks, sizes, kind)
        sums = ()
        for i in tl.static_range(len(ks)):
            sums += (p[i] + stats[m][1][None, :] * exp(z[i] - stats[m][0][None, :]),)
        p = sums
        tl.debug_barrier()  # or the compiler spreads registers over the addresses of all maps at once
    return p


@triton.jit
def key_of(out, image, Y, X, inside, at, sizes):
    """The place of (label, prediction) in counts, -1 for none; whether the label is out of range, and the label."""
    t_b, t_y, t_x = sizes.target
    p_row = out.target + image * t_b + Y.to(tl.int64) * t_y
    label = tl.load(p_row + X.to(tl.int64) * t_x, mask=inside, other=0).to(tl.int64)
    inside = inside & (label != sizes.ignore_index)
    known = (label >= 0) & (label < sizes.classes)
    return tl.where(inside & known, label * sizes.classes + at, -1), inside & (known == 0), label


@triton.jit
def add_counts(counts, keys, classes, BINS: tl.constexpr):
    """counts[key] += 1. Neighboring pixels have equal keys: those of a program are added up first."""
    if BINS > 0:
        pairs = classes * classes
        bins = tl.arange(0, BINS)
        found = tl.zeros((BINS,), tl.int32)
        for i in tl.static_range(len(keys)):
            found += tl.histogram(tl.where(keys[i] >= 0, keys[i], pairs).to(tl.int32), BINS)
        tl.atomic_add(counts + bins, found.to(tl.int64), mask=(found > 0) & (bins < pairs), sem="relaxed")
    else:
        for i in tl.static_range(len(keys)):
            left = keys[i]
            for _ in range(8):
                key = tl.max(left, 0)
                same = left == key
                tl.atomic_add(counts + key, tl.sum(same.to(tl.int64), 0), mask=key >= 0, sem="relaxed")
                left = tl.where(same, -1, left)
            tl.atomic_add(counts + left, tl.full(left.shape, 1, tl.int64), mask=left >= 0, sem="relaxed")


@triton.jit
def add_bad(bad, count, largest):
    """bad += (count, ) and its maximum with the largest. A 0 stands for no label: it is never out of range."""
    if count > 0:
        tl.atomic_add(bad, count.to(tl.float64), sem="relaxed")
        place = (bad + 1).to(tl.pointer_type(tl.int64), bitcast=True)
        new = largest.to(tl.float64).to(tl.int64, bitcast=True)
        old = tl.atomic_cas(place, tl.full((), 0, tl.int64), new)
        smaller = (old != 0) & (old.to(tl.float64, bitcast=True) < largest.to(tl.float64))
        while smaller:
            seen = tl.atomic_cas(place, old, new)
            smaller = (seen != old) & (seen.to(tl.float64, bitcast=True) < largest.to(tl.float64))
            old = seen


@triton.jit
def write(out, image, lo, X, inside, at, sizes, kind):
    """The labels of rows from lo on, as many as in `inside` and `at`: stored, or counted."""
    keys = ()
    count = tl.zeros((kind.P,), tl.int32)
    largest = tl.full((kind.P,), -(2**63), tl.int64)
    for r in tl.static_range(len(at)):
        if out.target is None:
            p_row = out.labels + (image * sizes.height + lo + r) * sizes.width
            tl.store(p_row + X, at[r].to(out.labels.dtype.element_ty), mask=inside[r])
        else:
            key, wrong, label = key_of(out, image, lo + r, X, inside[r], at[r], sizes)
            keys += (key,)
            count += wrong.to(tl.int32)
            largest = tl.where(wrong, tl.maximum(largest, label), largest)
    if out.target is not None:
        add_counts(out.counts, keys, sizes.classes, kind.BINS)
        add_bad(out.bad, tl.sum(count, 0), tl.max(largest, 0))


@triton.jit
def best_logit_of_rows(map, out, image, y, lo, hi, X, rows, sizes, kind):
    """Label rows [lo, hi), R at most, whose upper row of cells is y."""
    at = columns_of(map, X, sizes.width, kind)
    ks = class_blocks(kind.KS)
    s_k, s_y, s_x = plain(map.k), plain(map.y), plain(map.x)
    p_top = map.data + image * plain(map.b) + y * s_y
    p_bottom = p_top + tl.where(y + 1 < rows.cells, s_y, 0)
    best, label, inside = (), (), ()
    for r in tl.static_range(kind.R):
        best += (tl.full((kind.P,), float("-inf"), kind.ACC),)
        label += (tl.zeros((kind.P,), tl.int32),)
        inside += ((sizes.width > X) & (lo + r < hi),)
    for k0 in range(0, sizes.classes, kind.BK):
        count, skip = sizes.classes - k0, tl.cast(k0, tl.int64) * s_k
        top = load_row(p_top + skip, s_k, s_x, ks, count, at, kind.BLEND_X, float("-inf"), kind.ACC)
        bottom = top
        if kind.BLEND_Y:
            bottom = load_row(p_bottom + skip, s_k, s_x, ks, count, at, kind.BLEND_X, float("-inf"), kind.ACC)
        better, where = (), ()
        for r in tl.static_range(kind.R):
            z = top
            if kind.BLEND_Y:
                rest = tl.maximum((lo + r) * rows.mul + rows.add - y * rows.den, 0)
                alone = (rest == 0) | (y + 1 >= rows.cells)
                f = tl.where(alone, 0.5, divide(rest.to(kind.ACC), rows.den.to(kind.ACC))).to(kind.ACC)
                z = ()
                mixed = blend(top, bottom, f)
                for i in tl.static_range(len(top)):
                    z += (tl.where(alone, top[i], mixed[i]),)
            b, w = take_best(z, k0, ks, best[r], label[r])
            better += (b,)
            where += (w,)
        best, label = better, where
    write(out, image, lo, X, inside, label, sizes, kind)


VARYING = ["classes", "height", "width", "groups", "parts", "ignore_index", "target_b", "target_y", "target_x", "one"]


@triton.jit(do_not_specialize=VARYING)
def best_logit(
    map, out, kind, classes: tl.int32, height: tl.int32, width: tl.int32, groups: tl.int32, parts: tl.int32,
    ignore_index: tl.int64, target_b: tl.int64, target_y: tl.int64, target_x: tl.int64,
):  # fmt: skip
    """The class of the largest logit. A group of rows is one row if R is 1, else a part of an interval, the label rows
    between two rows of cells; intervals count from -1."""
    sizes = Sizes(classes, height, width, ignore_index, (target_b, target_y, target_x))
    rows = Axis(plain(map.y_cells), tl.cast(height, tl.int64), plain(map.y_mul), plain(map.y_add), plain(map.y_den))
    tiles = tl.cdiv(width, kind.P)
    pid = tl.program_id(0)
    X = pid % tiles * kind.P + tl.arange(0, kind.P)
    group = pid // tiles % groups
    image = (pid // tiles // groups).to(tl.int64)
    if kind.R == 1:
        lo = group.to(tl.int64)
        hi = lo + 1
        y = tl.maximum(lo * rows.mul + rows.add, 0) // rows.den
        best_logit_of_rows(map, out, image, y, lo, hi, X, rows, sizes, kind)
    else:
        y = (group // parts).to(tl.int64) - 1
        lo = first_label(rows, y) + group % parts * kind.R
        hi = first_label(rows, y + 1)
        if lo < hi:
            best_logit_of_rows(map, out, image, tl.maximum(y, 0), lo, hi, X, rows, sizes, kind)


@triton.jit(do_not_specialize=VARYING)
def best_probability(
    maps, out, kind, classes: tl.int32, height: tl.int32, width: tl.int32, one: tl.int32,
    ignore_index: tl.int64, target_b: tl.int64, target_y: tl.int64, target_x: tl.int64,
):  # fmt: skip
    """The class of the largest average probability, or of the largest logit of a single map; and the scores."""
    sizes = Sizes(classes, height, width, ignore_index, (target_b, target_y, target_x))
    ks = class_blocks(kind.KS)
    tiles = tl.cdiv(width, kind.P)
    pid = tl.program_id(0)
    X = pid % tiles * kind.P + tl.arange(0, kind.P)
    Y = pid // tiles % height
    image = (pid // tiles // height).to(tl.int64)
    ALONE: tl.constexpr = len(maps) == 1
    best = tl.full((kind.P,), float("-inf"), kind.ACC)
    at = tl.zeros((kind.P,), tl.int32)
    stats = ()  # of each map: row_max, share / total
    for m in tl.static_range(len(maps)):
        row_max, total, label = softmax_stats(maps[m], image, Y, X, ks, sizes, ALONE, kind)
        share = tl.full((), maps[m].share, kind.ACC) + tl.full((), maps[m].share_rest, kind.ACC)
        stats += ((row_max, divide(tl.zeros_like(total) + share, total)),)
        if ALONE:
            best, at = stats[m][1], label
    entropy = tl.zeros((kind.P,), kind.ACC)
    if ALONE == 0 or out.entropy is not None:
        for k0 in range(0, classes, kind.BK):
            zero = (k0 * one < 0).to(tl.int32)  # see `again`
            p = average(maps, stats, image, Y, X, k0, ks, zero, sizes, kind)
            if ALONE == 0:
                best, at = take_best(p, k0, ks, best, at)
            if out.entropy is not None:
                for i in tl.static_range(len(p)):
                    known = (ks[i] < classes - k0) & (p[i] != 0.0)
                    entropy -= tl.sum(tl.where(known, p[i] * tl.log(tl.where(known, p[i], 1.0)), 0.0), 0)
    n = (image * height + Y) * width + X
    inside = width > X
    if out.confidence is not None:
        tl.store(out.confidence + n, best, mask=inside)
    if out.entropy is not None:
        tl.store(out.entropy + n, entropy, mask=inside)
    if out.labels is not None or out.target is not None:
        write(out, image, Y, X, (inside,), (at,), sizes, kind)
