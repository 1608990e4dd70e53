"""The maps that the refine family is held against, and refined upsampling written with F.interpolate and F.grid_sample."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from tolerances import lay_out
from torch import Tensor


class Case(NamedTuple):
    id: str
    shape: tuple[int, int, int, int]  # [B, C, h, w]
    size: tuple[int, int]
    neighbors: bool = True
    align_corners: bool = False
    padding: str = "border"
    reach: float = 2.0  # of offsets, in pixels; off the grid, where gradients are one-sided
    layout: str = "plain"  # of features: plain, nhwc, strided, expanded
    mixed: bool = False  # offsets in float32 beside half-precision features


CASES = [
    Case("twice", (2, 16, 8, 12), (16, 24)),
    Case("primes", (2, 13, 7, 11), (19, 23)),
    Case("flow", (2, 13, 7, 11), (19, 23), neighbors=False),
    Case("corners", (2, 5, 7, 11), (19, 23), align_corners=True),
    Case("zeros", (2, 5, 7, 11), (19, 23), padding="zeros", reach=8.0),
    Case("zeros-corners-flow", (2, 5, 7, 11), (19, 23), False, True, "zeros", reach=8.0),
    Case("far", (2, 5, 7, 11), (19, 23), reach=3000.0),
    Case("far-zeros", (2, 5, 7, 11), (19, 23), padding="zeros", reach=300.0),
    Case("identity", (2, 6, 13, 17), (13, 17)),
    Case("identity-corners", (2, 6, 13, 17), (13, 17), align_corners=True),
    Case("hardly-larger", (1, 6, 13, 17), (14, 18), align_corners=True, neighbors=False),
    Case("channels-last", (2, 35, 7, 9), (20, 33), layout="nhwc"),
    Case("strided", (2, 9, 7, 9), (20, 33), layout="strided"),
    Case("expanded", (3, 9, 7, 9), (20, 33), layout="expanded"),
    Case("many-channels", (1, 150, 5, 6), (17, 50)),
    Case("one-channel", (2, 1, 6, 5), (12, 40)),
    Case("one-cell", (2, 7, 1, 1), (9, 5)),
    Case("one-cell-corners", (2, 7, 1, 1), (9, 5), align_corners=True),
    Case("one-pixel", (2, 7, 1, 1), (1, 1)),
    Case("one-row", (2, 7, 1, 9), (1, 70)),
    Case("one-column", (2, 7, 9, 1), (70, 1), padding="zeros"),
    Case("mixed", (2, 9, 6, 7), (12, 31), mixed=True),
    Case("empty-batch", (0, 7, 3, 4), (6, 8)),
    Case("no-channels", (2, 0, 3, 4), (6, 8)),
]
NAMED = {c.id: c for c in CASES}
# Triton kernels in their interpreter: cases, and the tests that take them or others as small
INTERPRETED = ("one-row", "one-cell-corners", "no-channels")
INTERPRETED_TESTS = {"test_output_and_gradients", "test_margins_and_poison"}
# Triton kernels compiled: cases in dtypes other than fp32
IN_EVERY_DTYPE = {"primes", "channels-last", "zeros-corners-flow", "mixed"}


def make(case: Case, dtype: torch.dtype = torch.float64, device: str = "cpu") -> dict[str, Any]:
    """The arguments of `refine_upsample`; the same numbers for every dtype up to rounding."""
    rng = torch.Generator().manual_seed(sum(map(ord, case.id)))
    x = torch.randn(case.shape, generator=rng, dtype=torch.float64).to(dtype)
    x = x[:1].expand(case.shape) if case.layout == "expanded" else lay_out(x, case.layout)
    kind = torch.float32 if case.mixed and dtype != torch.float64 else dtype
    maps = (case.shape[0], *case.size)
    offsets = case.reach * torch.randn(maps[0], 2, *maps[1:], generator=rng, dtype=torch.float64)
    found: dict[str, Any] = {"features": x.to(device), "offsets": offsets.to(kind).to(device)}
    if case.neighbors:
        logits = 2 * torch.randn(maps[0], 9, *maps[1:], generator=rng, dtype=torch.float64)
        found["neighbor_logits"] = logits.to(kind).to(device)
    return {**found, "align_corners": case.align_corners, "padding": case.padding}


def materialized(features: Tensor, offsets: Tensor, neighbor_logits: Tensor | None = None, **options: Any) -> Tensor:
    """Refined upsampling as users write it: the upsampled map, unfolded offsets and a grid, each in memory."""
    from benchmarks.harness import peers  # which are not beside an installed wheel

    return peers.refined(features, offsets, neighbor_logits, **options)
