"""Sides and tiles of the Triton engine: what its launchers have in common."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..core.backends import interpreting
from ..core.checks import accumulator
from .rows import Rows
from .triton_tiles import find_alive, gather_rows

# Launches are deterministic and the same on every device: nothing here asks how many multiprocessors there are.
ENOUGH_PROGRAMS = 256
SCAN = 1024  # tiles that a program looks at at once to find its spans


class Shape(NamedTuple):
    """A row of the launch table: for at most `depth` columns, BM x BN tiles, whole rows or chunks of them.

    By argument and not by measurement: a tile of S costs BM BN / (32 warps) registers a thread and the gradient's
    accumulators BM D / (32 warps), together at most 160; shared memory holds `stages` tiles of Y and one of X.
    """

    depth: int
    rows: int
    columns: int
    chunk: int  # 0: whole rows, as blocks
    slice: int  # columns of the gradient per program, where rows go in chunks
    warps: int
    stages: int


# (kind of product, whether with a second one): shapes by depth. "sync" stands for targets before sm_90, whose tensor
# cores take their left operand from registers: the rows of X that a program keeps are there too. Each row is what
# compiles without spills in the forms of contrast.
SHAPES: dict[tuple[str, bool], tuple[Shape, ...]] = {
    ("half", False): (Shape(128, 128, 128, 0, 0, 8, 3), Shape(256, 128, 128, 0, 0, 8, 2),
                      Shape(1 << 31, 128, 128, 64, 0, 8, 3)),
    ("half", True): (Shape(64, 128, 128, 0, 0, 8, 3), Shape(256, 128, 64, 0, 0, 8, 2),
                     Shape(1 << 31, 128, 64, 64, 256, 8, 2)),
    ("half sync", True): (Shape(64, 128, 64, 0, 0, 8, 3), Shape(256, 64, 64, 0, 0, 8, 2),
                          Shape(1 << 31, 64, 64, 64, 256, 8, 2)),
    ("tf32", False): (Shape(64, 128, 64, 0, 0, 8, 3), Shape(128, 128, 64, 0, 0, 8, 2),
                      Shape(1 << 31, 128, 64, 32, 0, 8, 3)),
    ("tf32 sync", False): (Shape(64, 64, 64, 0, 0, 4, 3), Shape(128, 128, 64, 0, 0, 8, 2),
                           Shape(1 << 31, 128, 64, 32, 0, 8, 3)),
    ("tf32", True): (Shape(64, 64, 64, 0, 0, 4, 2), Shape(128, 64, 64, 0, 0, 8, 2),
                     Shape(1 << 31, 64, 32, 32, 256, 8, 2)),
    ("ieee", False): (Shape(1 << 31, 128, 128, 16, 0, 8, 2),),
    ("ieee", True): (Shape(64, 64, 32, 16, 64, 8, 2), Shape(128, 64, 32, 16, 128, 8, 2),
                     Shape(1 << 31, 64, 32, 16, 256, 8, 2)),
    ("ieee sync", True): (Shape(64, 64, 32, 16, 64, 8, 2), Shape(128, 64, 32, 16, 128, 8, 2),
                          Shape(1 << 31, 32, 32, 16, 256, 8, 2)),
    ("double", False): (Shape(1 << 31, 32, 32, 16, 0, 4, 1),),
    ("double", True): (Shape(1 << 31, 32, 32, 16, 64, 4, 1),),
}  # fmt: skip


class Tile(NamedTuple):
    """The compile-time side of a launch."""

    BM: Any
    BN: Any
    KS: Any  # widths of the blocks of a row
    WIDTH: Any  # of a row in memory
    CHUNK: Any
    SLICE: Any
    SCAN: Any
    PRECISION: Any
    DTYPE: Any  # of the products' operands
    ACC: Any


class Launch(NamedTuple):
    tile: Tile
    shape: Shape
    width: int
    dtype: torch.dtype

    @property
    def options(self) -> dict[str, Any]:
        return {"num_warps": self.shape.warps, "num_stages": self.shape.stages}


class Side(NamedTuple):
    """Rows as the kernels take them, R of them: a whole number of tiles."""

    data: Tensor  # [R, WIDTH]
    squares: Tensor  # [R]
    groups: Tensor  # [rows]
    ids: Tensor | None  # [rows]
    low: Tensor  # [tiles]
    high: Tensor
    spans: Tensor  # [4], see `find_alive`
    terms: Tensor | None  # [n, R]: what an epilogue knows of these rows
    rows: int
    padded: int
    tiles: int
    depth: int  # columns that count, to whole chunks


def block_widths(depth: int) -> tuple[int, ...]:
    """At most three powers of two from 16 on that sum to at least `depth`, falling: 96 -> 64, 32."""
    widths: list[int] = []
    rest = max(triton.cdiv(depth, 16), 1)
    while rest and len(widths) < 2:
        widths.append(1 << (rest.bit_length() - 1))
        rest -= widths[-1]
    if rest:
        widths.append(triton.next_power_of_2(rest))
    whole = triton.next_power_of_2(max(triton.cdiv(depth, 16), 1))
    return tuple(16 * w for w in widths) if sum(widths) < whole else (16 * whole,)


def asynchronous() -> bool:
    """Whether the target has matrix instructions that read both operands from shared memory."""
    return interpreting() or triton.runtime.driver.active.get_current_target().arch >= 90


def make_launch(features: Tensor, second_product: bool, distances: bool = False) -> Launch:
    """The tile for products of these rows.

    distances: weights may be as large as 1 / d, so fp16 operands are kept as fp32, which tf32 products take exactly;
    and an epilogue of distances keeps more in registers beside the gradient, so tiles are half as wide there.
    """
    dtype, depth = features.dtype, features.shape[1]
    if dtype == torch.float16 and distances:
        dtype = torch.float32
    precise = features.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    kind = {torch.float64: "double", torch.float32: "ieee" if precise else "tf32"}.get(dtype, "half")
    shapes = SHAPES[kind, second_product]
    if not asynchronous():
        shapes = SHAPES.get((f"{kind} sync", second_product), shapes)
    shape = next(s for s in shapes if depth <= s.depth)
    if distances and second_product:
        shape = shape._replace(columns=max(shape.columns // 2, 32))
    widths = () if shape.chunk else block_widths(depth)
    width = sum(widths)
    if shape.chunk:
        unit = max(shape.chunk, shape.slice)
        width = max(triton.cdiv(depth, unit), 1) * unit
    constants = (shape.rows, shape.columns, tuple(tl.constexpr(w) for w in widths), width, shape.chunk, shape.slice,
                 SCAN, "tf32" if kind == "tf32" else "ieee", TYPES[dtype], TYPES[accumulator(dtype)])  # fmt: skip
    tile = Tile(*(c if isinstance(c, tuple) else tl.constexpr(c) for c in constants))
    return Launch(tile, shape, width, dtype)


TYPES = {torch.float64: tl.float64, torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def on_device_of(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def make_side(rows: Rows, launch: Launch) -> Side:
    """The sorted and padded copy of one side."""
    features, (count, depth) = rows.features, rows.features.shape
    shape = launch.shape
    block = max(shape.rows, shape.columns)
    padded = max(triton.cdiv(count, block), 1) * block
    tiles = padded // shape.columns
    data = features.new_empty((padded, launch.width), dtype=launch.dtype)
    squares = features.new_empty(padded, dtype=accumulator(features.dtype))
    low, high, spans = (features.new_empty(n, dtype=torch.int32) for n in (tiles, tiles, 4))
    rounds = launch.dtype == torch.float32 and launch.tile.PRECISION.value == "tf32"
    gather_rows[(tiles,)](
        features, *features.stride(), rows.order, rows.groups, count, depth, data, squares, low, high,
        WIDTH=launch.width, ROWS=shape.columns, BLOCK=min(64, triton.next_power_of_2(launch.width)), ROUND=rounds,
        num_warps=4,
    )  # fmt: skip
    find_alive[(1,)](low, high, tiles, spans, BLOCK=SCAN, num_warps=4)
    chunk = shape.chunk or 1
    return Side(data, squares, rows.groups, rows.ids, low, high, spans, None, count, padded, tiles,
                triton.cdiv(depth, chunk) * chunk)  # fmt: skip


def by_column(values: Tensor, side: Side) -> Tensor:
    """[rows, n] -> [n, R], zeros in the padding."""
    return torch.nn.functional.pad(values.t(), (0, side.padded - side.rows)).contiguous()


def parts_of(side: Side, other: Side, launch: Launch, programs: int) -> int:
    """Into how many parts of at least two tiles to cut the walk over `other`, for about so many programs."""
    blocks = triton.cdiv(side.rows, launch.shape.rows) * (launch.width // (launch.shape.slice or launch.width))
    return max(1, min(triton.cdiv(programs, blocks), other.tiles // 2))
