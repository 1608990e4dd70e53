"""Calls of every op of the predict family: fixed ones, and random ones for `fuzz`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from fuzz import Call, Draw

import metricseg_kernels as mk

R = torch.Generator().manual_seed(0)
LOGITS = torch.randn(2, 4, 5, 7, generator=R)
TARGET = torch.randint(0, 4, (2, 19, 23), generator=R)

# (function, keyword arguments that are no tensors, tensor arguments)
OPS: dict[str, Any] = {
    "labels": (mk.predict_labels, {"size": (19, 23)}, {"logits": LOGITS}),
    "confusion": (mk.confusion_matrix, {}, {"logits": LOGITS, "target": TARGET}),
}


def draw_call(draw: Draw) -> Call:
    batch, classes = draw.size(3, 0), draw.size(9, 2)
    cells, size = draw.maps((9, 30), (40, 90))
    # in fp64, since rounding decides among nearly equal logits; finite, since F.interpolate reads neighbors of weight 0
    logits = draw.values(batch, classes, *cells, dtype=torch.float64)
    tensors = {"logits": logits.nan_to_num(0.0, 1e4, -1e4)}
    options = {"align_corners": draw.one_of(False, True), "flipped": draw.one_of(False, True)}
    if draw.one_of(False, True):
        ignore_index = draw.one_of(None, 255, 0, -1)
        tensors["target"] = draw.labels(classes, ignore_index, batch, *size)
        return Call(mk.confusion_matrix, tensors, {**options, "ignore_index": ignore_index}, ())
    if draw.one_of(False, True):
        options["return_confidence"] = True
    return Call(mk.predict_labels, tensors, {**options, "size": size}, ())


def large_calls() -> Iterator[tuple[str, Call]]:
    """Several tiles of each row, none full, for `bits`."""
    rng = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        logits = {"logits": torch.randn(1, 19, 30, 150, generator=rng).to(dtype)}
        options = {"size": (119, 601), "return_confidence": True, "return_entropy": True}
        yield f"predict_labels {dtype}", Call(mk.predict_labels, logits, options, ())


def predict_step(classes: int, size: tuple[int, int]) -> Callable[[], object]:
    """A call, for a meter of memory in another process."""
    logits = torch.randn(1, classes, size[0] // 4, size[1] // 4)
    return lambda: mk.predict_labels(logits, size)


SIZED: dict[str, Any] = {  # calls on inputs of any size, for tests/kernels/test_dynamic_sizes.py
    "predict_labels": lambda x, b: mk.predict_labels(x.logits, x.target.shape[1:], return_confidence=True, backend=b),
    "predict_labels of maps": lambda x, b: mk.predict_labels(
        [x.logits, x.logits[..., 1:]], x.target.shape[1:], backend=b),
    "confusion_matrix": lambda x, b: mk.confusion_matrix(x.logits, x.target, backend=b),
}  # fmt: skip
