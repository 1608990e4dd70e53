"""Launches of users of the focal family."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from launches import Call

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


DTYPES = {"fp64": "float64", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class Launch(NamedTuple):
    """One call of a kernel of focal/op.py."""

    id: str
    op: str  # "softmax", "sigmoid" of labels, or "dense": of targets [B, K, H, W]
    classes: int
    dtype: str
    ratio: str
    mode: str  # "fused" (loss and gradient), "sum", "map", "backward" of a map, "expanded" (backward of one number)
    layout: str  # "nchw", "nhwc" or "strided"
    labels: str
    gamma: float
    flags: frozenset[str]  # weight, smoothing, argmax, ohem (a threshold per pixel), no_alpha

    @staticmethod
    def parse(id: str) -> Launch:
        op, classes, dtype, ratio, mode, *words = id.split("-")

        def take(choices: tuple[str, ...]) -> str:
            return next((words.pop(words.index(choice)) for choice in choices if choice in words), choices[0])

        layout, labels = take(("nchw", "nhwc", "strided")), take(("uint8", "int32", "int64"))
        gamma = take(("gamma2", "gamma0", "gamma1", "gamma0.7"))
        return Launch(id, op, int(classes), DTYPES[dtype], ratio, mode, layout, labels, float(gamma[5:]),
                      frozenset(words))  # fmt: skip

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
            argmax = torch.empty(pixels, dtype=torch.int32, device="meta") if "argmax" in self.flags else None
        if self.mode in ("fused", "backward", "expanded"):
            grad = torch.empty_like(input)
        if self.mode in ("backward", "expanded"):
            grad_loss = number.new_empty(map_shape) if self.mode == "backward" else number.expand(map_shape)
        if self.op != "softmax":
            alpha = -1.0 if "no_alpha" in self.flags else 0.25
            focal.sigmoid_focal_kernel(input, target, grad_loss, self.gamma, alpha, 255, align_corners, loss, totals,
                                       grad)  # fmt: skip
            return
        weight = number.new_empty(self.classes) if "weight" in self.flags else None
        keep_above = number if "ohem" in self.flags else None
        smoothing = 0.1 if "smoothing" in self.flags else 0.0
        focal.focal_kernel(input, target, weight, keep_above, grad_loss, self.gamma, smoothing, 255, align_corners,
                           0.0, weight is not None, loss, totals, number if self.mode == "sum" else None, argmax, grad)  # fmt: skip


# Each pair of values of two fields occurs in a row, as test_triton_focal.py checks.
LAUNCHES = """
    softmax-2-fp32-x40-backward-gamma0
    softmax-2-bf16-x1-sum-nhwc-int64-gamma0.7-weight-argmax
    softmax-2-bf16-x32-backward-strided-int64-gamma1
    softmax-2-fp16-x4-fused-gamma1
    softmax-2-fp16-corners-backward-nhwc
    softmax-2-fp64-down-map-strided-int32-gamma1-weight-smoothing-argmax-ohem
    softmax-19-fp32-x4-fused-weight-argmax
    softmax-19-fp32-x4-fused-nhwc-gamma0.7-weight-smoothing
    softmax-19-fp32-x4-map-strided-int64-gamma0
    softmax-19-fp32-x4-fused-int64-gamma0-ohem
    softmax-19-fp32-x32-fused-nhwc-int32-gamma0.7
    softmax-19-bf16-x4-fused-strided
    softmax-19-bf16-x4-sum-argmax
    softmax-19-bf16-x16-fused-nhwc-gamma0-weight
    softmax-19-bf16-x40-fused-nhwc
    softmax-19-bf16-down-sum-strided-gamma0
    softmax-19-fp16-x1-fused-gamma0
    softmax-19-fp16-x8-expanded-int64-gamma0-ohem
    softmax-19-fp64-x4-backward-nhwc-gamma1
    softmax-19-fp64-corners-fused-strided-int64
    softmax-48-bf16-x4-fused
    softmax-59-fp32-x32-fused-strided-weight-smoothing
    softmax-59-bf16-x32-fused
    softmax-150-fp32-x4-fused-gamma0-weight-smoothing
    softmax-150-bf16-x4-fused-nhwc
    softmax-150-bf16-corners-map-strided-gamma0.7-smoothing-argmax-ohem
    softmax-150-fp16-x1-backward-int32-weight-smoothing-ohem
    softmax-150-fp16-down-fused-nhwc-int64
    softmax-150-fp64-x32-sum-strided-int32-gamma0-weight-smoothing-argmax-ohem
    softmax-150-fp64-x40-map-int32-gamma1
    softmax-847-fp32-x1-fused-nhwc
    softmax-847-fp32-down-fused-strided
    softmax-847-fp32-corners-sum-int32-gamma1-weight
    softmax-847-bf16-x4-fused-nhwc-int32-gamma0
    softmax-847-fp16-x32-map-strided
    softmax-847-fp16-x40-sum-int64-gamma0.7-weight-smoothing-argmax-ohem
    softmax-847-fp64-x1-map-nhwc-gamma1
    softmax-847-fp64-down-backward-strided-gamma0.7
    softmax-847-fp64-corners-fused-gamma0
    sigmoid-2-bf16-x1-fused-nhwc-gamma0.7-no_alpha
    sigmoid-2-fp16-down-sum-strided-int32-gamma0
    sigmoid-19-fp32-x1-map-int64
    sigmoid-19-fp32-x1-backward-nhwc-int64
    sigmoid-19-bf16-x4-fused-strided
    sigmoid-19-bf16-x40-map-int32-gamma0.7
    sigmoid-19-fp16-corners-fused-nhwc-int64-gamma0
    sigmoid-19-fp64-x32-fused-strided-int32-gamma1
    sigmoid-150-fp32-x4-fused
    sigmoid-847-bf16-x8-expanded-strided
    dense-2-fp32-x32-backward-nhwc-gamma0
    dense-2-fp32-x40-sum-strided-gamma1-no_alpha
    dense-2-bf16-corners-sum
    dense-2-fp64-x4-map-nhwc-no_alpha
    dense-19-bf16-x4-fused-strided
    dense-19-bf16-x16-fused
    dense-19-bf16-x32-sum-gamma0.7-no_alpha
    dense-19-fp64-down-map-nhwc
    dense-150-fp32-down-fused-strided-gamma0.7
    dense-150-fp32-corners-map-gamma1
    dense-150-bf16-x4-sum-nhwc-gamma0
    dense-150-bf16-down-backward-strided-gamma1-no_alpha
    dense-150-fp16-x1-map-gamma1
    dense-150-fp16-x4-backward-nhwc-gamma0.7
    dense-150-fp16-x32-map-strided-gamma0-no_alpha
    dense-150-fp16-x40-backward
    dense-150-fp64-x1-sum-nhwc-gamma0
    dense-150-fp64-x4-fused-strided-gamma1
    dense-150-fp64-x32-fused
    dense-150-fp64-x40-fused-nhwc-gamma0
    dense-150-fp64-corners-backward-strided-gamma0.7-no_alpha
"""


def select(dtype: torch.dtype, size: int) -> None:
    from metricseg_kernels.focal import triton as focal

    values = torch.empty(size, dtype=dtype)
    focal.kth_largest_kernel(values, 100, 0.5, values.new_empty(()))


def rank(classes: int, dtype: torch.dtype) -> None:
    """The losses that OHEM ranks: no sums."""
    from metricseg_kernels.focal import triton as focal

    input, target = torch.empty((4, classes, 64, 128), dtype=dtype), torch.empty((4, 256, 512), dtype=torch.int64)
    loss = torch.empty(target.shape)
    focal.focal_kernel(input, target, None, None, None, 0.0, 0.0, 255, False, -1.0, False, loss, None, None, None, None)


def calls() -> Iterator[Call]:
    for launch in map(Launch.parse, LAUNCHES.split()):
        yield Call(launch.id, launch.run, may_spill=64 if launch.dtype == "float64" else 0)
    for name in ("fp32", "fp64"):
        for size in (2**20, 2**16):
            yield Call(f"select-{name}-{size}", partial(select, getattr(torch, DTYPES[name]), size))
    for classes, name in ((19, "bf16"), (150, "fp32")):
        yield Call(f"rank-{classes}-{name}", partial(rank, classes, getattr(torch, DTYPES[name])))
