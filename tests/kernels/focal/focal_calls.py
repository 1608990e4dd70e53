"""Calls of every op of the focal family: fixed ones, and random ones for `fuzz`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from fuzz import IGNORED, Call, Draw

import metricseg_kernels as mk

R = torch.Generator().manual_seed(0)
LOGITS = torch.randn(2, 4, 5, 7, generator=R)
LABELS = torch.randint(0, 4, (2, 5, 7), generator=R)
FINE = torch.randint(0, 4, (2, 10, 14), generator=R)

# (function, keyword arguments that are no tensors, tensor arguments)
OPS: dict[str, Any] = {
    "focal": (mk.focal_loss, {}, {"input": LOGITS, "target": FINE, "weight": torch.rand(4, generator=R)}),
    "focal-map": (mk.focal_loss, {"reduction": "none"}, {"input": LOGITS, "target": FINE}),
    "cross-entropy": (mk.cross_entropy, {"label_smoothing": 0.1}, {"input": LOGITS, "target": LABELS}),
    "sigmoid": (mk.sigmoid_focal_loss, {}, {"input": LOGITS, "target": FINE}),
    "sigmoid-dense": (mk.sigmoid_focal_loss, {"reduction": "none"},
                      {"input": LOGITS, "target": torch.rand(2, 4, 10, 14, generator=R)}),
    "ohem": (mk.ohem_cross_entropy, {"min_kept": 20, "thresh": 0.1}, {"input": LOGITS, "target": FINE}),
    "ohem-top-k": (mk.ohem_cross_entropy, {"top_k_percent": 0.2}, {"input": LOGITS, "target": FINE}),
}  # fmt: skip


def draw_call(draw: Draw) -> Call:
    ignore_index, classes = draw.one_of(*IGNORED), draw.size(9, 2)
    batch, (cells, pixels) = draw.size(2, 0), draw.maps((7, 7), (15, 15))
    tensors = {"input": draw.values(batch, classes, *cells)}
    agree = [c == p for c, p in zip(cells, pixels, strict=True)]
    if draw.special and not all(agree):
        # F.interpolate weighs a cell that is its own neighbor by 1 and by 0, which makes NaN of an infinity
        edge = torch.full(cells, any(agree))
        for axis in range(edge.ndim):
            edge.select(axis, -1).fill_(True)
        tensors["input"][..., edge] = tensors["input"][..., edge].nan_to_num(torch.nan, 1e4, -1e4)
    options = {"ignore_index": ignore_index, "align_corners": draw.one_of(False, True)}
    function = draw.one_of(mk.focal_loss, mk.cross_entropy, mk.sigmoid_focal_loss, mk.ohem_cross_entropy)
    tensors["target"] = draw.labels(classes, ignore_index, batch, *pixels)
    if function is mk.ohem_cross_entropy:
        # in fp64, and with thresholds clearly apart from the pixels that they keep: among equal ones rounding decides
        tensors["input"] = tensors["input"].double()
        nll = mk.cross_entropy(**tensors, **options, reduction="none", backend="reference")
        ignored = 255 if ignore_index in ("auto", None) else ignore_index
        nll = nll[tensors["target"] != ignored].sort(descending=True).values
        steps = 1 + (nll[:-1] - nll[1:] > 1e-9).nonzero().view(-1)
        count = tensors["target"].numel()
        if count and draw.one_of(False, True):
            options["top_k_percent"] = min(1.0, (draw.one_of(count, *steps.tolist()) + 0.5) / count)
            return Call(function, tensors, options, ("input",))
        options["min_kept"] = draw.one_of(0, 10**6, draw.one_of(10**6, *steps.tolist()))
        options["thresh"] = draw.one_of(*(t for t in (0.1, 0.7, 1.0) if not ((nll + math.log(t)).abs() < 1e-9).any()))
        return Call(function, tensors, options, ("input",))
    options["reduction"] = draw.one_of("mean", "sum", "none")
    if draw.one_of(False, False, True):
        tensors["pixel_weight"] = torch.rand(batch, *pixels, generator=draw.rng).to(draw.dtype)
    if options["reduction"] == "mean" and draw.one_of(False, True):
        options["avg_factor"] = draw.one_of(0, 3.0, torch.tensor(7))
    if function is not mk.cross_entropy:
        options["gamma"] = draw.one_of(0.0, 0.5, 1.0, 2.0, 3.7)
    if function is mk.sigmoid_focal_loss:
        options["alpha"] = draw.one_of(-1.0, 0.25, 1.0)
        if draw.one_of(False, True):
            tensors["target"] = torch.rand(batch, classes, *pixels, generator=draw.rng).to(draw.dtype)
    else:
        options["label_smoothing"] = draw.one_of(0.0, 0.1, 1.0)
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
            for align_corners in (False, True):
                options = {"gamma": 1.5, "align_corners": align_corners}
                call = Call(mk.focal_loss, {"input": logits, "target": target}, options, ("input",))
                yield f"focal_loss {classes} {align_corners} {dtype}", call


SIZED: dict[str, Any] = {  # calls on inputs of any size, for tests/kernels/test_dynamic_sizes.py
    "cross_entropy": lambda x, b: mk.cross_entropy(x.logits, x.target, backend=b),
    "focal_loss": lambda x, b: mk.focal_loss(x.logits, x.target, reduction="none", backend=b),
    "sigmoid_focal_loss": lambda x, b: mk.sigmoid_focal_loss(x.logits, x.target, backend=b),
    "ohem_cross_entropy": lambda x, b: mk.ohem_cross_entropy(x.logits, x.target, min_kept=20, backend=b),
    "top k": lambda x, b: mk.ohem_cross_entropy(x.logits, x.target, top_k_percent=0.3, backend=b),
}  # fmt: skip
