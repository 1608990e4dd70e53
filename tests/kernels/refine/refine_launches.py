"""Launches of users of the refine family; axes are crossed in pairs. Channels are a run-time number: calls take turns."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

import torch
from launches import ARITHMETIC, Call, make_maps, pairs

AXES = {
    "dtype": tuple(ARITHMETIC),
    "layout": ("nchw", "nhwc", "strided"),
    "size": ("even", "odd"),
    "neighbors": (True, False),
    "offsets": ("same", "float32"),
    "corners": (False, True),
    "zeros": (False, True),
    "wanted": ("all", "features", "moves"),  # gradients
}
SIZES = {"even": ((4, 64, 128), (128, 256)), "odd": ((2, 33, 65), (129, 257))}  # [B, h, w], (H, W)
CHANNELS = (256, 19, 64, 128)


def calls() -> Iterator[Call]:
    channels = itertools.cycle(CHANNELS)
    for choice in pairs(AXES):
        depth = next(channels)
        name = "-".join(map(str, (depth, *choice.values())))
        yield Call(name, partial(launch, depth, **choice), ARITHMETIC[choice["dtype"]][1])


def launch(channels: int, dtype: str, layout: str, size: str, neighbors: bool, offsets: str, corners: bool,
           zeros: bool, wanted: str) -> None:  # fmt: skip
    from metricseg_kernels.refine import op

    ((batch, *cells), labels), storage = SIZES[size], ARITHMETIC[dtype][0]
    kind = storage if offsets == "same" or storage == torch.float64 else torch.float32
    x = make_maps((batch, channels, *cells), storage, layout)
    moved = make_maps((batch, 2, *labels), kind)
    logits = make_maps((batch, 9, *labels), kind) if neighbors else None
    output = op._fwd(x, moved, logits, corners, zeros, "triton")
    gradients = [wanted != "moves", wanted != "features", wanted != "features" and neighbors]
    op._bwd(output, x, moved, logits, corners, zeros, gradients, "triton")
