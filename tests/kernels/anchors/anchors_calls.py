"""Calls of every op of the anchors family: fixed ones, and random ones for `fuzz`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from fuzz import IGNORED, Call, Draw

import metricseg_kernels as mk

R = torch.Generator().manual_seed(0)
FEATURES = torch.randn(2, 6, 5, 7, generator=R)
LABELS = torch.randint(0, 4, (2, 5, 7), generator=R)

# (function, keyword arguments that are no tensors, tensor arguments)
OPS: dict[str, Any] = {
    "sample-hard": (mk.sample_anchors, {"seed": 3, "min_pixels": 2, "max_samples": 16},
                    {"labels": LABELS, "predictions": LABELS.roll(1)}),
    "sample-semi-hard": (mk.sample_anchors, {"strategy": "semi_hard", "min_pixels": 2, "max_samples": 16},
                         {"labels": LABELS, "confidence": torch.rand(2, 5, 7, generator=R), "seed": torch.tensor(7)}),
    "sample-boundary": (mk.sample_anchors, {"strategy": "boundary", "seed": 3, "min_pixels": 2},
                        {"labels": LABELS}),
    "gather": (mk.gather_pixels, {}, {"features": FEATURES, "index": torch.randint(-1, 70, (9,), generator=R)}),
}  # fmt: skip


def draw_call(draw: Draw) -> Call:
    shape = (draw.size(2, 0), draw.size(9), draw.size(9))
    if draw.one_of(False, True):
        pixels = shape[0] * shape[1] * shape[2]
        index = torch.randint(-1, pixels, (draw.size(20, 0),), generator=draw.rng) if pixels else torch.full((3,), -1)
        tensors = {"features": draw.values(shape[0], draw.size(9, 0), *shape[1:]), "index": index}
        return Call(mk.gather_pixels, tensors, {"normalize": draw.one_of(False, True)}, ("features",))
    ignore_index, classes = draw.one_of(*IGNORED), draw.size(40)
    tensors = {"labels": draw.labels(classes, ignore_index, *shape)}
    options = {
        "strategy": draw.one_of("hard", "random", "semi_hard", "boundary"), "num_classes": classes, "seed": draw.size(99),
        "max_samples": draw.size(60), "max_views": draw.size(9), "min_pixels": draw.one_of(None, 0, 1, 5),
        "radius": draw.size(3), "ignore_index": ignore_index,
    }  # fmt: skip
    if options["strategy"] in ("hard", "semi_hard"):
        tensors["predictions"] = draw.labels(classes, None, *shape)
        tensors["confidence"] = draw.values(*shape)
    return Call(mk.sample_anchors, tensors, options, ())


def large_calls() -> Iterator[tuple[str, Call]]:
    """Many rows of many channels, for `bits`."""
    rng = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        features = torch.randn(2, 130, 33, 47, generator=rng).to(dtype)
        index = torch.randint(0, 2 * 33 * 47, (900,), generator=rng)
        call = Call(mk.gather_pixels, {"features": features, "index": index}, {"normalize": True}, ("features",))
        yield f"gather_pixels {dtype}", call


SIZED: dict[str, Any] = {  # calls on inputs of any size, for tests/kernels/test_dynamic_sizes.py
    "sample_anchors": lambda x, b: mk.sample_anchors(
        x.cells, x.logits.argmax(1), max_samples=x.rows.shape[0], num_classes=x.classes, seed=3, backend=b),
    "gather_pixels": lambda x, b: mk.gather_pixels(x.features, x.row_labels, backend=b),
}  # fmt: skip
