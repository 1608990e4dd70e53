"""Every op under torch.compile with dynamic shapes: one graph serves all sizes of batch, cells, labels and rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import metricseg_kernels as mk


class Sizes(NamedTuple):
    """No two alike, and none a multiple of another: an equality that held for one would be taken for a rule."""

    batch: int
    cells: tuple[int, int]
    labels: tuple[int, int]
    rows: int
    bank: int


SIZES = Sizes(3, (7, 11), (13, 19), 23, 37), Sizes(4, (9, 10), (26, 15), 31, 29)
CLASSES, CHANNELS = 5, 8


class Inputs(NamedTuple):
    logits: Tensor
    features: Tensor
    target: Tensor
    cells: Tensor  # labels of the cells
    rows: Tensor
    bank: Tensor
    row_labels: Tensor
    bank_labels: Tensor


def make(sizes: Sizes, device: str) -> Inputs:
    rng = torch.Generator().manual_seed(sizes.rows)
    normal = lambda *shape: torch.randn(shape, generator=rng).to(device)  # noqa: E731
    labels = lambda *shape: torch.randint(CLASSES, shape, generator=rng).to(device)  # noqa: E731
    batch, cells, size, rows, bank = sizes
    return Inputs(
        normal(batch, CLASSES, *cells), normal(batch, CHANNELS, *cells), labels(batch, *size), labels(batch, *cells),
        normal(rows, CHANNELS), normal(bank, CHANNELS), labels(rows), labels(bank),
    )  # fmt: skip


def size_of(x: Inputs) -> tuple[int, int]:
    return x.target.shape[1], x.target.shape[2]


CENTERS = torch.randn(CLASSES, CHANNELS, generator=torch.Generator().manual_seed(0))
CALLS: dict[tuple[str, str], Callable[[Inputs, str], object]] = {
    ("focal", "cross_entropy"): lambda x, b: mk.cross_entropy(x.logits, x.target, backend=b),
    ("focal", "focal_loss"): lambda x, b: mk.focal_loss(x.logits, x.target, reduction="none", backend=b),
    ("focal", "sigmoid_focal_loss"): lambda x, b: mk.sigmoid_focal_loss(x.logits, x.target, backend=b),
    ("focal", "ohem_cross_entropy"): lambda x, b: mk.ohem_cross_entropy(x.logits, x.target, min_kept=20, backend=b),
    ("focal", "top k"): lambda x, b: mk.ohem_cross_entropy(x.logits, x.target, top_k_percent=0.3, backend=b),
    ("region", "region_loss"): lambda x, b: mk.region_loss(x.logits, x.target, backend=b),
    ("region", "cross_entropy_dice"): lambda x, b: mk.cross_entropy_dice(x.logits, x.target, per_image=True, backend=b),
    ("region", "focal_dice"): lambda x, b: mk.focal_dice(x.logits, x.target, backend=b),
    ("lovasz", "lovasz_loss"): lambda x, b: mk.lovasz_loss(x.logits, x.target, backend=b),
    ("distill", "distillation_loss"): lambda x, b: mk.distillation_loss(
        x.logits, x.logits[..., :-2].detach(), x.target, backend=b),
    ("distill", "distillation of a size"): lambda x, b: mk.distillation_loss(
        x.logits, 2 * x.logits, size_of(x), backend=b),
    ("predict", "predict_labels"): lambda x, b: mk.predict_labels(
        x.logits, size_of(x), return_confidence=True, backend=b),
    ("predict", "predict_labels of maps"): lambda x, b: mk.predict_labels(
        [x.logits, x.logits[..., 1:]], size_of(x), backend=b),
    ("predict", "confusion_matrix"): lambda x, b: mk.confusion_matrix(x.logits, x.target, backend=b),
    ("refine", "refine_upsample"): lambda x, b: mk.refine_upsample(x.features, x.features[:, :2], backend=b),
    ("centers", "center_similarity"): lambda x, b: mk.center_similarity(
        x.features, CENTERS.to(x.rows.device), pull_labels=x.cells, backend=b),
    ("centers", "class_centers"): lambda x, b: mk.class_centers(x.features, x.logits, backend=b),
    ("centers", "class_centers of labels"): lambda x, b: mk.class_centers(
        x.features, x.cells, num_classes=CLASSES, backend=b),
    ("centers", "center_pull"): lambda x, b: mk.center_pull(x.features, CENTERS.to(x.rows.device), x.cells, backend=b),
    ("contrast", "pixel_contrast_loss"): lambda x, b: mk.pixel_contrast_loss(x.rows, x.row_labels, backend=b),
    ("contrast", "pixel_contrast_loss of two sets"): lambda x, b: mk.pixel_contrast_loss(
        x.rows, x.row_labels, x.bank, x.bank_labels, contrast_weights=x.bank[:, 0].detach().abs(), backend=b),
    ("contrast", "margin_contrast_loss"): lambda x, b: mk.margin_contrast_loss(
        x.rows, x.row_labels, x.bank, x.bank_labels, backend=b),
    ("contrast", "prototype_nca_loss"): lambda x, b: mk.prototype_nca_loss(
        x.rows, x.row_labels, x.row_labels, x.bank, x.bank_labels, backend=b),
    ("anchors", "sample_anchors"): lambda x, b: mk.sample_anchors(
        x.cells, x.logits.argmax(1), max_samples=x.rows.shape[0], num_classes=CLASSES, seed=3, backend=b),
    ("anchors", "gather_pixels"): lambda x, b: mk.gather_pixels(x.features, x.row_labels, backend=b),
    ("retrieval", "topk_similarity"): lambda x, b: mk.topk_similarity(x.rows.detach(), x.bank.detach(), 3, backend=b),
    ("retrieval", "knn_vote"): lambda x, b: mk.knn_vote(
        x.rows.detach(), x.bank.detach(), x.bank_labels, k=3, backend=b),
    ("segments", "spherical_kmeans"): lambda x, b: mk.spherical_kmeans(
        x.features.detach(), grid=(2, 2), iterations=2, backend=b),
    ("segments", "split_by_label"): lambda x, b: mk.split_by_label(
        x.cells, x.cells, capacity=x.bank.shape[0], num_classes=CLASSES, backend=b),
    ("segments", "segment_mean"): lambda x, b: mk.segment_mean(x.features, x.cells, x.bank.shape[0], backend=b),
}  # fmt: skip


def family_of(params: dict[str, str]) -> str:
    return params["family"]


@pytest.mark.kernels
@pytest.mark.parametrize("family, op", CALLS)
@torch._dynamo.config.patch(error_on_recompile=True)
def test_compile_once_for_all_sizes(family: str, op: str, backend: str, device: str) -> None:
    torch._dynamo.reset()
    call = CALLS[family, op]
    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    for sizes in SIZES:
        results = []
        for function in (compiled, call):
            inputs = make(sizes, device)
            leaves = [t.requires_grad_() for t in (inputs.logits, inputs.features, inputs.rows, inputs.bank)]
            found = function(inputs, backend)
            found = [found] if isinstance(found, Tensor) else list(found)
            learning = [t for t in found if t.requires_grad]
            loss = sum(t.sin().sum() for t in learning)
            grads = torch.autograd.grad(loss, leaves, allow_unused=True) if learning else ()
            results.append([*found, *grads])
        for ours, eager in zip(*results, strict=True):
            torch.testing.assert_close(ours, eager)
