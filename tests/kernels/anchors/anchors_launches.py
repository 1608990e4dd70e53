"""Launches of users of the anchors family; axes are crossed in pairs. Channels are a run-time number."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from launches import ARITHMETIC, Call, make_maps, pairs

SIZES = {"even": (4, 64, 128), "odd": (2, 65, 129)}  # [B, h, w]: 16 divides the pixels, or not
JOBS: dict[str, dict[str, tuple[Any, ...]]] = {
    "sample": {
        "labels": ("int64", "int32", "uint8"), "layout": ("nchw", "strided"), "size": tuple(SIZES),
        "predictions": ("int64", "uint8", None), "first": (True, False), "half": (True, False),
    },
    "gather": {
        "dtype": tuple(ARITHMETIC), "layout": ("nchw", "nhwc", "strided"), "size": tuple(SIZES),
        "channels": (256, 64, 19, 720), "normalize": (True, False),
    },
}  # fmt: skip


def calls() -> Iterator[Call]:
    for job, axes in JOBS.items():
        for choice in pairs(axes):
            run = partial({"sample": launch_sample, "gather": launch_gather}[job], **choice)
            yield Call("-".join(map(str, (job, *choice.values()))), run)


def launch_sample(labels: str, layout: str, size: str, predictions: str | None, first: bool, half: bool) -> None:
    from metricseg_kernels.anchors import op
    from metricseg_kernels.anchors.reference import SampleInputs

    maps, seed = make_maps(SIZES[size], getattr(torch, labels), layout), make_maps((), torch.int64)
    predicted = make_maps(SIZES[size], getattr(torch, predictions), layout) if predictions else None
    named = make_maps(SIZES[size], torch.uint8) if first else None
    inputs = SampleInputs(maps, predicted, named, seed, 1024, 100, 100, half, 19, 255, -1)
    op.kernels("triton").sample_anchors_kernel(inputs, op._sample_outputs(maps, 1024))


def launch_gather(dtype: str, layout: str, size: str, channels: int, normalize: bool) -> None:
    from metricseg_kernels.anchors import op

    batch, height, width = SIZES[size]
    x = make_maps((batch, channels, height, width), ARITHMETIC[dtype][0], layout)
    index = make_maps((1024,), torch.int64)
    rows, norms = op._rows(x, index)
    kernels = op.kernels("triton")
    kernels.gather_pixels_fwd_kernel(x, index, normalize, 1e-12, rows, norms)
    kernels.gather_pixels_bwd_kernel(rows, rows, norms, index, index, normalize, 1e-12, x)
