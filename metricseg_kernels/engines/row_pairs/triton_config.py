"""Tiles of the Triton engine for pairs of rows: a table by kind of product, number of columns and architecture."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ...core.checks import accumulator
from ...core.triton import FUSED, TYPES, asynchronous, cdiv, constant

SCAN = 1024  # tiles that a program inspects at once to find its spans


class TileShape(NamedTuple):
    """A row of the launch table: for at most `depth` columns, BM x BN tiles, whole rows or chunks of them.

    A tile of S takes BM BN / (32 warps) registers of a thread, the accumulators of the gradient
    BM D / (32 warps). Shared memory holds `stages` tiles of Y and one of X. BN divides BM.
    """

    depth: int
    rows: int
    columns: int
    chunk: int  # 0: whole rows, as blocks
    slice: int  # columns of the gradient per program, if rows go in chunks
    warps: int
    stages: int
    registers: int | None = None  # a thread at most; ptxas may spill for more programs on a multiprocessor if not told


ANY = 1 << 31
# (kind of product, whether with a second one): shapes by depth. "sync" is for targets before sm_90, whose tensor cores
# take their left operand from registers. Three stages, so that a tile is copied while another is multiplied: the
# compiler waits for all copies of two. Rows in chunks copy ahead within a tile only.
SHAPES: dict[tuple[str, bool], tuple[TileShape, ...]] = {
    ("half", False): (TileShape(128, 128, 128, 0, 0, 8, 3), TileShape(256, 128, 64, 0, 0, 8, 3),
                      TileShape(512, 128, 32, 0, 0, 8, 3), TileShape(ANY, 128, 128, 64, 0, 8, 3)),
    ("half sync", False): (TileShape(128, 128, 128, 0, 0, 8, 3, registers=255),
                           TileShape(256, 128, 64, 0, 0, 8, 3, registers=255),
                           TileShape(512, 64, 32, 0, 0, 8, 3, registers=255), TileShape(ANY, 128, 64, 64, 0, 8, 3)),
    ("half", True): (TileShape(64, 128, 128, 0, 0, 8, 3), TileShape(256, 128, 64, 0, 0, 8, 3),
                     TileShape(ANY, 64, 64, 32, 256, 8, 3)),
    ("half sync", True): (TileShape(128, 128, 64, 0, 0, 8, 3, registers=255), TileShape(256, 64, 64, 0, 0, 8, 3),
                          TileShape(ANY, 64, 64, 64, 256, 8, 3)),
    ("tf32", False): (TileShape(128, 128, 64, 0, 0, 8, 3), TileShape(256, 128, 32, 0, 0, 8, 3),
                      TileShape(ANY, 128, 64, 32, 0, 8, 3)),
    ("tf32 sync", False): (TileShape(128, 128, 64, 0, 0, 8, 3, registers=255), TileShape(256, 64, 32, 0, 0, 8, 3),
                           TileShape(ANY, 128, 32, 32, 0, 8, 3)),
    ("tf32", True): (TileShape(128, 128, 64, 0, 0, 8, 3), TileShape(256, 64, 32, 0, 0, 8, 3),
                     TileShape(ANY, 64, 32, 32, 256, 8, 3)),
    ("tf32 sync", True): (TileShape(32, 64, 64, 0, 0, 8, 3), TileShape(64, 128, 64, 0, 0, 8, 3),
                          TileShape(128, 64, 32, 0, 0, 8, 3, registers=255),
                          TileShape(ANY, 64, 32, 32, 256, 8, 3)),
    ("ieee", False): (TileShape(ANY, 128, 128, 16, 0, 8, 3),),
    ("ieee", True): (TileShape(64, 64, 32, 16, 64, 8, 3), TileShape(128, 64, 32, 16, 128, 8, 3),
                     TileShape(ANY, 64, 32, 16, 256, 8, 3)),
    ("ieee sync", True): (TileShape(64, 64, 32, 16, 64, 8, 3), TileShape(128, 64, 32, 16, 128, 8, 3),
                          TileShape(ANY, 32, 32, 16, 256, 8, 3)),
    ("double", False): (TileShape(ANY, 32, 32, 16, 0, 4, 3),),
    ("double", True): (TileShape(ANY, 32, 32, 16, 64, 4, 3),),
}  # fmt: skip


class Tile(NamedTuple):
    """The compile-time side of a launch."""

    BM: Any
    BN: Any
    KS: Any  # widths of the blocks of a row
    WIDTH: Any  # of a row in memory
    DEPTH: Any  # columns in use, rounded up to whole chunks
    CHUNK: Any
    SLICE: Any
    SECOND: Any  # operand Y of W Y: the blocks of the first product, a "copy" of them, or a "load" of its own
    SCAN: Any
    PRECISION: Any
    DTYPE: Any  # of the products' operands
    ACC: Any


class LaunchConfig(NamedTuple):
    """Launch plan for products of some rows."""

    tile: Tile
    shape: TileShape
    width: int
    dtype: torch.dtype
    rounds: bool  # to tf32

    @property
    def options(self) -> dict[str, Any]:
        shape = self.shape
        return {"num_warps": shape.warps, "num_stages": shape.stages, "maxnreg": shape.registers, **FUSED}


def block_widths(depth: int) -> tuple[int, ...]:
    """Powers of two from 16 to 128 that sum to at least `depth`, falling, the last three below 128: 96 -> 64, 32."""
    whole, rest = divmod(max(cdiv(depth, 16), 1), 8)
    widths = [8] * whole
    if rest:
        tail: list[int] = []
        while rest > sum(tail) and len(tail) < 2:
            tail.append(1 << ((rest - sum(tail)).bit_length() - 1))
        if rest > sum(tail):
            tail.append(triton.next_power_of_2(rest - sum(tail)))
        top = triton.next_power_of_2(rest)
        widths += tail if sum(tail) < top else [top]
    return tuple(16 * w for w in widths)


def make_config(
    features: Tensor, second_product: bool, distances: bool = False, weighted: bool = False
) -> LaunchConfig:
    """Launch plan for products of these rows.

    distances: weights may be as large as 1 / d, so fp16 operands are kept as fp32, which tf32 products take exactly.
    An epilogue of distances also takes more registers beside the gradient, so tiles are half as wide there. So does one
    of weighted columns, if exact fp32 products leave it hardly any.
    """
    dtype = features.dtype
    if dtype == torch.float16 and distances:
        dtype = torch.float32
    precise = features.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    kind = {torch.float64: "double", torch.float32: "ieee" if precise else "tf32"}.get(dtype, "half")
    crowded = distances if second_product else weighted and kind == "ieee"
    return _config(kind, dtype, features.shape[1], second_product, crowded, asynchronous())


@functools.cache
def _config(
    kind: str, dtype: torch.dtype, depth: int, second_product: bool, crowded: bool, copies: bool
) -> LaunchConfig:
    shapes = SHAPES[kind, second_product]
    if not copies:
        shapes = SHAPES.get((f"{kind} sync", second_product), shapes)
    shape = next(s for s in shapes if depth <= s.depth)
    if crowded:
        shape = shape._replace(columns=max(shape.columns // 2, 32))
    widths = () if shape.chunk else block_widths(depth)
    width = sum(widths)
    if shape.chunk:
        unit = max(shape.chunk, shape.slice)
        width = max(cdiv(depth, unit), 1) * unit
    depth = cdiv(depth, shape.chunk or 1) * (shape.chunk or 1)
    second = "load" if shape.chunk else ""
    if kind == "tf32" and not shape.chunk:
        second = "copy" if copies else "load"
    constants = (shape.rows, shape.columns, widths, width, depth, shape.chunk, shape.slice, second, SCAN,
                 "tf32" if kind == "tf32" else "ieee", TYPES[dtype], TYPES[accumulator(dtype)])  # fmt: skip
    return LaunchConfig(Tile(*map(constant, constants)), shape, width, dtype, kind == "tf32")
