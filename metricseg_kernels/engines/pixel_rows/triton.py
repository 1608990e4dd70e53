"""Maps, rows and tiles of the Triton products with pixels: host code that launchers share."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...core.checks import accumulator
from ...core.triton import FUSED, TYPES, asynchronous, constant


class Shape(NamedTuple):
    """A row of the launch table: for at most `classes` in a block, BN pixels x BC channels.

    Chosen by calculation, not by measurement. P keeps BN classes / (32 warps) sums and BC BN / (32 warps) squares a
    thread, S and T BC (classes + BN) / (32 warps) sums. Shared memory holds `stages` - 1 tiles of the inputs, and A and
    W of S and T. With few classes several programs fit on a multiprocessor and hide the latency of loads. Many classes
    need wide tiles, as W in P and the sources of A in S and T are read again for each tile.
    """

    classes: int
    pixels: int
    channels: int
    warps: int
    stages: int
    programs: int = 256  # that S and T are cut into, each with sums of its own to write
    registers: int | None = None  # a thread at most, if ptxas would else spill for more programs, or choose fewer


# (kind of product, which). "sync" stands for targets before sm_90, whose tensor cores take operands from registers;
# "scattered" for maps that `is_scattered` names; "soft" for the gradient of an assignment, and "more" for another
# epilogue of P that keeps more in registers, and for an A that differs between S and T, or whose making keeps more
# there. Rows are chosen for no spills in the forms of centers.
SHAPES: dict[tuple[str, str], tuple[Shape, ...]] = {
    ("half", "P"): (Shape(32, 128, 32, 4, 4), Shape(160, 128, 32, 8, 4, registers=128)),
    ("half", "P more"): (Shape(32, 128, 32, 4, 4), Shape(160, 128, 32, 8, 4)),
    ("half", "P soft"): (Shape(32, 64, 32, 4, 4), Shape(160, 64, 32, 8, 4)),
    ("half sync", "P"): (Shape(32, 128, 32, 4, 4), Shape(160, 128, 32, 8, 4)),
    ("half sync", "P soft"): (Shape(32, 64, 32, 4, 4), Shape(160, 64, 32, 8, 4), Shape(96, 64, 32, 8, 4)),
    ("half", "ST"): (Shape(32, 64, 64, 4, 3, programs=1024), Shape(160, 64, 128, 8, 3, programs=128)),
    ("half", "ST more"): (Shape(32, 64, 64, 4, 3, programs=1024), Shape(160, 32, 128, 8, 3)),
    ("half sync", "ST"): (Shape(32, 64, 64, 4, 3, programs=1024, registers=255), Shape(160, 16, 128, 8, 3)),
    ("half sync", "ST more"): (Shape(32, 32, 64, 4, 3, programs=1024), Shape(64, 32, 64, 8, 3)),
    ("half", "T"): (Shape(64, 64, 128, 8, 3),),
    ("half sync", "T"): (Shape(32, 64, 128, 8, 3),),
    ("half scattered", "P"): (Shape(32, 64, 32, 4, 3), Shape(160, 64, 16, 8, 3)),
    ("half scattered", "ST"): (Shape(32, 16, 64, 4, 2, programs=1024, registers=255), Shape(80, 32, 64, 8, 2)),
    ("half scattered", "T"): (Shape(32, 64, 64, 8, 2),),
    ("tf32", "P"): (Shape(32, 128, 16, 4, 4), Shape(160, 128, 16, 8, 4)),
    ("tf32", "P soft"): (Shape(32, 128, 16, 4, 4), Shape(160, 64, 16, 8, 4)),
    ("tf32", "ST"): (Shape(32, 32, 64, 4, 3, programs=1024), Shape(160, 32, 128, 8, 3, programs=128)),
    ("tf32", "ST more"): (Shape(32, 32, 64, 4, 3, programs=1024), Shape(160, 16, 128, 8, 3)),
    ("tf32 sync", "ST"): (Shape(32, 32, 64, 4, 3, programs=1024, registers=255), Shape(64, 32, 64, 8, 3)),
    ("tf32 scattered", "P"): (Shape(32, 64, 16, 4, 3), Shape(160, 64, 16, 8, 3)),
    ("tf32 scattered", "ST"): (
        Shape(32, 16, 64, 4, 2, programs=1024, registers=255),
        Shape(80, 32, 64, 8, 2, registers=255),
    ),
    ("tf32 scattered", "T"): (Shape(32, 64, 64, 8, 2),),
    ("tf32", "T"): (Shape(64, 64, 128, 8, 3),),
    ("ieee", "P"): (Shape(64, 128, 16, 8, 3),),
    ("ieee", "ST"): (Shape(32, 16, 64, 4, 3, programs=1024), Shape(64, 16, 64, 8, 2)),
    ("ieee", "ST more"): (Shape(32, 16, 64, 8, 3, programs=512),),
    ("ieee", "T"): (Shape(16, 64, 64, 8, 3),),
    ("double", "P"): (Shape(32, 64, 16, 4, 2),),
    ("double", "ST"): (Shape(32, 16, 32, 4, 2, programs=1024),),
    ("double", "T"): (Shape(16, 32, 32, 4, 2),),
}


class View(NamedTuple):
    """Maps [B, C, h, w] or [B, h, w] as the kernels take them: with strides, of which y is None if rows join.

    Kernels test `view.data is None` for absent maps: Triton 3.6 can't compare a NamedTuple with None. It also
    loses the constants in a NamedTuple within another after the first loop, unless the last field of the outer one is
    compile-time.
    """

    data: Tensor | None
    b: int | None
    c: int | None
    y: int | None
    x: int | None
    width: int | None
    channels_last: Any  # compile-time


class Rows(NamedTuple):
    """[1 or B, K, C] with strides b, k, c; b is 0 for rows that all images share."""

    data: Tensor | None
    b: int
    k: int | None
    c: int | None
    K: int
    C: int


class Tile(NamedTuple):
    """The compile-time side of a launch."""

    BN: Any
    BC: Any
    KS: Any  # widths of a program's blocks of K
    BK: Any  # their sum
    PRECISION: Any
    DTYPE: Any  # of the products' operands
    ACC: Any


class Launch(NamedTuple):
    tile: Tile
    shape: Shape
    blocks: int  # of K

    @property
    def options(self) -> dict[str, Any]:
        shape = self.shape
        return {"num_warps": shape.warps, "num_stages": shape.stages, "maxnreg": shape.registers} | FUSED

    def tiles(self, pixels: int) -> int:
        """Tiles of an image."""
        return triton.cdiv(pixels, self.shape.pixels)

    def chunks(self, channels: int) -> int:
        """Blocks of channels. At least one, whose programs do the work that is left without channels."""
        return max(triton.cdiv(channels, self.shape.channels), 1)

    def parts(self, groups: int, group_tiles: int, channels: int) -> int:
        """Number of parts that the walk over the pixels of a group is cut into."""
        others = max(self.chunks(channels) * groups * self.blocks, 1)
        return max(min(triton.cdiv(self.shape.programs, others), group_tiles), 1)


def widen(maps: Tensor | None) -> Tensor | None:
    """8-bit labels as int32: Triton takes the layout of an operand from its narrowest load, and refuses it for fp64."""
    return maps.int() if maps is not None and maps.dtype == torch.uint8 else maps


def make_view(maps: Tensor | None) -> View:
    if maps is None:
        return View(None, None, None, None, None, None, tl.constexpr(False))
    height, width = maps.shape[-2:]
    b, c, y, x = maps.stride() if maps.ndim == 4 else (maps.stride(0), 0, *maps.stride()[1:])
    joins = height == 1 or width == 1 or y == width * x
    if joins:
        return View(maps, b, c, None, y if width == 1 else x, None, tl.constexpr(c == 1))
    return View(maps, b, c, y, x, width, tl.constexpr(c == 1))


def class_widths(classes: int, widest: int) -> tuple[int, ...]:
    """Powers of two from the widest to 16, falling, that sum to the next multiple of 16: 150 -> 128, 32."""
    rest = triton.cdiv(classes, 16) * 16
    widths = (widest,) * (rest // widest)
    return widths + tuple(1 << i for i in reversed(range(4, 10)) if rest % widest & 1 << i)


def kind_of(dtype: torch.dtype) -> str:
    """Kind of products of maps of this dtype. fp16 runs as tf32, which has its mantissa: no scale of a loss, no norm
    and no center can leave the range."""
    if dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest":
        return "ieee"
    return {torch.float64: "double", torch.bfloat16: "half"}.get(dtype, "tf32")


def is_scattered(maps: Tensor) -> bool:
    """Whether loads are narrow: rows do not join, or 16 does not divide the pixels or the stride of what is not
    contiguous. Then each element has an address of its own in registers, so tiles are smaller."""
    view, (height, width) = make_view(maps), maps.shape[2:]
    assert view.c is not None and view.x is not None
    wide = (view.x == 1 and view.c % 16 == 0) or (view.c == 1 and view.x % 16 == 0)
    return view.y is not None or height * width % 16 != 0 or not wide


def make_launch(features: Tensor, product: str, classes: int) -> Launch:
    """Launch of products of these maps with `classes` rows; `product` is a key of `SHAPES`."""
    dtype = features.dtype
    kind = kind_of(dtype)
    kinds = (f"{kind} scattered",) * is_scattered(features) + (f"{kind} sync",) * (not asynchronous()) + (kind,)
    shapes = next(SHAPES[k, p] for k in kinds for p in (product, product.split()[0]) if (k, p) in SHAPES)
    shape = next((s for s in shapes if classes <= s.classes), shapes[-1])
    blocks = triton.cdiv(classes, shape.classes)
    widths = class_widths(triton.cdiv(classes, blocks), 64 if product.startswith("P") else 128)
    operand = torch.float32 if kind == "tf32" else dtype
    constants = (shape.pixels, shape.channels, widths, sum(widths), "tf32" if kind == "tf32" else "ieee",
                 TYPES[operand], TYPES[accumulator(dtype)])  # fmt: skip
    return Launch(Tile(*map(constant, constants)), shape, blocks)


def make_rows(rows: Tensor, dtype: torch.dtype, kept: bool = False) -> Rows:
    """Rows [1 or B, K, C] in the accumulator dtype as operands of products with maps of this dtype.

    kept: for a T that keeps its rows in shared memory. There the tensor cores take tf32 only if the dimension of the
    sum, K, is contiguous; else it goes through registers, of which the sums of 150 classes leave too few.
    """
    kind = kind_of(dtype)
    groups, classes, channels = rows.shape
    if kind == "tf32":
        bits = rows.contiguous().view(torch.int32)
        nearest = (bits + 0x0FFF + ((bits >> 13) & 1)) & -8192  # what the tensor cores would otherwise cut off
        rows = torch.where(rows.isfinite(), nearest.view(torch.float32), rows)
    data = rows.to(torch.bfloat16 if kind == "half" else rows.dtype)
    data = data.mT.contiguous().mT if kept and kind == "tf32" else data.contiguous()
    b, k, c = data.stride()
    return Rows(data, b if groups > 1 else 0, k, c, classes, channels)
