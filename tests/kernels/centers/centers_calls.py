"""Calls of every op of the centers family: fixed ones, and random ones for `fuzz`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from fuzz import IGNORED, Call, Draw

import metricseg_kernels as mk

R = torch.Generator().manual_seed(0)
FEATURES = torch.randn(2, 6, 5, 7, generator=R)
LABELS = torch.randint(0, 4, (2, 5, 7), generator=R)
LOGITS = torch.randn(2, 4, 5, 7, generator=R)

# (function, keyword arguments that are no tensors, tensor arguments)
OPS: dict[str, Any] = {
    "centers-soft": (mk.class_centers, {}, {"features": FEATURES, "assignment": LOGITS}),
    "centers-hard": (mk.class_centers, {"num_classes": 4}, {"features": FEATURES, "assignment": LABELS}),
    "similarity": (mk.center_similarity, {}, {
        "features": FEATURES, "centers": torch.randn(4, 6, generator=R), "pull_labels": LABELS}),
    "similarity-own": (mk.center_similarity, {"metric": "euclidean"}, {
        "features": FEATURES, "centers": torch.randn(2, 4, 6, generator=R)}),
    "pull": (mk.center_pull, {}, {
        "features": FEATURES, "centers": torch.randn(4, 6, generator=R), "labels": LABELS}),
}  # fmt: skip


def draw_call(draw: Draw) -> Call:
    ignore_index, classes, channels = draw.one_of(*IGNORED), draw.size(9), draw.size(20, 0)
    shape = (draw.size(2, 0), draw.size(9), draw.size(9))
    tensors = {"features": draw.values(shape[0], channels, *shape[1:])}
    if draw.one_of(False, True):
        options: dict[str, Any] = {"average": draw.one_of("mass", "area"), "return_present": True}
        if draw.one_of(False, True):
            tensors["assignment"] = draw.values(shape[0], classes, *shape[1:])
            return Call(mk.class_centers, tensors, options, ("features", "assignment"))
        tensors["assignment"] = draw.labels(classes, ignore_index, *shape)
        options.update(num_classes=classes, ignore_index=ignore_index)
        return Call(mk.class_centers, tensors, options, ("features",))
    own = draw.one_of((), (shape[0],))
    tensors["centers"] = draw.values(*own, classes, channels)
    options = {"metric": draw.one_of("cosine", "dot", "euclidean"), "scale": draw.one_of(0.5, 15.0)}
    if options["metric"] == "cosine" and draw.one_of(False, True):
        tensors["pull_labels"] = draw.labels(classes, ignore_index, *shape)
        options["ignore_index"] = ignore_index
    return Call(mk.center_similarity, tensors, options, ("features", "centers"))


def large_calls() -> Iterator[tuple[str, Call]]:
    """Several tiles of pixels and blocks of classes, none full, for `bits`."""
    rng = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        features = torch.randn(2, 130, 33, 47, generator=rng).to(dtype)
        for classes in (19, 150):
            pair = {"features": features, "centers": torch.randn(classes, 130, generator=rng).to(dtype)}
            yield f"center_similarity {classes} {dtype}", Call(mk.center_similarity, pair, {}, tuple(pair))
            soft = {"features": features, "assignment": torch.randn(2, classes, 33, 47, generator=rng).to(dtype)}
            yield f"class_centers {classes} {dtype}", Call(mk.class_centers, soft, {}, tuple(soft))


SIZED: dict[str, Any] = {  # calls on inputs of any size, for tests/kernels/test_dynamic_sizes.py
    "center_similarity": lambda x, b: mk.center_similarity(x.features, x.centers, pull_labels=x.cells, backend=b),
    "class_centers": lambda x, b: mk.class_centers(x.features, x.logits, backend=b),
    "class_centers of labels": lambda x, b: mk.class_centers(x.features, x.cells, num_classes=x.classes, backend=b),
    "center_pull": lambda x, b: mk.center_pull(x.features, x.centers, x.cells, backend=b),
}  # fmt: skip
