"""Order of the rows of both sides by comparison of all labels: the place of a row is the number of rows before it.

A program places BLOCK rows. N^2 comparisons: up to some thousand rows they take less time than the launches of a sort.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Keys(NamedTuple):
    """The compile-time side of a launch."""

    BLOCK: Any
    CHUNK: Any  # rows that are compared with at once
    LABEL: Any  # dtypes of comparisons
    ID: Any
    WITH_IDS: Any
    WEIGHTED: Any
    FACTORS: Any
    TWO: Any  # whether there are two sides


@triton.jit
def load_keys(side, i, count, ignore_index, keys, DROPS: tl.constexpr):
    """(labels, ids, whether rows i take part, whether there are such rows)."""
    known = i < count
    label = tl.load(side.labels + i, mask=known, other=0)
    takes_part = known & (label.to(tl.int64) != ignore_index)
    if DROPS:
        takes_part = takes_part & (tl.load(side.weights + i, mask=known, other=0.0) != 0.0)
    ids = i
    if keys.WITH_IDS:
        ids = tl.load(side.ids + i, mask=known, other=0).to(keys.ID)
    return label.to(keys.LABEL), ids, takes_part, known


@triton.jit
def move(source, target, i, place, known):
    """target[place] = source[i]."""
    value = tl.load(source + i, mask=known, other=0.0)
    tl.store(target + place, value.to(target.dtype.element_ty), mask=known)


@triton.jit
def place_rows(own, count, other, other_count, out, block, ignore_index, keys, FIRST: tl.constexpr):
    """Place rows of one side: those that take no part first, then by label, then by position."""
    LAST: tl.constexpr = not (FIRST and keys.TWO)
    DROPS: tl.constexpr = keys.WEIGHTED and not FIRST
    i = block * keys.BLOCK + tl.arange(0, keys.BLOCK)
    label, ids, takes_part, known = load_keys(own, i, count, ignore_index, keys, DROPS)
    label, ids, part, position = label[:, None], ids[:, None], takes_part[:, None], i[:, None]
    smaller = tl.zeros((keys.BLOCK, keys.CHUNK), tl.int32)
    ahead, lower = smaller, smaller
    for begin in range(0, count, keys.CHUNK):
        j = begin + tl.arange(0, keys.CHUNK)
        labels, others, present, some = load_keys(own, j, count, ignore_index, keys, DROPS)
        less = labels[None, :] < label
        earlier = j[None, :] < position
        absent = (some & (present == 0))[None, :]
        before = less | ((labels[None, :] == label) & earlier)
        ahead += tl.where(part, absent | (present[None, :] & before), absent & earlier).to(tl.int32)
        smaller += (less & some[None, :]).to(tl.int32)
        if keys.WITH_IDS:
            lower += ((others[None, :] < ids) & some[None, :]).to(tl.int32)
    if keys.TWO:
        for begin in range(0, other_count, keys.CHUNK):
            j = begin + tl.arange(0, keys.CHUNK)
            labels, others, _, some = load_keys(other, j, other_count, ignore_index, keys, False)
            smaller += ((labels[None, :] < label) & some[None, :]).to(tl.int32)
            if keys.WITH_IDS:
                lower += ((others[None, :] < ids) & some[None, :]).to(tl.int32)
    place = tl.sum(ahead, 1)
    tl.store(out.order + place, i.to(tl.int64), mask=known)
    tl.store(out.groups + place, tl.where(takes_part, tl.sum(smaller, 1), -1), mask=known)
    if keys.WITH_IDS:
        tl.store(out.ids + place, tl.sum(lower, 1), mask=known)
    if keys.WEIGHTED and LAST:
        move(own.weights, out.weights, i, place, known)
    if keys.FACTORS and FIRST:
        move(own.factors, out.factors, i, place, known)


@triton.jit(do_not_specialize=["x_count", "y_count", "ignore_index"])
def sort_rows(x, y, x_out, y_out, x_count, y_count, ignore_index: tl.int64, keys):
    """Sort both sides; a group is the number of rows with a smaller label, an id that of rows with a smaller one."""
    block = tl.program_id(0)
    if keys.TWO:
        blocks = tl.cdiv(x_count, keys.BLOCK)
        if block < blocks:
            place_rows(x, x_count, y, y_count, x_out, block, ignore_index, keys, True)
        else:
            place_rows(y, y_count, x, x_count, y_out, block - blocks, ignore_index, keys, False)
    else:
        place_rows(x, x_count, x, x_count, x_out, block, ignore_index, keys, True)
