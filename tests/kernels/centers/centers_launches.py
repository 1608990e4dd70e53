"""Launches of users of the centers family.

What decides a kernel is crossed in pairs: any two values of two axes of a job occur together in one of its calls.
Channels are a run-time number, of which a kernel knows no more than whether 16 divides it: calls take turns.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from launches import ARITHMETIC, Call, make_maps, pairs

LAYOUTS = ("nchw", "nhwc", "strided")
WANTED = ("both", "features", "other")  # gradients, other than of the features: of centers or logits
SIZES = {"even": (8, 128, 256), "odd": (2, 65, 129)}  # [B, h, w]: 16 divides the pixels, or not
COMMON = {"classes": (150, 19, 847, 2), "dtype": tuple(ARITHMETIC), "layout": LAYOUTS, "size": tuple(SIZES)}
SIMILARITY = {"upstream": ("nchw", "nhwc", "expanded"), "centers": ("shared", "own"), "wanted": WANTED}
LABELS = {"labels": ("uint8", "int32", "int64")}
JOBS: dict[str, dict[str, tuple[Any, ...]]] = {
    "logits": COMMON | SIMILARITY | {"metric": ("cosine", "dot", "euclidean")},
    "pull": COMMON | SIMILARITY | LABELS,
    "soft": COMMON | {"assignment": LAYOUTS, "wanted": WANTED, "average": ("mass", "area")},
    "hard": COMMON | LABELS,
}
CHANNELS = (256, 64, 512, 32, 128, 96)


def calls() -> Iterator[Call]:
    channels = itertools.cycle(CHANNELS)
    for job, axes in JOBS.items():
        for choice in pairs(axes):
            yield make_call(job, next(channels), choice)
    few = {"classes": 19, "layout": "nchw", "size": "even"}
    for dtype in ("tf32", "fp32", "fp64"):  # cosines of a pull, summed over classes
        yield make_call("hard", 1, few | {"dtype": dtype, "labels": "int64"})
    yield make_call("soft", 2048, few | {"dtype": "bf16", "assignment": "nchw", "wanted": "both"})


def make_call(job: str, channels: int, choice: dict[str, Any]) -> Call:
    _, precision, tensor_cores, may_spill = ARITHMETIC[choice["dtype"]]
    launch = launch_similarity if job in ("logits", "pull") else launch_sums
    run = partial(launch, channels, **choice | {"size": SIZES[choice["size"]]})
    return Call("-".join(map(str, (job, channels, *choice.values()))), run, precision, may_spill, tensor_cores)


def launch_similarity(
    channels: int,
    size: tuple[int, int, int],
    classes: int,
    dtype: str,
    layout: str,
    upstream: str,
    centers: str,
    wanted: str,
    metric: str = "cosine",
    labels: str | None = None,
    scale: float = 15.0,
    ignore_index: int = 255,
) -> None:
    from metricseg_kernels.centers import folding, op

    (batch, height, width), storage = size, ARITHMETIC[dtype][0]
    features = make_maps((batch, channels, height, width), storage, layout)
    images = (batch,) if centers == "own" else ()
    given = make_maps((*images, classes, channels), storage)
    weights, bias = folding._forward(given, metric, scale, "triton")
    folding._backward(weights, bias if metric == "euclidean" else None, given, metric, scale, "triton")
    bias = bias if metric == "euclidean" else None
    pull = None if labels is None else make_maps(size, getattr(torch, labels))
    scalars = (metric, scale, ignore_index)
    out = op._similarity(features, weights, bias, pull, *scalars, "pull_labels", "triton")
    target, norms = map(op.none_if_empty, (out.target_similarity, out.norms))
    grad_logits = make_maps(out.logits.shape, storage, upstream)
    grad_pull = (None, None) if pull is None else (out.pull, out.pull_stats)
    op._similarity_backward(grad_logits, *grad_pull, features, weights, pull, norms, *scalars, out.logits, target,
                            wanted != "other", wanted != "features", "triton")  # fmt: skip


def launch_sums(
    channels: int,
    size: tuple[int, int, int],
    classes: int,
    dtype: str,
    layout: str,
    assignment: str = "nchw",
    labels: str | None = None,
    wanted: str = "features",
    average: str = "mass",
    ignore_index: int = 255,
) -> None:
    from metricseg_kernels.centers import means

    (batch, height, width), storage = size, ARITHMETIC[dtype][0]
    features = make_maps((batch, channels, height, width), storage, layout)
    if labels is None:
        membership = make_maps((batch, classes, height, width), storage, assignment)
    else:
        membership = make_maps(size, getattr(torch, labels))
    by_mass = average == "mass"
    out = means._forward(features, membership, classes, ignore_index, by_mass, "assignment", "triton")
    kept = (out.kept if out.kept.ndim > 1 else out.centers) if labels is None and by_mass else None
    means._backward(out.centers, kept, out.totals, features, membership, ignore_index, wanted != "other",
                    wanted != "features", "triton")  # fmt: skip


def launch_sizes(sizes: list[tuple[int, int, int]]) -> None:
    """Each size with a scale and an ignore_index of its own."""
    similarity = {"upstream": "nchw", "centers": "shared", "labels": "uint8"}
    for i, size in enumerate(sizes):
        few = {"classes": 19, "dtype": "bf16", "wanted": "both", "ignore_index": 255 - i}
        launch_similarity(256, size, layout="nchw", scale=15.0 + i, **similarity, **few)
        launch_sums(256, size, layout="nhwc", **few)
