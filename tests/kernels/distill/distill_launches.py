"""Launches of users of the distill family, each a forward and a backward call; axes are crossed in pairs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from launches import Call, make_maps, pairs

# cells of the own map, label pixels, cells of the other map, align_corners
SIZES = {
    "x4": ((128, 256), (512, 1024), (128, 256), False),
    "other-x8": ((128, 256), (512, 1024), (64, 128), False),
    "other-x1": ((128, 256), (512, 1024), (512, 1024), False),
    "x1": ((512, 512), (512, 512), (128, 128), False),
    "both-x1": ((512, 512), (512, 512), (512, 512), False),
    "x32": ((16, 32), (512, 1024), (128, 256), False),
    "x80": ((7, 13), (560, 1040), (14, 26), False),
    "down": ((512, 1024), (128, 256), (64, 1024), False),
    "corners": ((129, 257), (513, 1025), (65, 129), True),
}
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp16": torch.float16, "fp64": torch.float64}
AXES: dict[str, tuple[Any, ...]] = {
    "dtype": tuple(DTYPES),
    "ratio": tuple(SIZES),
    "layout": ("nchw", "nhwc", "strided"),
    "classes": (19, 2, 12, 32, 48, 150),
    "kind": (0, 1, 2),
    "labels": ("uint8", "int64", None),
    "reduce": (True, False),
}


def calls() -> Iterator[Call]:
    for choice in pairs(AXES):
        name = "-".join(str(value) for value in choice.values())
        yield Call(name, partial(launch, **choice), may_spill=64 if choice["dtype"] == "fp64" else 0)
    # three walks, of which "divergence" holds most
    for dtype in ("bf16", "fp16", "fp32"):
        yield Call(f"{dtype}-js-150", partial(launch, dtype, "other-x8", "nchw", 150, 2, "int64", True))


def launch(dtype: str, ratio: str, layout: str, classes: int, kind: int, labels: str | None, reduce: bool) -> None:
    from metricseg_kernels.distill import triton as distill

    acc = torch.float64 if dtype == "fp64" else torch.float32
    cells, size, others, align_corners = SIZES[ratio]
    input, other = (make_maps((4, classes, *n), DTYPES[dtype], layout) for n in (cells, others))
    target = torch.empty((4, *size), dtype=getattr(torch, labels), device="meta") if labels else None
    loss = torch.empty(() if reduce else (4, *size), dtype=acc, device="meta")
    divisor = loss if reduce else None
    call = (*size, 2.0, kind, 255, align_corners)
    distill.distill_kernel(input, other, target, None, *call, loss, divisor, torch.empty_like(input))
    distill.distill_kernel(input, other, target, None, *call, loss, divisor, None)
    distill.distill_kernel(input, other, target, loss, *call, None, None, torch.empty_like(input))
