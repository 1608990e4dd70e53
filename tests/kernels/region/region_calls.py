"""Calls of every op of the region family: fixed ones, and random ones for `fuzz`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from fuzz import IGNORED, Call, Draw

import metricseg_kernels as mk

R = torch.Generator().manual_seed(0)
LOGITS = torch.randn(2, 4, 5, 7, generator=R)
LABELS = torch.randint(0, 4, (2, 5, 7), generator=R)
FINE = torch.randint(0, 4, (2, 10, 14), generator=R)
SOFT = torch.rand(2, 4, 10, 14, generator=R)

# (function, keyword arguments that are no tensors, tensor arguments)
OPS: dict[str, Any] = {
    "dice": (mk.region_loss, {}, {"input": LOGITS, "target": FINE, "weight": torch.rand(4, generator=R)}),
    "tversky-soft": (mk.region_loss, {"form": "tversky", "per_image": True}, {"input": LOGITS, "target": SOFT}),
    "jaccard-sigmoid": (mk.region_loss, {"form": "jaccard", "activation": "sigmoid"},
                        {"input": LOGITS, "target": LABELS}),
    "ce-dice": (mk.cross_entropy_dice, {}, {"input": LOGITS, "target": FINE, "weight": torch.rand(4, generator=R)}),
    "focal-dice": (mk.focal_dice, {"label_smoothing": 0.1}, {"input": LOGITS, "target": FINE}),
}  # fmt: skip


def draw_call(draw: Draw) -> Call:
    ignore_index, classes = draw.one_of(*IGNORED), draw.size(9, 2)
    batch, (cells, pixels) = draw.size(3, 0), draw.maps((7, 7), (15, 40))
    tensors = {"input": draw.values(batch, classes, *cells)}
    if draw.special and cells != pixels:  # F.interpolate makes NaN of an infinity and a weight of 0
        tensors["input"] = tensors["input"].nan_to_num(torch.nan, 1e4, -1e4)
    options = {"ignore_index": ignore_index, "align_corners": draw.one_of(False, True)}
    options |= {"smooth": draw.one_of(0.0, 1.0, 3.0), "average": draw.one_of("classes", "present")}
    options |= {"per_image": draw.one_of(False, True), "label_smoothing": draw.one_of(0.0, 0.1, 1.0)}
    function = draw.one_of(mk.region_loss, mk.cross_entropy_dice, mk.focal_dice)
    tensors["target"] = draw.labels(classes, ignore_index, batch, *pixels)
    if function is mk.region_loss:
        options |= {"form": draw.one_of("dice", "tversky", "jaccard"), "alpha": draw.one_of(0.0, 0.3, 2.0)}
        options |= {"exponent": draw.one_of(1.0, 0.75, 2.0), "activation": draw.one_of("softmax", "sigmoid")}
        if draw.one_of(False, True):
            tensors["target"] = torch.rand(batch, classes, *pixels, generator=draw.rng).to(draw.dtype)
    elif function is mk.focal_dice:
        options["gamma"] = draw.one_of(0.0, 0.5, 1.0, 2.0, 3.7)
    if (weight := draw.factors(classes)) is not None:
        tensors["weight"] = weight
    return Call(function, tensors, options, ("input",))


def large_calls() -> Iterator[tuple[str, Call]]:
    """Several chunks of rows and columns, none full, for `bits`."""
    rng = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        for classes in (19, 150):
            logits = torch.randn(2, classes, 33, 47, generator=rng).to(dtype)
            target = torch.randint(-1, classes, (2, 130, 190), generator=rng) & 255
            for function in (mk.cross_entropy_dice, mk.region_loss):
                call = Call(function, {"input": logits, "target": target}, {"per_image": True}, ("input",))
                yield f"{function.__name__} {classes} {dtype}", call


SIZED: dict[str, Any] = {  # calls on inputs of any size, for tests/kernels/test_dynamic_sizes.py
    "region_loss": lambda x, b: mk.region_loss(x.logits, x.target, backend=b),
    "cross_entropy_dice": lambda x, b: mk.cross_entropy_dice(x.logits, x.target, per_image=True, backend=b),
    "focal_dice": lambda x, b: mk.focal_dice(x.logits, x.target, backend=b),
}  # fmt: skip
