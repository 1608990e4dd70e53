"""Launches of users of the lovasz family, each a forward and a backward call; axes are crossed in pairs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from launches import Call, make_maps, pairs

# label pixels per cell of an axis: ((h, w), (H, W), align_corners)
SIZES = {
    "x4": ((128, 256), (512, 1024), False),
    "x1": ((512, 512), (512, 512), False),
    "x32": ((16, 32), (512, 1024), False),
    "down": ((512, 1024), (128, 256), False),
    "corners": ((129, 257), (513, 1025), True),
}
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp16": torch.float16, "fp64": torch.float64}
AXES: dict[str, tuple[Any, ...]] = {
    "dtype": tuple(DTYPES),
    "ratio": tuple(SIZES),
    "layout": ("nchw", "nhwc", "strided"),
    "classes": (19, 2, 24, 64, 150, 847),
    "labels": ("uint8", "int64"),
    "images": (False, True),
}


def calls() -> Iterator[Call]:
    for choice in pairs(AXES):
        name = "-".join(key if value is True else str(value) for key, value in choice.items() if value is not False)
        yield Call(name, partial(launch, **choice), may_spill=64 if choice["dtype"] == "fp64" else 0)


def launch(
    dtype: str, ratio: str, layout: str, classes: int, labels: str = "int64", images: bool = False, bins: int = 512
) -> None:
    from metricseg_kernels.lovasz import triton as lovasz
    from metricseg_kernels.lovasz.op import Inputs

    cells, size, align_corners = SIZES[ratio]
    input = make_maps((4, classes, *cells), DTYPES[dtype], layout)
    target = torch.empty((4, *size), dtype=getattr(torch, labels), device="meta")
    inputs = Inputs(input, target, 255, align_corners)
    sets = 4 if images else 1
    counts, sums, totals = (
        torch.empty(shape, dtype=torch.float64, device="meta")
        for shape in (*2 * ((sets, classes, 2, bins),), (sets, 4))
    )
    lovasz.lovasz_fwd_kernel(inputs, counts, sums, totals)
    table = sums.to(torch.float64 if dtype == "fp64" else torch.float32)
    lovasz.lovasz_bwd_kernel(inputs, table, torch.empty_like(input))
