"""Launchers of the Triton kernels of the predict family: see triton_kernels.py."""

from __future__ import annotations

import struct
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..core.checks import accumulator
from ..core.triton import FUSED, TYPES, cdiv, constant, disguised, on_device_of
from ..engines.resized.triton import class_sizes, make_axis
from .op import Inputs
from .triton_kernels import Kind, Map, Outputs, best_logit, best_probability

COLUMNS, WARPS = 128, 4  # of a program, one column a thread
# Label rows that may share the rows of cells between which they lie, by dtype of the arithmetic
ROWS = {torch.float32: (8, 4, 2), torch.float64: (2,)}
ENOUGH_PROGRAMS = 1024
MOST_BINS = 4096  # of a program's histogram
# Classes at once, by dtype of the arithmetic, that compile without spills for sm_80 and sm_90. One map without scores
# takes two rows of cells of each; else there are sums, and what the softmax of each map needs.
LOGIT_CHUNKS = {torch.float32: 12, torch.float64: 8}
FEW_MAPS, SOME_MAPS = 4, 8  # at most
FEW_CHUNKS = {torch.float32: 8, torch.float64: 4}
SOME_CHUNKS = {torch.float32: 6, torch.float64: 4}
MANY_CHUNKS = {torch.float32: 4, torch.float64: 4}
REGISTERS = 128  # of a thread: four programs on a multiprocessor
MANY_REGISTERS = 255


class Rows(NamedTuple):
    """Groups of label rows, one for each program of a tile of columns."""

    each: int  # R
    groups: int
    parts: int  # of an interval


def make_map(logits: Tensor, size: tuple[int, int], flipped: bool, share: float, align_corners: bool) -> Map:
    axes = [make_axis(cells, labels, align_corners) for cells, labels in zip(logits.shape[2:], size, strict=True)]
    numbers = [n for axis in axes for n in (axis.cells, axis.mul, axis.add, axis.den)]
    (rounded,) = struct.unpack("f", struct.pack("f", share))
    hidden = [disguised(n) for n in (*logits.stride(), int(flipped), *numbers)]
    return Map(logits, *(*hidden, rounded, share - rounded))


def make_rows(cells: int, labels: int, align_corners: bool, acc: torch.dtype, others: int) -> Rows:
    """others: programs for each group of rows."""
    axis = make_axis(cells, labels, align_corners)
    most = min(cdiv(axis.den, axis.mul), labels)  # labels of an interval
    for count in ROWS[acc]:
        parts = cdiv(most, count)
        if cells < labels and count <= most and others * (cells + 1) * parts >= ENOUGH_PROGRAMS:
            return Rows(count, (cells + 1) * parts, parts)
    return Rows(1, labels, 1)


def bins_of(classes: int) -> int:
    bins = triton.next_power_of_2(classes * classes + 1)
    return bins if bins <= MOST_BINS else 0


def launch(inputs: Inputs, out: Outputs, ignore_index: int = 0) -> None:
    pixels = out.labels if out.target is None else out.target
    (batch, height, width), first = pixels.shape, inputs.maps[0]
    if pixels.numel() == 0:
        return
    maps = tuple(
        make_map(logits, (height, width), flipped, share, inputs.align_corners)
        for logits, flipped, share in zip(inputs.maps, inputs.flipped, inputs.shares, strict=True)
    )
    alone = len(maps) == 1 and out.confidence is None and out.entropy is None
    acc, classes, tiles = accumulator(first.dtype), first.shape[1], cdiv(width, COLUMNS)
    many = len(maps) > SOME_MAPS
    several = MANY_CHUNKS if many else SOME_CHUNKS if len(maps) > FEW_MAPS else FEW_CHUNKS
    chunk = (LOGIT_CHUNKS if alone else several)[acc]
    ks = class_sizes(cdiv(classes, cdiv(classes, chunk)))
    cells_y, cells_x = first.shape[2:]
    rows = make_rows(cells_y, height, inputs.align_corners, acc, batch * tiles) if alone else Rows(1, height, 1)
    largest = max(2 * c * n for z in inputs.maps for c, n in zip(z.shape[2:], (height, width), strict=True))
    kind = Kind(
        KS=ks, BK=sum(ks), P=COLUMNS, R=rows.each, BLEND_Y=cells_y != height, BLEND_X=cells_x != width,
        ACC=TYPES[acc], INT=tl.int32 if largest < 2**30 else tl.int64,
        BINS=0 if out.counts is None else bins_of(classes),
    )  # fmt: skip
    target = (0, 0, 0) if out.target is None else out.target.stride()
    constants, grid = Kind(*map(constant, kind)), (batch * rows.groups * tiles,)
    options = {"num_warps": WARPS, "maxnreg": MANY_REGISTERS if many else REGISTERS, **FUSED}
    with on_device_of(first):
        if alone:
            best_logit[grid](
                maps[0], out, constants, classes, height, width, rows.groups, rows.parts, ignore_index, *target,
                **options,
            )  # fmt: skip
        else:
            best_probability[grid](maps, out, constants, classes, height, width, 1, ignore_index, *target, **options)


def predict_kernel(inputs: Inputs, labels: Tensor, confidence: Tensor | None, entropy: Tensor | None) -> None:
    """See op.py."""
    launch(inputs, Outputs(labels, confidence, entropy))


def confusion_kernel(inputs: Inputs, target: Tensor, ignore_index: int, counts: Tensor, bad: Tensor) -> None:
    """See op.py."""
    counts.zero_()
    bad.zero_()
    launch(inputs, Outputs(target=target, counts=counts, bad=bad), ignore_index)
