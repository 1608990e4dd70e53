"""Calls of every op of the contrast family: fixed ones, and random ones for `fuzz`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from fuzz import Call, Draw
from torch import Tensor

import metricseg_kernels as mk

R = torch.Generator().manual_seed(0)
ROWS, OTHERS = torch.randn(11, 6, generator=R), torch.randn(9, 6, generator=R)
ROW_LABELS, OTHER_LABELS = torch.arange(11) % 3, torch.arange(9) % 4

# (function, keyword arguments that are no tensors, tensor arguments)
OPS: dict[str, Any] = {
    "contrast": (mk.pixel_contrast_loss, {}, {"anchors": ROWS, "anchor_labels": ROW_LABELS}),
    "contrast-two-sets": (mk.pixel_contrast_loss, {"reduction": "none"}, {
        "anchors": ROWS, "anchor_labels": ROW_LABELS, "contrast": OTHERS, "contrast_labels": OTHER_LABELS,
        "anchor_ids": torch.arange(11), "contrast_ids": torch.arange(9)}),
    "contrast-weighted": (mk.pixel_contrast_loss, {}, {
        "anchors": ROWS, "anchor_labels": ROW_LABELS, "anchor_weights": torch.rand(11, generator=R),
        "contrast_weights": torch.rand(11, generator=R)}),
    "margin": (mk.margin_contrast_loss, {}, {
        "anchors": ROWS, "anchor_labels": ROW_LABELS, "contrast": OTHERS, "contrast_labels": OTHER_LABELS}),
    "prototypes": (mk.prototype_nca_loss, {}, {
        "embeddings": ROWS, "labels": ROW_LABELS, "segment_ids": torch.arange(11) % 9, "prototypes": OTHERS,
        "prototype_labels": OTHER_LABELS}),
}  # fmt: skip


def draw_call(draw: Draw) -> Call:
    depth, classes, ignored = draw.size(20, 0), draw.size(5), draw.one_of(-1, 0, 255, 10**6)
    tensors, sides = {}, ("anchor", "contrast") if draw.one_of(False, True) else ("anchor",)
    ids = draw.one_of(False, False, True)
    for side in sides:
        rows = draw.size(40, 0)
        name = "anchors" if side == "anchor" else "contrast"
        tensors[name] = draw.values(rows, depth) * (0.3 if draw.dtype == torch.float16 else 1.0)
        tensors[f"{side}_labels"] = draw.labels(classes, ignored, rows)
        if ids:
            tensors[f"{side}_ids"] = torch.randint(0, 30, (rows,), generator=draw.rng)
    learns = ("anchors", "contrast")[: len(sides)]
    options: dict[str, Any] = {"ignore_index": ignored}
    if draw.one_of(False, True):
        options.update(margin=draw.one_of(0.5, 2.0), positive_margin=draw.one_of(0.0, 0.3), power=draw.one_of(1, 2),
                       average=draw.one_of("pairs", "nonzero"))  # fmt: skip
        # at the end of a margin rounding decides
        tensors = {n: t.double() if t.is_floating_point() else t for n, t in tensors.items()}
        return Call(mk.margin_contrast_loss, tensors, options, learns)
    if draw.one_of(False, False, True):
        columns = len(tensors[f"{sides[-1]}_labels"])
        for name, rows in (("anchor_weights", len(tensors["anchor_labels"])), ("contrast_weights", columns)):
            weights = torch.rand(rows, generator=draw.rng)
            tensors[name] = torch.where(weights < 0.2, 0.0, weights)
    options.update(temperature=draw.one_of(0.1, 1.0), base_temperature=draw.one_of(None, 0.07),
                   denominator=draw.one_of("negatives", "all"), reduction=draw.one_of("mean", "sum", "none"))  # fmt: skip
    return Call(mk.pixel_contrast_loss, tensors, options, learns)


def large_calls() -> Iterator[tuple[str, Call]]:
    """Several tiles and panels, none full, for `bits`."""
    rng = torch.Generator().manual_seed(0)

    def side(rows: int, name: str, labels: str, dtype: torch.dtype) -> dict[str, Tensor]:
        values = torch.nn.functional.normalize(torch.randn(rows, 70, generator=rng))
        return {name: values.to(dtype), labels: torch.randint(-1, 19, (rows,), generator=rng)}

    for dtype in (torch.float32, torch.bfloat16):
        for loss, options in (
            (mk.pixel_contrast_loss, {"temperature": 0.1}),
            (mk.pixel_contrast_loss, {"temperature": 0.1, "denominator": "all"}),
            (mk.pixel_contrast_loss, {"temperature": 0.01, "reduction": "none"}),
            (mk.margin_contrast_loss, {"margin": 1.5, "average": "nonzero"}),
            (mk.margin_contrast_loss, {"margin": 0.5, "power": 1}),
        ):
            x = side(2500, "anchors", "anchor_labels", dtype)
            y = side(3100, "contrast", "contrast_labels", dtype)
            name = f"{loss.__name__} {options} {dtype}"
            yield f"{name} alone", Call(loss, x, options, ("anchors",))
            yield f"{name} two sets", Call(loss, {**x, **y}, options, ("anchors", "contrast"))
            if loss is mk.pixel_contrast_loss:
                of_rows, of_columns = ({"contrast_weights": torch.arange(rows).float() % 5} for rows in (2500, 3100))
                yield f"{name} alone weighted", Call(loss, {**x, **of_rows}, options, ("anchors",))
                yield (
                    f"{name} two sets weighted",
                    Call(loss, {**x, **y, **of_columns}, options, ("anchors", "contrast")),
                )
    for dtype in (torch.float32, torch.bfloat16):
        x, y = side(2500, "embeddings", "labels", dtype), side(3100, "prototypes", "prototype_labels", dtype)
        tensors = {**x, **y, "segment_ids": torch.randint(-1, 3100, (2500,), generator=rng)}
        yield f"prototypes {dtype}", Call(mk.prototype_nca_loss, tensors, {}, ("embeddings", "prototypes"))


SIZED: dict[str, Any] = {  # calls on inputs of any size, for tests/kernels/test_dynamic_sizes.py
    "pixel_contrast_loss": lambda x, b: mk.pixel_contrast_loss(x.rows, x.row_labels, backend=b),
    "pixel_contrast_loss of two sets": lambda x, b: mk.pixel_contrast_loss(
        x.rows, x.row_labels, x.bank, x.bank_labels, contrast_weights=x.bank[:, 0].detach().abs(), backend=b),
    "margin_contrast_loss": lambda x, b: mk.margin_contrast_loss(
        x.rows, x.row_labels, x.bank, x.bank_labels, backend=b),
    "prototype_nca_loss": lambda x, b: mk.prototype_nca_loss(
        x.rows, x.row_labels, x.row_labels, x.bank, x.bank_labels, backend=b),
}  # fmt: skip
