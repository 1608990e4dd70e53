"""Launches of users of the predict family; axes are crossed in pairs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from launches import Call, make_maps, pairs

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
AXES: dict[str, tuple[Any, ...]] = {
    "classes": (19, 2, 150, 847),
    "maps": (1, 6),
    "dtype": tuple(DTYPES),
    "layout": ("nchw", "nhwc", "strided"),
    "ratio": (4, 8, 2, 1),  # label pixels per cell
    "wanted": ("labels", "scores", "confidence", "counts"),
    "align_corners": (False, True),
}


def calls() -> Iterator[Call]:
    for choice in pairs(AXES):
        yield Call("-".join(map(str, choice.values())), partial(launch, **choice))
    most = {"classes": 19, "dtype": "fp32", "layout": "nchw", "ratio": 4, "align_corners": False}
    yield Call("many-maps", partial(launch, maps=12, wanted="scores", **most))


def launch(classes: int, maps: int, dtype: str, layout: str, ratio: int, wanted: str, align_corners: bool) -> None:
    from metricseg_kernels.predict import op

    size = (512, 1024)
    cells = [(size[0] // ratio + 8 * (i // 2), size[1] // ratio + 16 * (i // 2)) for i in range(maps)]
    inputs = op.Inputs(
        [make_maps((2, classes, *each), DTYPES[dtype], layout) for each in cells], [i % 2 == 1 for i in range(maps)],
        [1 / maps] * maps, align_corners,
    )  # fmt: skip
    if wanted == "counts":
        target = torch.empty((2, *size), dtype=torch.uint8 if classes < 255 else torch.int64, device="meta")
        op._confusion(*inputs, target, 255, "triton")
    else:
        labels = torch.uint8 if classes <= 256 else torch.int16
        op._predict(*inputs, list(size), labels, wanted != "labels", wanted == "scores", "triton")
