"""What users of the centers family launch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from . import Call

SIZE = (8, 512, 128, 256)
# name: (what meets the features: "logits", "pull", "soft" or "hard", K, dtype, precision, memory format)
CALLS = {
    "centers": ("logits", 150, "bfloat16", "highest", "contiguous_format"),
    "centers-tf32": ("logits", 150, "float32", "high", "contiguous_format"),
    "centers-pull": ("pull", 19, "bfloat16", "highest", "contiguous_format"),
    "centers-pull-fp32": ("pull", 847, "float32", "highest", "channels_last"),
    "class-centers": ("soft", 150, "bfloat16", "highest", "channels_last"),
    "class-means": ("hard", 19, "float32", "high", "contiguous_format"),
}


def calls() -> Iterator[Call]:
    for name, (against, classes, dtype, precision, layout) in CALLS.items():
        exact = dtype == "float32" and precision == "highest"
        yield Call(name, partial(launch, against, classes, dtype, layout), precision, tensor_cores=not exact)


def launch(against: str, classes: int, dtype_name: str, layout: str) -> None:
    from metricseg_kernels.centers import triton as centers

    dtype, (batch, channels, height, width) = getattr(torch, dtype_name), SIZE
    features = torch.empty(SIZE, dtype=dtype, device="meta").contiguous(memory_format=getattr(torch, layout))
    logits = torch.empty((batch, classes, height, width), dtype=dtype, device="meta")
    labels = torch.empty((batch, height, width), dtype=torch.uint8, device="meta")
    pixels, grad = torch.empty_like(labels, dtype=torch.float32), torch.empty_like(features)
    rows, mass = (torch.empty(size, device="meta") for size in ((batch, classes, channels), (batch, classes)))
    if against in ("soft", "hard"):
        assignment, grad_assignment = (logits, logits) if against == "soft" else (labels, None)
        centers.class_sums_kernel(features, assignment, 255, rows, mass)
        centers.class_sums_grad_kernel(rows, mass, features, assignment, 255, grad, grad_assignment)
        return
    shared = rows[:1]
    pull, own = (labels, pixels) if against == "pull" else (None, None)
    centers.similarity_kernel(features, shared, None, pull, "cosine", 15.0, 255, logits, own, pixels)
    centers.similarity_grad_kernel(logits, own, features, shared, pull, pixels, logits, own, "cosine", 15.0, 255, grad,
                                   shared)  # fmt: skip
