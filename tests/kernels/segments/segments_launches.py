"""Launches of users of the segments family; axes are crossed in pairs. Channels are a run-time number: calls take turns.

Products are exact in every dtype.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from launches import ARITHMETIC, Call, make_maps, pairs

MAY_SPILL = ARITHMETIC["fp32"][3]
LAYOUTS = ("nchw", "nhwc", "strided")
SIZES = {"even": (4, 64, 128), "odd": (2, 65, 129)}  # [B, h, w]: 16 divides the pixels, or not
COMMON = {"dtype": tuple(ARITHMETIC), "layout": LAYOUTS, "size": tuple(SIZES)}
JOBS: dict[str, dict[str, tuple[Any, ...]]] = {
    "kmeans": COMMON | {
        "clusters": (25, 64, 150, 256), "location": ("grid", "given", "none"), "resized": (False, "half", "corners"),
        "start": ("grid", "int64", "uint8"), "masked": (False, True),
    },
    "mean": COMMON | {"segments": (1024, 20, 150), "ids": ("int64", "int32", "uint8")},
    "split": {"ids": ("int64", "int32", "uint8"), "labels": ("uint8", "int32", "int64"), "size": tuple(SIZES)},
}  # fmt: skip
CHANNELS = (32, 64, 256, 128)


def calls() -> Iterator[Call]:
    channels = itertools.cycle(CHANNELS)
    for job, axes in JOBS.items():
        for choice in pairs(axes):
            precision = ARITHMETIC[choice.get("dtype", "fp32")][1]
            depth = next(channels)
            run = partial({"kmeans": launch_kmeans, "mean": launch_mean, "split": launch_split}[job], depth, **choice)
            yield Call("-".join(map(str, (job, depth, *choice.values()))), run, precision, MAY_SPILL)


def launch_kmeans(
    channels: int,
    dtype: str,
    layout: str,
    size: str,
    clusters: int,
    location: str,
    resized: bool | str,
    start: str,
    masked: bool,
) -> None:
    from metricseg_kernels.segments import op

    (batch, height, width), storage = SIZES[size], ARITHMETIC[dtype][0]
    x = make_maps((batch, channels, height, width), storage, layout)
    if resized:
        height, width = 4 * height, 4 * width
    pixels = (batch, height, width)
    given = make_maps((batch, 2, height, width), storage) if location == "given" else None
    valid = make_maps(pixels, torch.bool) if masked else None
    init = None if start == "grid" else make_maps(pixels, getattr(torch, start))
    op._kmeans(x, given, valid, init, [height, width], [clusters, 1], 1, location == "grid", resized == "corners",
               "triton")  # fmt: skip


def launch_mean(channels: int, dtype: str, layout: str, size: str, segments: int, ids: str) -> None:
    from metricseg_kernels.segments import op

    (batch, height, width), storage = SIZES[size], ARITHMETIC[dtype][0]
    x = make_maps((batch, channels, height, width), storage, layout)
    at = make_maps(SIZES[size], getattr(torch, ids))
    sums, _ = op._sums(x, at, segments, "triton")
    op._sums_backward(sums, at, list(x.shape), storage, layout == "nhwc", "triton")


def launch_split(channels: int, ids: str, labels: str, size: str) -> None:
    from metricseg_kernels.segments import op

    op._split(make_maps(SIZES[size], getattr(torch, ids)), make_maps(SIZES[size], getattr(torch, labels)), 1024, 19, 255,
              "triton")  # fmt: skip
