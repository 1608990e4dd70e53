"""Calls of the op of the lovasz family: fixed ones, and random ones for `fuzz`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from fuzz import IGNORED, Call, Draw

import metricseg_kernels as mk

R = torch.Generator().manual_seed(0)
LOGITS = torch.randn(2, 4, 5, 7, generator=R)
FINE = torch.randint(0, 4, (2, 10, 14), generator=R)

# (function, keyword arguments that are no tensors, tensor arguments)
OPS: dict[str, Any] = {
    "lovasz": (mk.lovasz_loss, {"bins": 8}, {"input": LOGITS, "target": FINE, "weight": torch.rand(4, generator=R)}),
}


def draw_call(draw: Draw) -> Call:
    ignore_index, classes = draw.one_of(*IGNORED), draw.size(9, 2)
    batch, cells, pixels = draw.size(3, 0), (draw.size(7), draw.size(7)), (draw.size(15), draw.size(40))
    tensors = {"input": draw.values(batch, classes, *cells)}
    if draw.special and cells != pixels:  # F.interpolate makes NaN of an infinity and a weight of 0
        tensors["input"] = tensors["input"].nan_to_num(torch.nan, 1e4, -1e4)
    options = {"ignore_index": ignore_index, "align_corners": draw.one_of(False, True)}
    options |= {"bins": draw.one_of(2, 16, 512), "average": draw.one_of("classes", "present")}
    options |= {"per_image": draw.one_of(False, True)}
    tensors["target"] = draw.labels(classes, ignore_index, batch, *pixels)
    if (weight := draw.factors(classes)) is not None:
        tensors["weight"] = weight
    return Call(mk.lovasz_loss, tensors, options, ("input",))


def large_calls() -> Iterator[tuple[str, Call]]:
    """Several chunks of rows and columns, none full, for `bits`."""
    rng = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        for classes in (19, 150):
            logits = torch.randn(2, classes, 33, 47, generator=rng).to(dtype)
            target = torch.randint(-1, classes, (2, 130, 190), generator=rng) & 255
            call = Call(mk.lovasz_loss, {"input": logits, "target": target}, {"per_image": True}, ("input",))
            yield f"lovasz_loss {classes} {dtype}", call


SIZED: dict[str, Any] = {  # calls on inputs of any size, for tests/kernels/test_dynamic_sizes.py
    "lovasz_loss": lambda x, b: mk.lovasz_loss(x.logits, x.target, backend=b),
}  # fmt: skip
