"""What users of the focal family launch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch

from . import Call

# label pixels per cell of an axis: ((h, w), (H, W), align_corners)
SIZES = {
    "x1": ((512, 512), (512, 512), False),
    "x4": ((128, 256), (512, 1024), False),
    "x8": ((64, 128), (512, 1024), False),
    "x16": ((32, 64), (512, 1024), False),
    "x32": ((16, 32), (512, 1024), False),
    "x40": ((13, 26), (520, 1040), False),
    "down": ((512, 1024), (128, 256), False),
    "corners": ((129, 257), (513, 1025), True),
}


class Launch(NamedTuple):
    """One call of a kernel of focal/op.py."""

    op: str  # "softmax", "sigmoid" of labels, or "dense"
    classes: int
    dtype: str
    ratio: str
    mode: str = "fused"  # "fused": loss and gradient; "sum"; "map"; "backward" of a map; "expanded": of one number
    layout: str = "nchw"  # or "nhwc", "strided"
    labels: str = "uint8"
    gamma: float = 2.0
    weight: bool = False
    smoothing: float = 0.0
    alpha: float = 0.25
    argmax: bool = False
    ohem: bool = False  # whether only pixels above a threshold count

    def run(self) -> None:
        from metricseg_kernels.focal import triton as focal

        dtype, acc = getattr(torch, self.dtype), torch.float64 if self.dtype == "float64" else torch.float32
        cells, size, align_corners = SIZES[self.ratio]
        shape = (4, self.classes, *(2 * n if self.layout == "strided" else n for n in cells))
        input = torch.empty(shape, dtype=dtype, device="meta")
        if self.layout == "strided":
            input = input[..., ::2, ::2]
        if self.layout == "nhwc":
            input = input.contiguous(memory_format=torch.channels_last)
        pixels = (4, *size)
        target = torch.empty(pixels, dtype=getattr(torch, self.labels), device="meta")
        if self.op == "dense":
            target = torch.empty((4, self.classes, *size), dtype=dtype, device="meta")
        map_shape = pixels if self.op == "softmax" else (4, self.classes, *size)
        number = torch.empty((), dtype=acc, device="meta")
        loss = totals = argmax = grad_loss = grad = None
        if self.mode in ("fused", "sum", "map"):
            loss = number.new_empty(map_shape) if self.mode == "map" else number
            totals = torch.empty(5, dtype=torch.float64, device="meta")
            argmax = torch.empty(pixels, dtype=torch.int32, device="meta") if self.argmax else None
        if self.mode in ("fused", "backward", "expanded"):
            grad = torch.empty_like(input)
        if self.mode in ("backward", "expanded"):
            grad_loss = number.new_empty(map_shape) if self.mode == "backward" else number.expand(map_shape)
        if self.op != "softmax":
            focal.sigmoid_focal_kernel(input, target, grad_loss, self.gamma, self.alpha, 255, align_corners, loss,
                                       totals, grad)  # fmt: skip
            return
        weight = number.new_empty(self.classes) if self.weight else None
        keep_above = number if self.ohem else None
        focal.focal_kernel(input, target, weight, keep_above, grad_loss, self.gamma, self.smoothing, 255, align_corners,
                           loss, totals, argmax, grad)  # fmt: skip


LAUNCHES = {
    "cityscapes": Launch("softmax", 19, "bfloat16", "x4"),
    "cityscapes-fp32": Launch("softmax", 19, "float32", "x4", weight=True, argmax=True),
    "smoothing": Launch("softmax", 19, "float32", "x4", gamma=0.5, smoothing=0.1, weight=True),
    "channels-last": Launch("softmax", 19, "bfloat16", "x4", layout="nhwc"),
    "no-gradient": Launch("softmax", 19, "bfloat16", "x4", mode="sum", argmax=True),
    "no-interpolation": Launch("softmax", 21, "float16", "x1", gamma=0.0),
    "48-classes": Launch("softmax", 48, "bfloat16", "x4"),
    "ade20k": Launch("softmax", 150, "bfloat16", "x4"),
    "ade20k-fp32": Launch("softmax", 150, "float32", "x4", smoothing=0.1, weight=True),
    "float64": Launch("softmax", 19, "float64", "corners"),
    "sigmoid": Launch("sigmoid", 19, "bfloat16", "x4"),
    "sigmoid-150": Launch("sigmoid", 150, "float32", "x4"),
}


def select(dtype: torch.dtype) -> None:
    from metricseg_kernels.focal import triton as focal

    values = torch.empty(2**20, dtype=dtype)
    focal.kth_largest_kernel(values, 100, values.new_empty(()))


def calls() -> Iterator[Call]:
    for name, launch in LAUNCHES.items():
        yield Call(name, launch.run)
    for dtype in (torch.float32, torch.float64):
        yield Call(f"select-{dtype}".replace("torch.", ""), partial(select, dtype))
