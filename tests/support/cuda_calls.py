"""Calls of the functions of each family at the shapes of the benchmarks for a GPU, for cuda_budgets.py."""

from __future__ import annotations

from collections.abc import Callable

import torch

import metricseg_kernels as mk
from benchmarks.harness import shapes


def call_focal() -> None:
    for shape in shapes.GPU.main:
        x = torch.zeros(shape.batch, shape.classes, *shape.cells, dtype=getattr(torch, shape.dtype), requires_grad=True)
        labels = torch.zeros(shape.batch, *shape.labels, dtype=torch.uint8)
        for loss in (mk.focal_loss, mk.sigmoid_focal_loss):
            loss(x, labels, backend="cuda")
    mk.ohem_cross_entropy(x, labels, backend="cuda")


def call_anchors() -> None:
    for shape in shapes.ANCHORS_GPU:
        labels = torch.zeros(shape.batch, *shape.cells, dtype=torch.long)
        mk.sample_anchors(labels, labels, max_samples=1024, num_classes=shape.classes, seed=1, backend="cuda")
        x = torch.zeros(
            shape.batch, shape.channels, *shape.cells, dtype=getattr(torch, shape.dtype), requires_grad=True
        )
        mk.gather_pixels(x, torch.arange(1024), backend="cuda").sum().backward()


def call_segments() -> None:
    for shape in shapes.CLUSTERS_GPU:
        x = torch.zeros(
            shape.batch, shape.channels, *shape.cells, dtype=getattr(torch, shape.dtype), requires_grad=True
        )
        ids = torch.zeros(shape.batch, *shape.cells, dtype=torch.long)
        mk.spherical_kmeans(x, grid=(5, 5), iterations=1, backend="cuda")
        mk.split_by_label(ids, ids, capacity=shape.batch * 25 * shape.classes, backend="cuda")
        mk.segment_mean(x, ids, shape.batch * 25, backend="cuda").sum().backward()


def call_refine() -> None:
    for shape in shapes.REFINED_GPU:
        x = torch.zeros(
            shape.batch, shape.channels, *shape.cells, dtype=getattr(torch, shape.dtype), requires_grad=True
        )
        offsets = torch.zeros(shape.batch, 2, *shape.labels, requires_grad=True)
        neighbors = torch.zeros(shape.batch, 9, *shape.labels, requires_grad=True)
        mk.refine_upsample(x, offsets, neighbors, backend="cuda").sum().backward()


def call_predict() -> None:
    for shape in shapes.GPU.main:
        dtype = getattr(torch, shape.dtype)
        x = torch.zeros(shape.batch, shape.classes, *shape.cells, dtype=dtype)
        target = torch.zeros(shape.batch, *shape.labels, dtype=torch.uint8)
        for maps in ([x], [x] * 6):
            mk.predict_labels(maps, shape.labels, backend="cuda")
            mk.confusion_matrix(maps, target, backend="cuda")


def call_retrieval() -> None:
    for shape in shapes.BANKS:
        sizes, dtype = ((n, shape.channels) for n in (shape.queries, shape.rows)), getattr(torch, shape.dtype)
        queries, bank = (torch.zeros(size, dtype=dtype) for size in sizes)
        mk.topk_similarity(queries, bank, shape.k, backend="cuda")


def call_region() -> None:
    for shape in shapes.GPU.main:
        x = torch.zeros(shape.batch, shape.classes, *shape.cells, dtype=getattr(torch, shape.dtype), requires_grad=True)
        labels = torch.zeros(shape.batch, *shape.labels, dtype=torch.uint8)
        mk.cross_entropy_dice(x, labels, backend="cuda").backward()
        mk.region_loss(x, labels, activation="sigmoid", backend="cuda").backward()
        soft = torch.zeros(()).expand(shape.batch, shape.classes, *shape.labels)
        mk.region_loss(x, soft, backend="cuda").backward()


def call_distill() -> None:
    for shape in shapes.GPU.main:
        dtype = getattr(torch, shape.dtype)
        student = torch.zeros(shape.batch, shape.classes, *shape.cells, dtype=dtype, requires_grad=True)
        teacher = torch.zeros(shape.batch, shape.classes, *(n // 2 for n in shape.cells), dtype=dtype)
        labels = torch.zeros(shape.batch, *shape.labels, dtype=torch.uint8)
        mk.distillation_loss(student, teacher, labels, backend="cuda").backward()
        mk.distillation_loss(student.detach(), teacher, labels, backend="cuda")


def call_contrast() -> None:
    for shape in (*shapes.CONTRAST_GPU.main, *shapes.CONTRAST_GPU.euclidean, *shapes.CONTRAST_GPU.segments):
        torch.set_float32_matmul_precision(shape.precision)
        x = torch.zeros(shape.anchors, shape.dim, dtype=getattr(torch, shape.dtype), requires_grad=True)
        labels = torch.zeros(shape.anchors, dtype=torch.long)
        bank = () if shape.bank is None else (x.new_zeros(shape.bank, shape.dim), labels.new_zeros(shape.bank))
        for loss in (mk.pixel_contrast_loss, mk.margin_contrast_loss):
            loss(x, labels, *bank, backend="cuda").backward()


def call_centers() -> None:
    for shape in (*shapes.CENTERS_GPU.main, *shapes.CENTERS_GPU.side):
        dtype = getattr(torch, shape.dtype)
        x = torch.zeros(shape.batch, shape.channels, *shape.cells, dtype=dtype, requires_grad=True)
        own = (shape.batch,) * shape.own
        centers = torch.zeros(*own, shape.classes, shape.channels, dtype=dtype, requires_grad=True)
        logits = torch.zeros(shape.batch, shape.classes, *shape.cells, dtype=dtype, requires_grad=True)
        labels = torch.zeros(shape.batch, *shape.cells, dtype=torch.long)
        similarity, pull = mk.center_similarity(x, centers, pull_labels=labels, backend="cuda")
        (similarity.sum() + pull).backward()
        mk.class_centers(x, logits, backend="cuda").sum().backward()
        mk.class_centers(x, labels, num_classes=shape.classes, backend="cuda").sum().backward()


CALLS: dict[str, Callable[[], None]] = {
    "focal": call_focal, "anchors": call_anchors, "contrast": call_contrast, "centers": call_centers, "segments": call_segments, "refine": call_refine,
    "predict": call_predict, "distill": call_distill, "region": call_region, "retrieval": call_retrieval,
}  # fmt: skip
