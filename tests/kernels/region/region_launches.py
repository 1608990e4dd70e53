"""Launches of users of the region family, each a forward and a backward call; axes are crossed in pairs."""

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
    "x80": ((7, 13), (560, 1040), False),
    "down": ((512, 1024), (128, 256), False),
    "corners": ((129, 257), (513, 1025), True),
}
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp16": torch.float16, "fp64": torch.float64}
SHARED: dict[str, tuple[Any, ...]] = {
    "dtype": tuple(DTYPES),
    "ratio": tuple(SIZES),
    "layout": ("nchw", "nhwc", "strided"),
}
# softmax of labels with a loss of pixels
PIXELS = SHARED | {
    "classes": (19, 2, 24, 64, 150),
    "labels": ("uint8", "int64"),
    "gamma": (0.0, 2.0, 0.7),
    "smoothing": (0.0, 0.1),
    "weighted": (False, True),
}
# "soft": softmax and soft targets; "sigmoid" of labels; "masks": sigmoid and soft targets
ALONE = SHARED | {
    "classes": (19, 2, 48, 150, 847),
    "op": ("labels", "soft", "sigmoid", "masks"),
    "images": (False, True),
}


def calls() -> Iterator[Call]:
    for axes in (PIXELS, ALONE):
        for choice in pairs(axes):
            name = "-".join(key if value is True else str(value) for key, value in choice.items() if value is not False)
            yield Call(name, partial(launch, **choice), may_spill=64 if choice["dtype"] == "fp64" else 0)
    yield Call("mask", partial(launch, "fp32", "x4", "nchw", 1, op="sigmoid"))


def launch(
    dtype: str,
    ratio: str,
    layout: str,
    classes: int,
    labels: str = "int64",
    gamma: float | None = None,
    smoothing: float = 0.0,
    weighted: bool = False,
    op: str = "labels",
    images: bool = False,
) -> None:
    from metricseg_kernels.region import triton as region
    from metricseg_kernels.region.op import Inputs

    acc = torch.float64 if dtype == "fp64" else torch.float32
    cells, size, align_corners = SIZES[ratio]
    input = make_maps((4, classes, *cells), DTYPES[dtype], layout)
    if op in ("soft", "masks"):
        target = make_maps((4, classes, *size), acc)
    else:
        target = torch.empty((4, *size), dtype=getattr(torch, labels), device="meta")
    weight = torch.empty(classes, dtype=acc, device="meta") if weighted else None
    inputs = Inputs(input, target, weight, gamma or 0.0, smoothing, 255, align_corners, op in ("labels", "soft"),
                    gamma is not None)  # fmt: skip
    sets = 4 if images else 1
    sums, loss, totals = (
        torch.empty(shape, dtype=torch.float64, device="meta") for shape in ((sets, classes, 3), (), (sets, 3))
    )
    region.region_fwd_kernel(inputs, sums, loss, totals)
    region.region_bwd_kernel(inputs, sums, loss, torch.empty_like(input))
