"""Errors as fixed-point numbers, and their counts and sums in bins.

An error is cut off to an integer: its bin, above F bits of its place there. An entry of the histogram is one as well:
the number of its errors, above SHIFT bits of the sum of their places. Integers have the same sum in any order, so
atomic additions give the same bits. Neighboring programs add to different copies.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ...core.triton_kernels import plain
from ...engines.resized.triton_kernels.sums import add_rows


class Histogram(NamedTuple):
    """Counts and sums of forward. All integers are disguised, see `plain`."""

    packed: Any  # [S, copies, K, 2, N] int64
    fraction: Any  # F
    shift: Any  # SHIFT
    copies: Any


@triton.jit
def fixed(errors, bins, fraction):
    """Errors in units of 1 / (bins 2^fraction): less than 1, and 0 for a NaN."""
    one = bins << fraction
    at = tl.maximum(errors * one.to(errors.dtype), 0.0)
    if errors.dtype == tl.float64:
        return tl.minimum(at.to(tl.int64), one.to(tl.int64) - 1)
    else:
        return tl.minimum(at.to(tl.int32), one.to(tl.int32) - 1)


@triton.jit
def set_of(image, form):
    """The index of an image's set of pixels."""
    return image if form.PER_IMAGE else image * 0


@triton.jit
def first_entry(io, params, image, form):
    """The index of the first entry of the program's copy."""
    copies = plain(io.histogram.copies)
    copy = set_of(image, form) * copies + tl.program_id(0) % copies
    return copy * params.classes * 2 * plain(io.bins)


@triton.jit
def pack(at, histogram):
    """(bin, entry of one error)"""
    fraction = plain(histogram.fraction)
    place = at & ((1 << fraction) - 1).to(at.dtype)
    unit = tl.full((), 1, tl.int64) << plain(histogram.shift)
    return at >> fraction.to(at.dtype), unit + place.to(tl.int64)


@triton.jit
def add_others(io, params, exps, ks, k0, image, inverse, form):
    """Add the errors of kind 0 of a label row. exps is 0 at the label, inverse if the pixel is not valid."""
    bins = plain(io.bins)
    p_chunk = io.histogram.packed + first_entry(io, params, image, form) + tl.cast(k0, tl.int64) * 2 * bins
    for i in tl.static_range(len(ks)):
        at = fixed(exps[i] * inverse[None, :], bins, plain(io.histogram.fraction))
        bin, entry = pack(at, io.histogram)
        counted = (bin > 0) & (ks[i] < params.classes - k0)
        # no two lanes need be next to each other: the hint is for the layout, as in `load_row`
        p_entry = tl.max_contiguous(p_chunk + (ks[i] * (2 * bins).to(tl.int32) + bin), (1, 2))
        tl.atomic_add(p_entry, entry, mask=counted, sem="relaxed")


@triton.jit
def no_own(P: tl.constexpr):
    """Per lane: the index of an entry of kind 1, or -1, and what is to be added to it."""
    return tl.full((P,), -1, tl.int64), tl.zeros((P,), tl.int64)


@triton.jit
def store_own(histogram, own, done):
    """Add what lanes that are done hold."""
    tl.atomic_add(histogram.packed + own[0], own[1], mask=done & (own[0] >= 0), sem="relaxed")


@triton.jit
def add_own(io, params, own, error, labels, image, form):
    """Add the errors of kind 1 of a label row. In a lane one after the other often goes to the same entry: memory sees
    their sum."""
    bins = plain(io.bins)
    bin, entry = pack(fixed(error, bins, plain(io.histogram.fraction)), io.histogram)
    index = first_entry(io, params, image, form) + (labels.label.to(tl.int64) * 2 + 1) * bins + bin
    other = labels.valid & (index != own[0])
    store_own(io.histogram, own, other)
    total = tl.where(other, 0, own[1]) + tl.where(labels.valid, entry, 0)
    return tl.where(other, index, own[0]), total


@triton.jit
def unpack(p_packed, p_counts, p_sums, entries, entry, bins, fraction, shift, copies):
    """Add the copies of some entries of a set."""
    total = tl.zeros(entry.shape, tl.int64)
    for copy in range(copies):
        total += tl.load(p_packed + copy * entries + entry, mask=entry < entries, other=0)
    total = total.to(tl.uint64, bitcast=True)  # a count may take the highest bit
    count = total >> shift.to(tl.uint64)
    places = total - (count << shift.to(tl.uint64))
    one = (tl.full((), 1, tl.int64) << fraction).to(tl.float64)
    at = count.to(tl.float64) * (entry % bins).to(tl.float64) + places.to(tl.float64) / one
    tl.store(p_counts + entry, count.to(tl.float64), mask=entry < entries)
    tl.store(p_sums + entry, at / bins.to(tl.float64), mask=entry < entries)


@triton.jit(do_not_specialize=["entries", "rows", "bins", "fraction", "shift", "copies"])
def finish(packed, extras, counts, sums, totals, entries: tl.int64, rows: tl.int32, bins: tl.int32, fraction: tl.int32,
           shift: tl.int32, copies: tl.int32, ENTRIES: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    """Grid: (blocks of entries and one more, S). packed [S, copies, entries] -> counts and sums [S, entries], by all
    but the last; extras [S rows, 4] -> totals [S, 4]."""
    block, row = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    if block < tl.num_programs(0) - 1:
        entry = block * ENTRIES + tl.arange(0, ENTRIES)
        begin = row * entries
        unpack(packed + begin * copies, counts + begin, sums + begin, entries, entry, bins, fraction, shift, copies)
    else:
        column = tl.arange(0, 4)
        total, largest = add_rows(extras + row * rows * 4, rows, 4, column, column < 4, ROWS)
        example = tl.where(largest == float("-inf"), 0.0, largest)
        tl.store(totals + row * 4 + (column + 3) % 4, tl.where(column == 3, example, total))
