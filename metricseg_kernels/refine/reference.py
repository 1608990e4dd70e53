"""Specification of the refine family in plain PyTorch: every other backend must agree with it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.checks import accumulator


def neighbors(offsets: Tensor) -> Tensor:
    """[B, 9, 2, H, W]: the offsets of the 3 x 3 neighborhood, row by row; those beyond the border are the border's."""
    height, width = offsets.shape[2:]
    padded = F.pad(offsets, (1, 1, 1, 1), mode="replicate")
    return torch.stack([padded[..., r : r + height, c : c + width] for r in range(3) for c in range(3)], 1)


def displacements(offsets: Tensor, neighbor_logits: Tensor | None) -> tuple[Tensor, Tensor]:
    """(o~ [B, 2, H, W], whether it is finite [B, H, W]); one that is not has no gradient."""
    if neighbor_logits is None:
        finite = offsets.isfinite().all(1)
        return torch.where(finite[:, None], offsets, offsets.detach()), finite
    near = neighbors(offsets)
    weighted = (neighbor_logits.softmax(1)[:, :, None] * near).sum(1).detach()
    finite = weighted.isfinite().all(1)  # [B, H, W]
    weights = torch.where(finite[:, None], neighbor_logits, 0.0).softmax(1)
    near = torch.where(finite[:, None, None], near, 0.0)
    return torch.where(finite[:, None], (weights[:, :, None] * near).sum(1), weighted), finite


def span(position: Tensor, cells: int, align_corners: bool, zeros: bool, axis: int) -> tuple[Tensor, Tensor]:
    """(cells [3, B, H, W], their weights [3, B, H, W]) of positions [B, H, W] along an axis of the labels.

    position = g_0 label(p) + g_1 label(p + 1), and label(p) = (1 - t) cell(p) + t next cell.
    """
    labels = position.shape[axis]
    if not zeros:  # as F.grid_sample: no gradient at the bounds and beyond
        held = position.detach().clamp(0, labels - 1)
        position = torch.where((position > 0) & (position < labels - 1), position, held)
    floor = position.detach().floor().nan_to_num(0.0).clamp(-2, labels)
    part = position - floor
    p = floor.long()
    g = [torch.where((q >= 0) & (q < labels), w, 0.0) for q, w in ((p, 1 - part), (p + 1, part))]
    # exact: label d is at (mul d + add) / den
    mul, add, den = (cells - 1, 0, max(labels - 1, 1)) if align_corners else (2 * cells, cells - labels, 2 * labels)
    at = [(mul * q.clamp(0, labels - 1) + add).clamp(min=0) for q in (p, p + 1)]
    first, second = (n // den for n in at)
    t, u = ((n % den).to(part.dtype) / den for n in at)
    same = first == second
    zero = torch.zeros_like(part)
    weights = torch.stack(
        [
            g[0] * (1 - t) + torch.where(same, g[1] * (1 - u), zero),
            g[0] * t + torch.where(same, g[1] * u, g[1] * (1 - u)),
            torch.where(same, zero, g[1] * u),
        ]
    )
    places = torch.stack([(first + i).clamp(max=cells - 1) for i in range(3)])
    return places, weights


def upsample(
    features: Tensor, offsets: Tensor, neighbor_logits: Tensor | None, align_corners: bool, zeros: bool
) -> Tensor:
    """[B, C, H, W] in the accumulator's dtype."""
    acc = accumulator(features.dtype)
    moved, finite = displacements(offsets.to(acc), None if neighbor_logits is None else neighbor_logits.to(acc))
    height, width = offsets.shape[2:]
    y = torch.arange(height, dtype=acc, device=offsets.device)[:, None] + moved[:, 0]
    x = torch.arange(width, dtype=acc, device=offsets.device) + moved[:, 1]
    unknown = y.isnan() | x.isnan()
    y, x = (torch.where(finite, at, at.detach().nan_to_num(0.0, torch.inf, -torch.inf)) for at in (y, x))
    rows, by_row = span(y, features.shape[2], align_corners, zeros, 1)
    columns, by_column = span(x, features.shape[3], align_corners, zeros, 2)
    flat, out = features.to(acc).flatten(2), torch.zeros((), dtype=acc, device=features.device)
    for r in range(3):
        for c in range(3):
            place = (rows[r] * features.shape[3] + columns[c]).flatten(1)[:, None].expand(-1, features.shape[1], -1)
            cell = flat.gather(2, place).unflatten(2, (height, width))
            weight = (by_row[r] * by_column[c])[:, None]
            # a cell of weight 0 does not count, whatever it holds
            out = out + weight * torch.where((weight == 0) & ~cell.isfinite(), 0.0, cell)
    return torch.where(unknown[:, None], torch.nan, out)
