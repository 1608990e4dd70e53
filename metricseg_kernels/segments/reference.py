"""Specification of the segments family in plain PyTorch: every other backend must agree with it.

Every shape is known beforehand (no nonzero, unique, boolean index, item), so on CUDA it runs without a host sync.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.checks import accumulator
from ..core.labels import is_class
from ..core.product import product
from ..core.unit import unit

NO_ID = -1  # of a pixel that is in no cluster and in no segment


def grid_ids(size: tuple[int, int], grid: tuple[int, int], device: torch.device) -> Tensor:
    """[H, W] int64: number of each pixel's block, of ceil(H / rows) x ceil(W / columns) pixels, row by row."""
    at = [torch.arange(n, device=device) // max(-(-n // blocks), 1) for n, blocks in zip(size, grid, strict=True)]
    return at[0][:, None] * grid[1] + at[1]


def coordinates(size: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """[1, 2, H, W]: (y, x) of each pixel, from 0 to 1."""
    y, x = (torch.arange(n, dtype=dtype, device=device) / max(n - 1, 1) for n in size)
    return torch.stack([y[:, None].expand(size), x.expand(size)])[None]


def directions(
    embeddings: Tensor, location: Tensor | None, size: tuple[int, int], align_corners: bool
) -> tuple[Tensor, Tensor]:
    """(q [B, J, H, W], known [B, H, W]): q = unit([unit(x); y; x]), zeros where a NaN or an overflow hides it."""
    x = embeddings.to(accumulator(embeddings.dtype))
    if size != x.shape[2:]:
        resized = F.interpolate(x, size, mode="bilinear", align_corners=align_corners) if x.numel() else None
        x = x.new_zeros(*x.shape[:2], *size) if resized is None else resized
    q, squares = unit(x, 1), x.square().sum(1)
    if location is not None:
        location = location.to(x.dtype).expand(x.shape[0], -1, -1, -1)
        squares = squares + location.square().sum(1)
        q = unit(torch.cat([q, location], 1), 1)
    known = squares.isfinite()
    return torch.where(known[:, None], q, 0.0), known


def kmeans(
    embeddings: Tensor,
    location: Tensor | None,
    valid: Tensor | None,
    init: Tensor | None,
    size: tuple[int, int],
    grid: tuple[int, int],
    iterations: int,
    coordinated: bool,
    align_corners: bool,
) -> Tensor:
    """ids [B, H, W] int64 of rows x columns clusters. `init` replaces the blocks; `coordinated` gives the location."""
    size = (int(size[0]), int(size[1]))
    if coordinated:
        location = coordinates(size, accumulator(embeddings.dtype), embeddings.device)
    q, known = directions(embeddings.detach(), location, size, align_corners)
    q = q.flatten(2)  # [B, J, N]
    known = (known if valid is None else known & valid).flatten(1)  # [B, N]
    clusters = torch.arange(grid[0] * grid[1], device=q.device)[:, None]
    if init is None:
        ids = grid_ids(size, grid, q.device).reshape(-1)
    else:
        ids = init.flatten(1).long()
        ids = torch.where((ids >= 0) & (ids < len(clusters)), ids, NO_ID)
    ids = torch.where(known, ids, NO_ID)
    for _ in range(iterations):
        member = ids[:, None] == clusters  # [B, K, N]
        centers = unit(product(member.to(q.dtype), q.mT), 2)  # [B, K, J]
        live = member.any(2) if q.shape[2] else member.new_zeros(member.shape[:2])
        scores = product(centers, q).masked_fill(~live[..., None], -torch.inf)
        ids = torch.where(known & live.any(1, keepdim=True), scores.argmax(1), NO_ID)
    return ids.unflatten(1, size)


def split(
    ids: Tensor, labels: Tensor, capacity: int, num_classes: int, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(ids [B, h, w], labels [capacity], count []): segments numbered by (image, id, label)."""
    batch, pixels = ids.shape[0], ids.shape[1] * ids.shape[2]
    known = (is_class(labels, num_classes, ignore_index) & (ids >= 0)).reshape(-1)
    image = torch.arange(batch, device=ids.device)[:, None].expand(batch, pixels).reshape(-1)
    keys = [torch.where(known, image, batch), ids.reshape(-1).long(), labels.reshape(-1).long()]  # of [B h w] pixels
    order = keys[2].argsort(stable=True)
    for key in (keys[1], keys[0]):
        order = order[key[order].argsort(stable=True)]
    keys, known = [key[order] for key in keys], known[order]
    differs = torch.zeros_like(known)
    for key in keys:
        differs = differs | F.pad(key[1:] != key[:-1], (1, 0), value=True)[: len(key)]
    first = known & differs
    number = first.cumsum(0) - 1
    place = torch.where(known & (number < capacity), number, capacity)
    dense = torch.full_like(number, NO_ID).scatter_(0, order, torch.where(place < capacity, place, NO_ID))
    found = number.new_full((capacity + 1,), NO_ID).scatter_(0, place, keys[2])[:-1]
    return dense.view(ids.shape), found, first.sum()


def segment_sums(x: Tensor, ids: Tensor, num_segments: int) -> tuple[Tensor, Tensor]:
    """(sum of the pixels of each segment [S, D], their number [S]) of x [B, D, h, w], ids [B, h, w]."""
    acc = accumulator(x.dtype)
    rows = x.to(acc).movedim(1, 3).flatten(0, 2)  # [B h w, D]
    at = ids.reshape(-1).long()
    at = torch.where((at >= 0) & (at < num_segments), at, num_segments)  # the others form a segment of their own
    sums = rows.new_zeros(num_segments + 1, rows.shape[1]).index_add(0, at, rows)
    mass = rows.new_zeros(num_segments + 1).index_add(0, at, torch.ones_like(at, dtype=acc))
    return sums[:-1], mass[:-1]
