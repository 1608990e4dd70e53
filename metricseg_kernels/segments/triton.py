"""Launchers of the Triton kernels of the segments family: see triton_kernels.py.

Products are in exact fp32 (fp64 for fp64), whatever the precision that PyTorch is set to: pixels lie between centers,
and tf32 or bf16 would change clusters.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..core.checks import accumulator
from ..core.triton import FUSED, TYPES, constant, on_device_of
from ..engines.pixel_rows.triton import Rows, View, make_view, widen
from . import reference
from .op import KmeansInputs
from .triton_kernels import assign, center, mark, number, pack, point_sums, spread, start

KEYS = 1024  # of a program
PROGRAMS = 512  # that sums are cut into, each with sums of its own to write
PARTS = 64  # at most, of one image or of all


class Shape(NamedTuple):
    """BN pixels x BC channels x at most BK clusters of a program."""

    pixels: int
    channels: int
    clusters: int
    warps: int
    stages: int


# By calculation, not by measurement: a thread keeps BN BK / (32 warps) products of `assign`, BC BK / (32 warps) sums.
# An interpolated value has four addresses in registers, so tiles are smaller.
SHAPES: dict[tuple[torch.dtype, str], Shape] = {
    (torch.float32, "start"): Shape(128, 16, 16, 4, 2),
    (torch.float64, "start"): Shape(64, 16, 16, 4, 2),
    (torch.float32, "start resized"): Shape(64, 16, 16, 8, 2),
    (torch.float64, "start resized"): Shape(64, 16, 16, 8, 2),
    (torch.float32, "assign"): Shape(128, 16, 64, 8, 3),
    (torch.float64, "assign"): Shape(64, 16, 32, 4, 2),
    (torch.float32, "assign resized"): Shape(64, 16, 64, 8, 2),
    (torch.float64, "assign resized"): Shape(64, 16, 32, 8, 2),
    (torch.float32, "sums"): Shape(16, 64, 64, 8, 2),
    (torch.float64, "sums"): Shape(16, 32, 32, 4, 2),
    (torch.float32, "center"): Shape(16, 64, 16, 4, 2),
    (torch.float64, "center"): Shape(16, 64, 16, 4, 2),
    (torch.float32, "spread"): Shape(128, 16, 16, 4, 2),
    (torch.float64, "spread"): Shape(64, 16, 16, 4, 2),
}


class Points(NamedTuple):
    """x [B, D, h, w] at (H, W). Without an interpolation only the view counts."""

    map: View
    y: int | None
    x: int | None
    h: int | None
    w: int | None
    H: int | None
    W: int | None
    corners: Any
    resized: Any  # compile-time; last, see View


class Location(NamedTuple):
    map: View
    H: int | None
    W: int | None
    kind: Any  # compile-time: "grid", "given" or "none"; last, see View


class Tile(NamedTuple):
    """The compile-time side of a launch."""

    BN: Any
    BC: Any
    BK: Any
    ACC: Any


class Launch(NamedTuple):
    shape: Shape
    tile: Tile

    @property
    def options(self) -> dict[str, Any]:
        # left to itself, ptxas spills for more programs on a multiprocessor
        return {"num_warps": self.shape.warps, "num_stages": self.shape.stages, "maxnreg": 255} | FUSED


def make_launch(dtype: torch.dtype, job: str, channels: int, clusters: int) -> Launch:
    """Launch for an accumulator dtype; blocks are no wider than needed."""
    shape = SHAPES[dtype, job]
    widths = (shape.channels, channels), (shape.clusters, clusters)
    c, k = (min(most, max(triton.next_power_of_2(n), 16)) for most, n in widths)
    return Launch(shape, Tile(*map(constant, (shape.pixels, c, k, TYPES[dtype]))))


def make_points(x: Tensor, size: tuple[int, int], align_corners: bool = False) -> Points:
    if size == tuple(x.shape[2:]):
        return Points(make_view(x), None, None, None, None, None, None, tl.constexpr(False), tl.constexpr(False))
    (height, width), (y, x_step) = x.shape[2:], x.stride()[2:]
    corners = tl.constexpr(align_corners)
    return Points(make_view(x), y, x_step, height, width, size[0], size[1], corners, tl.constexpr(True))


def make_location(location: Tensor | None, coordinated: bool, size: tuple[int, int]) -> Location:
    if coordinated:
        return Location(make_view(None), *size, tl.constexpr("grid"))
    kind = "none" if location is None else "given"
    return Location(make_view(location), None, None, tl.constexpr(kind))


def spherical_kmeans_kernel(inputs: KmeansInputs, ids: Tensor) -> None:
    """See op.py."""
    if ids.numel() == 0:
        return
    embeddings, location, valid, init, rows, columns, iterations, coordinated, align_corners = inputs
    batch, channels, height, width = embeddings.shape[0], embeddings.shape[1], *ids.shape[1:]
    pixels, clusters, acc = height * width, rows * columns, accumulator(embeddings.dtype)
    points = make_points(embeddings, (height, width), align_corners)
    where = make_location(location, coordinated, (height, width))
    located = coordinated or location is not None
    kind = " resized" if points.resized.value else ""
    inverse, weight = (embeddings.new_empty((batch, pixels), dtype=acc) for _ in range(2))
    with on_device_of(embeddings):
        launch = make_launch(acc, "start" + kind, channels, clusters)
        tiles = triton.cdiv(pixels, launch.shape.pixels)
        start[(batch * tiles,)](
            points, where, make_view(None if valid is None else valid.view(torch.uint8)), make_view(init),
            inverse, weight, ids, channels, width, pixels, clusters, triton.cdiv(height, rows),
            triton.cdiv(width, columns), columns, tiles, launch.tile, **launch.options,
        )  # fmt: skip
        if iterations == 0:
            return
        sums = Sums(points, where, inverse, weight, batch, channels, clusters, pixels, acc, groups=batch)
        shares, moments = sums.buffers(embeddings, 3)
        # m, then its two columns of the location
        centers = embeddings.new_empty((batch, clusters, channels + 2), dtype=acc)
        mass = embeddings.new_empty((batch, clusters), dtype=acc)
        table = Rows(centers, centers.stride(0), centers.stride(1), 1, clusters, channels)
        one = make_launch(acc, "center", channels, clusters)
        launch = make_launch(acc, "assign" + kind, channels, clusters)
        tiles = triton.cdiv(pixels, launch.shape.pixels)
        for _ in range(iterations):
            sums.launch(ids, shares, moments)
            center[(batch * clusters,)](
                shares, moments, centers, mass, channels, clusters, sums.parts, one.tile, LOCATED=located,
                **one.options,
            )  # fmt: skip
            assign[(batch * tiles,)](
                points, where, table, mass, inverse, ids, pixels, tiles, launch.tile, **launch.options
            )


class Sums:
    """Sums of pixels by label, of each group of images, cut into parts whose order of addition is fixed."""

    def __init__(
        self,
        points: Points,
        location: Location,
        inverse: Tensor | None,
        weight: Tensor | None,
        batch: int,
        channels: int,
        labels: int,
        pixels: int,
        acc: torch.dtype,
        groups: int,
    ) -> None:
        self.inputs = points, location, inverse, weight
        self.groups, self.sizes = groups, (channels, labels, pixels)
        self.config = make_launch(acc, "sums", channels, labels)
        self.tiles = triton.cdiv(pixels, self.config.shape.pixels)
        self.group_tiles = batch // groups * self.tiles
        self.chunks = max(triton.cdiv(channels, self.config.tile.BC.value), 1)
        self.blocks = triton.cdiv(labels, self.config.tile.BK.value)
        others = self.chunks * self.blocks * groups
        self.parts = max(min(triton.cdiv(PROGRAMS, others), self.group_tiles, PARTS), 1)

    def buffers(self, x: Tensor, moments: int) -> tuple[Tensor, Tensor]:
        """Sums [groups, parts, labels, C], and moments [groups, parts, 1 or 3, labels]."""
        channels, labels, _ = self.sizes
        acc = accumulator(x.dtype)
        shape = (self.groups, self.parts)
        return x.new_empty((*shape, labels, channels), dtype=acc), x.new_empty((*shape, moments, labels), dtype=acc)

    def launch(self, labels: Tensor | None, sums: Tensor, moments: Tensor) -> None:
        point_sums[(self.groups * self.parts * self.blocks * self.chunks,)](
            *self.inputs, make_view(labels), sums, moments, *self.sizes, self.tiles, self.group_tiles, self.parts,
            self.chunks, self.blocks, self.config.tile, STAGES=self.config.shape.stages, **self.config.options,
        )  # fmt: skip


def segment_sums_fwd_kernel(x: Tensor, ids: Tensor, sums: Tensor, mass: Tensor) -> None:
    """See op.py."""
    if ids.numel() == 0:
        sums.zero_()
        mass.zero_()
        return
    batch, channels, height, width = x.shape
    points, nowhere = make_points(x, (height, width)), make_location(None, False, (height, width))
    job = Sums(points, nowhere, None, None, batch, channels, sums.shape[0], height * width, sums.dtype, groups=1)
    with on_device_of(x):
        shares, masses = (sums, mass) if job.parts == 1 else job.buffers(x, 1)
        job.launch(widen(ids), shares, masses)
        if job.parts > 1:
            torch.sum(shares[0], 0, out=sums)
            torch.sum(masses[0, :, 0], 0, out=mass)


def segment_sums_bwd_kernel(grad_sums: Tensor, ids: Tensor, grad: Tensor) -> None:
    """See op.py."""
    if grad.numel() == 0:
        return
    batch, channels, height, width = grad.shape
    launch = make_launch(grad_sums.dtype, "spread", channels, 1)
    tiles = triton.cdiv(height * width, launch.shape.pixels)
    chunks = triton.cdiv(channels, launch.tile.BC.value)
    with on_device_of(grad):
        spread[(batch * tiles * chunks,)](
            grad_sums, *grad_sums.stride(), make_view(ids), make_view(grad), channels, grad_sums.shape[0],
            height * width, tiles, chunks, launch.tile, **launch.options,
        )  # fmt: skip


def split_by_label_kernel(
    ids: Tensor,
    labels: Tensor,
    num_classes: int,
    ignore_index: int,
    dense: Tensor,
    found: Tensor,
    count: Tensor,
) -> None:
    """See op.py. A sort of one key for each pixel; of int64 ids, whose range is not known, their ranks in another."""
    batch, pixels = ids.shape[0], ids.shape[1] * ids.shape[2]
    total = batch * pixels
    if batch >= 2**16 or total >= 2**31:  # beyond the key
        for to, of in zip(
            (dense, found, count), reference.split(ids, labels, len(found), num_classes, ignore_index), strict=True
        ):
            to.copy_(of)
        return
    found.fill_(reference.NO_ID)
    if total == 0:
        count.zero_()
        return
    if ids.dtype == torch.int64:
        values, order = ids.reshape(-1).sort()
        rank = torch.zeros_like(values)
        torch.cumsum(values[1:] != values[:-1], 0, out=rank[1:])
        rank = rank.masked_fill(values < 0, reference.NO_ID)
        ids = torch.empty_like(rank).scatter_(0, order, rank).view(ids.shape)
    keys, tiles = ids.new_empty(total, dtype=torch.int64), triton.cdiv(pixels, KEYS)
    with on_device_of(ids):
        pack[(batch * tiles,)](
            make_view(ids), make_view(labels), ignore_index, num_classes, keys, pixels, tiles, BN=KEYS
        )
        keys, order = keys.sort(stable=True)
        first = keys.new_empty(total, dtype=torch.int32)
        mark[(triton.cdiv(total, KEYS),)](keys, first, total, BN=KEYS)
        numbers = first.cumsum(0)
        number[(triton.cdiv(total, KEYS),)](keys, order, first, numbers, dense, found, total, len(found), BN=KEYS)
        count.copy_(numbers[-1])
