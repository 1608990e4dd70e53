"""Calls of the op of the distill family: fixed ones, and random ones for `fuzz`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from fuzz import IGNORED, Call, Draw

import metricseg_kernels as mk

R = torch.Generator().manual_seed(0)
STUDENT = torch.randn(2, 4, 5, 7, generator=R)
TEACHER = torch.randn(2, 4, 3, 4, generator=R)
LABELS = torch.randint(0, 4, (2, 10, 14), generator=R)
MAPS = {"student": STUDENT, "teacher": TEACHER}

# (function, keyword arguments that are no tensors, tensor arguments)
OPS: dict[str, Any] = {
    "kl": (mk.distillation_loss, {"temperature": 2.0}, {**MAPS, "target": LABELS}),
    "kl-map": (mk.distillation_loss, {"reduction": "none"}, {**MAPS, "target": LABELS}),
    "reverse-kl": (mk.distillation_loss, {"kind": "reverse_kl", "target": (9, 13)}, MAPS),
    "js": (mk.distillation_loss, {"kind": "js", "reduction": "sum"}, {**MAPS, "target": LABELS}),
}


def draw_call(draw: Draw) -> Call:
    ignore_index, classes, batch = draw.one_of(*IGNORED), draw.size(9), draw.size(2, 0)
    pixels = (draw.size(15), draw.size(40))
    tensors = {}
    for name in MAPS:
        cells = draw.one_of(pixels, (draw.size(7), draw.size(50)), (draw.size(20), draw.size(7)))
        tensors[name] = draw.values(batch, classes, *cells)
        if draw.special and cells != pixels:  # F.interpolate makes NaN of an infinity and a weight of 0
            tensors[name] = tensors[name].nan_to_num(torch.nan, 1e4, -1e4)
    if draw.dtype != torch.float64:
        tensors["teacher"] = tensors["teacher"].to(draw.one_of(draw.dtype, torch.float32))
    options = {"ignore_index": ignore_index, "align_corners": draw.one_of(False, True)}
    options |= {"temperature": draw.one_of(1.0, 0.5, 4.0), "kind": draw.one_of("kl", "reverse_kl", "js")}
    options |= {"reduction": draw.one_of("mean", "sum", "none")}
    if draw.one_of(False, False, True):
        options["target"] = pixels
    else:
        tensors["target"] = draw.labels(classes + 2, ignore_index, batch, *pixels)
    return Call(mk.distillation_loss, tensors, options, draw.one_of(("student",), ("student", "teacher"), ("teacher",)))


def large_calls() -> Iterator[tuple[str, Call]]:
    """Several chunks of rows and columns, none full, for `bits`."""
    rng = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        for classes in (19, 150):
            maps = [torch.randn(2, classes, *cells, generator=rng).to(dtype) for cells in ((33, 47), (17, 30))]
            target = torch.randint(-1, classes, (2, 130, 190), generator=rng) & 255
            for kind in ("kl", "reverse_kl", "js"):
                tensors = {"student": maps[0], "teacher": maps[1], "target": target}
                call = Call(mk.distillation_loss, tensors, {"kind": kind}, ("student", "teacher"))
                yield f"distillation_loss {kind} {classes} {dtype}", call


SIZED: dict[str, Any] = {  # calls on inputs of any size, for tests/kernels/test_dynamic_sizes.py
    "distillation_loss": lambda x, b: mk.distillation_loss(x.logits, x.logits[..., :-2].detach(), x.target, backend=b),
    "distillation of a size": lambda x, b: mk.distillation_loss(x.logits, 2 * x.logits, x.target.shape[1:], backend=b),
}  # fmt: skip
