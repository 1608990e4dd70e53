"""Launcher of the Triton kernels of the retrieval family: see triton_kernels.py.

Products are in exact fp32 (fp64 for fp64), each summed in an order that depends on D alone: equal rows of the bank have
equal similarities wherever they lie.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ..core.triton import FUSED, TYPES, on_device_of
from .triton_kernels import merge, part_topk

PROGRAMS = 256  # that queries and parts of the bank are cut into
PARTS = 64  # of the bank, at most
ROWS = 1024  # of a part, at least
REGISTERS = 65536  # of a multiprocessor, for one program: left to itself, ptxas spills for a second one
MERGED = 4  # queries of a program that merges


class Rows(NamedTuple):
    """[N, D] with strides."""

    data: Tensor
    row: int
    column: int


class Shape(NamedTuple):
    """A program: at most `k` neighbors, `queries` x `rows` of a tile, `depth` values of them at a time."""

    k: int
    queries: int
    rows: int
    depth: int
    warps: int


# By calculation, not by measurement: a thread keeps queries (rows + 2 k) / (32 warps) numbers. More than 128 in fp64
# spill.
SHAPES: dict[torch.dtype, tuple[Shape, ...]] = {
    torch.float32: (Shape(16, 32, 64, 16, 8), Shape(128, 16, 64, 16, 8), Shape(1024, 16, 64, 16, 16)),
    torch.float64: (Shape(16, 16, 32, 16, 4), Shape(128, 16, 32, 16, 4), Shape(1024, 16, 32, 16, 16)),
}


def topk_kernel(queries: Tensor, bank: Tensor, valid: Tensor | None, values: Tensor, indices: Tensor) -> None:
    """See op.py."""
    (count, k), rows, depth = values.shape, bank.shape[0], queries.shape[1]
    if count == 0:
        return
    shape = next(s for s in SHAPES[values.dtype] if k <= s.k)
    blocks = triton.cdiv(count, shape.queries)
    tiles = triton.cdiv(rows, shape.rows)
    parts = max(min(triton.cdiv(PROGRAMS, blocks), PARTS, rows // max(ROWS, k)), 1)
    part_tiles = triton.cdiv(tiles, parts)
    parts = max(triton.cdiv(tiles, max(part_tiles, 1)), 1)  # none is empty
    flags = None if valid is None else valid.view(torch.uint8)
    lists = values, indices
    if parts > 1:
        lists = values.new_empty((parts, count, k)), indices.new_empty((parts, count, k))
    with on_device_of(queries):
        part_topk[(blocks * parts,)](
            Rows(queries, *queries.stride()), Rows(bank, *bank.stride()), flags,
            None if flags is None else flags.stride(0), *lists, count, rows, depth, k, parts, part_tiles,
            BM=shape.queries, BN=shape.rows, BD=shape.depth, BK=max(triton.next_power_of_2(k), 16),
            ACC=TYPES[values.dtype], num_warps=shape.warps, num_stages=2,
            maxnreg=min(REGISTERS // (32 * shape.warps), 255), **FUSED,
        )  # fmt: skip
        if parts > 1:
            merge[(triton.cdiv(count, MERGED),)](
                *lists, values, indices, count, k, parts, BM=MERGED, BP=max(triton.next_power_of_2(parts), 16),
                num_warps=4, **FUSED,
            )  # fmt: skip
