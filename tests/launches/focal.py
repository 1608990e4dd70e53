"""What users of the focal family launch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from . import Call

# name: (op, (B, K, h, w), (H, W), dtype, options)
CALLS = {
    "cityscapes": ("focal", (8, 19, 128, 256), (512, 1024), "bfloat16", {}),
    "cityscapes-fp32": ("focal", (8, 19, 128, 256), (512, 1024), "float32", {"weight": True, "argmax": True}),
    "smoothing": ("focal", (8, 19, 128, 256), (512, 1024), "float32", {"gamma": 0.5, "smoothing": 0.1, "weight": True}),
    "channels-last": ("focal", (8, 19, 128, 256), (512, 1024), "bfloat16", {"channels_last": True}),
    "no-gradient": ("focal", (8, 19, 128, 256), (512, 1024), "bfloat16", {"grad": False, "argmax": True}),
    "no-interpolation": ("focal", (2, 21, 512, 512), (512, 512), "float16", {"gamma": 0.0}),
    "48-classes": ("focal", (4, 48, 128, 128), (512, 512), "bfloat16", {}),
    "ade20k": ("focal", (16, 150, 128, 128), (512, 512), "bfloat16", {}),
    "ade20k-fp32": ("focal", (16, 150, 128, 128), (512, 512), "float32", {"smoothing": 0.1, "weight": True}),
    "float64": ("focal", (2, 19, 33, 65), (513, 1025), "float64", {"align_corners": True}),
    "sigmoid": ("sigmoid", (8, 19, 128, 256), (512, 1024), "bfloat16", {}),
    "sigmoid-150": ("sigmoid", (16, 150, 128, 128), (512, 512), "float32", {}),
    "select": ("select", (1, 1, 1, 1), (512, 512), "float32", {}),
}


def calls() -> Iterator[Call]:
    for name, call in CALLS.items():
        yield Call(name, partial(launch, *call))


def launch(op: str, cells: tuple[int, ...], size: tuple[int, int], dtype_name: str, options: dict[str, object]) -> None:
    from metricseg_kernels.focal import triton as focal

    dtype = getattr(torch, dtype_name)
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    if op == "select":
        focal.kth_largest_kernel(torch.empty(size, dtype=acc), 100, torch.empty((), dtype=acc))
        return
    input = torch.empty(cells, dtype=dtype, device="meta")
    if options.get("channels_last"):
        input = input.contiguous(memory_format=torch.channels_last)
    target = torch.empty((cells[0], *size), dtype=torch.uint8, device="meta")
    loss, totals = torch.empty((), dtype=acc), torch.empty(5, dtype=torch.float64)
    grad = torch.empty_like(input) if options.get("grad", True) else None
    gamma, align_corners = options.get("gamma", 2.0), options.get("align_corners", False)
    if op == "sigmoid":
        focal.sigmoid_focal_kernel(input, target, None, gamma, 0.25, 255, align_corners, loss, totals, grad)
        return
    weight = torch.empty(cells[1], dtype=acc) if options.get("weight") else None
    argmax = torch.empty_like(target, dtype=torch.int32) if options.get("argmax") else None
    focal.focal_kernel(input, target, weight, None, None, gamma, options.get("smoothing", 0.0), 255, align_corners,
                       loss, totals, argmax, grad)  # fmt: skip
