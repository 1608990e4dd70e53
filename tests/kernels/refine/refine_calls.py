"""Calls of every op of the refine family: fixed ones, and random ones for `fuzz`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from fuzz import Call, Draw
from refine_cases import NAMED, make

import metricseg_kernels as mk

R = torch.Generator().manual_seed(0)
LEARNS = ("features", "offsets", "neighbor_logits")

# (function, keyword arguments that are no tensors, tensor arguments)
OPS: dict[str, Any] = {
    "refine": (mk.refine_upsample, {}, {
        "features": torch.randn(2, 5, 4, 6, generator=R), "offsets": torch.randn(2, 2, 9, 13, generator=R),
        "neighbor_logits": torch.randn(2, 9, 9, 13, generator=R)}),
    "refine-flow": (mk.refine_upsample, {"align_corners": True, "padding": "zeros"}, {
        "features": torch.randn(2, 5, 4, 6, generator=R), "offsets": 4 * torch.randn(2, 2, 9, 13, generator=R)}),
}  # fmt: skip


def draw_call(draw: Draw) -> Call:
    cells = draw.size(9), draw.size(9)
    size = tuple(n + draw.size(30, 0) for n in cells)
    batch = draw.size(2, 0)
    kind = draw.one_of(draw.dtype, torch.float32) if draw.dtype != torch.float64 else draw.dtype
    tensors = {
        "features": draw.values(batch, draw.size(80, 0), *cells),
        "offsets": draw.values(batch, 2, *size, dtype=kind),
    }
    if draw.one_of(False, True):
        tensors["neighbor_logits"] = draw.values(batch, 9, *size, dtype=kind)
    options = {"align_corners": draw.one_of(False, True), "padding": draw.one_of("border", "zeros")}
    return Call(mk.refine_upsample, tensors, options, tuple(name for name in LEARNS if name in tensors))


def large_calls() -> Iterator[tuple[str, Call]]:
    """Several tiles of pixels and blocks of channels, none full, for `bits`."""
    for dtype in (torch.float32, torch.bfloat16):
        for name in ("primes", "many-channels", "zeros-corners-flow"):
            tensors = make(NAMED[name], dtype)
            options = {key: tensors.pop(key) for key in ("align_corners", "padding")}
            yield f"refine {name} {dtype}", Call(mk.refine_upsample, tensors, options, tuple(tensors))


SIZED: dict[str, Any] = {  # calls on inputs of any size, for tests/kernels/test_dynamic_sizes.py
    "refine_upsample": lambda x, b: mk.refine_upsample(x.features, x.features[:, :2], backend=b),
}  # fmt: skip
