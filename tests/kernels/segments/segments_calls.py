"""Calls of every op of the segments family: fixed ones, and random ones for `fuzz`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from fuzz import IGNORED, Call, Draw

import metricseg_kernels as mk

R = torch.Generator().manual_seed(0)
EMBEDDINGS = torch.randn(2, 6, 5, 7, generator=R)
IDS = torch.randint(-1, 9, (2, 5, 7), generator=R)
LABELS = torch.randint(0, 4, (2, 5, 7), generator=R)

# (function, keyword arguments that are no tensors, tensor arguments)
OPS: dict[str, Any] = {
    "ids-kmeans": (mk.spherical_kmeans, {"grid": (2, 3)}, {
        "embeddings": EMBEDDINGS, "valid": torch.rand(2, 5, 7, generator=R) < 0.8}),
    "ids-kmeans-given": (mk.spherical_kmeans, {"num_clusters": 9, "iterations": 3}, {
        "embeddings": EMBEDDINGS, "location": torch.rand(2, 2, 5, 7, generator=R), "init": IDS}),
    "ids-kmeans-size": (mk.spherical_kmeans, {"grid": (2, 3), "size": (11, 9)}, {"embeddings": EMBEDDINGS}),
    "ids-split": (mk.split_by_label, {"capacity": 20}, {"ids": IDS, "labels": LABELS}),
    "segment-mean": (mk.segment_mean, {"num_segments": 9}, {"x": EMBEDDINGS, "ids": IDS}),
    "segment-mean-rows": (mk.segment_mean, {"num_segments": 9, "normalize": False}, {
        "x": torch.randn(40, 6, generator=R), "ids": torch.randint(-1, 9, (40,), generator=R)}),
}  # fmt: skip


def draw_call(draw: Draw) -> Call:
    op = draw.one_of("kmeans", "kmeans", "split", "mean")
    shape = (draw.size(2, 0), draw.size(9), draw.size(9))
    if op == "split":
        ignore_index, classes = draw.one_of(*IGNORED), draw.size(9)
        ids = torch.randint(-1, draw.size(9), shape, generator=draw.rng).to(draw.one_of(torch.int32, torch.int64))
        options: dict[str, Any] = {"capacity": draw.size(60), "num_classes": classes, "ignore_index": ignore_index}
        tensors = {"ids": ids, "labels": draw.labels(classes, ignore_index, *shape)}
        return Call(mk.split_by_label, tensors, options, ())
    if op == "mean":
        pixels, count = draw.one_of(shape, (shape[0] * shape[1] * shape[2],)), draw.size(30)
        ids = torch.randint(-1, count, pixels, generator=draw.rng).to(draw.one_of(torch.int32, torch.int64))
        tensors = {"x": draw.values(pixels[0], draw.size(40, 0), *pixels[1:]), "ids": ids}
        options = {"num_segments": count, "normalize": draw.one_of(False, True)}
        return Call(mk.segment_mean, tensors, options, ("x",))
    # with few channels, or interpolated without a location, pixels tie
    tensors = {"embeddings": draw.values(shape[0], draw.size(40, 3), *shape[1:])}
    resized = draw.one_of(False, False, True)
    size = (draw.size(20), draw.size(20)) if resized else shape[1:]
    options = {"iterations": draw.size(3, 0), "align_corners": draw.one_of(False, True)}
    options["size"] = size if resized else None
    location = draw.one_of(True, "given") if resized else draw.one_of(True, False, "given")
    if location == "given":
        tensors["location"] = torch.rand(shape[0], 2, *size, generator=draw.rng).to(draw.dtype)
    else:
        options["location"] = location
    if draw.one_of(False, True):
        tensors["valid"] = torch.rand(shape[0], *size, generator=draw.rng) < 0.8
    if draw.one_of(False, True):
        options["num_clusters"] = draw.size(40)
        tensors["init"] = torch.randint(-1, options["num_clusters"], (shape[0], *size), generator=draw.rng)
    else:
        options["grid"] = (draw.size(5), draw.size(5))
    return Call(mk.spherical_kmeans, tensors, options, ())


def large_calls() -> Iterator[tuple[str, Call]]:
    """Several panels of pixels and blocks of clusters, none full, for `bits`."""
    rng = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(2, 37, 33, 47, generator=rng).to(dtype)
        for grid in ((5, 5), (12, 13)):
            yield f"spherical_kmeans {grid} {dtype}", Call(mk.spherical_kmeans, {"embeddings": x}, {"grid": grid}, ())
        ids = torch.randint(-1, 300, (2, 33, 47), generator=rng)
        mean = Call(mk.segment_mean, {"x": x, "ids": ids}, {"num_segments": 300}, ("x",))
        yield f"segment_mean {dtype}", mean


SIZED: dict[str, Any] = {  # calls on inputs of any size, for tests/kernels/test_dynamic_sizes.py
    "spherical_kmeans": lambda x, b: mk.spherical_kmeans(x.features.detach(), grid=(2, 2), iterations=2, backend=b),
    "split_by_label": lambda x, b: mk.split_by_label(
        x.cells, x.cells, capacity=x.bank.shape[0], num_classes=x.classes, backend=b),
    "means of clusters": lambda x, b: mk.segment_mean(
        x.features, mk.split_by_label(
            mk.spherical_kmeans(x.features.detach(), grid=(2, 2), iterations=2, backend=b), x.cells,
            capacity=x.bank.shape[0], num_classes=x.classes, backend=b).ids, x.bank.shape[0], backend=b),
    "segment_mean": lambda x, b: mk.segment_mean(x.features, x.cells, x.bank.shape[0], backend=b),
}  # fmt: skip
