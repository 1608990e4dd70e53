"""Labels of every dtype are numbers: the truth is int64, also where an ignore_index does not fit the dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import metricseg_kernels as mk
from metricseg.layers import CCSLayer
from metricseg.losses import DiceLoss, PixelContrastLoss, PixelMemory

IGNORED = (255, -1, -100, 256 - 100, 1000, None, "auto")


def memory_rows(labels: Tensor, classes: int, ignore_index: Any, backend: str) -> Tensor:
    memory = PixelMemory(classes, 8, size=4, pixels=2)
    memory.update(features(labels), labels, ignore_index=ignore_index, seed=0)
    memory.flush()
    return memory.bank


def features(labels: Tensor, channels: int = 8) -> Tensor:
    shape = (labels.shape[0], channels, *labels.shape[1:])
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(labels.device)


# (family, call with labels [B, h, w], classes, ignore_index, backend)
CALLS: dict[str, tuple[str, Callable[..., Any]]] = {
    "cross_entropy": ("focal", lambda t, k, i, b: mk.cross_entropy(features(t, k), t, ignore_index=i, backend=b)),
    "focal_map": (
        "focal",
        lambda t, k, i, b: mk.focal_loss(features(t, k), t, ignore_index=i, reduction="none", backend=b),
    ),
    "ohem": (
        "focal",
        lambda t, k, i, b: mk.ohem_cross_entropy(features(t, k), t, thresh=1e-6, min_kept=9, ignore_index=i, backend=b),
    ),
    "sigmoid": ("focal", lambda t, k, i, b: mk.sigmoid_focal_loss(features(t, k), t, ignore_index=i, backend=b)),
    "random": (
        "anchors",
        lambda t, k, i, b: mk.sample_anchors(
            t, strategy="random", num_classes=k, min_pixels=0, ignore_index=i, seed=1, backend=b
        ),
    ),
    "boundary": (
        "anchors",
        lambda t, k, i, b: mk.sample_anchors(
            t, strategy="boundary", num_classes=k, min_pixels=0, max_samples=9, ignore_index=i, seed=1, backend=b
        ),
    ),
    "centers": (
        "centers",
        lambda t, k, i, b: mk.class_centers(features(t), t, num_classes=k, ignore_index=i, backend=b),
    ),
    "pull": (
        "centers",
        lambda t, k, i, b: mk.center_pull(features(t), torch.eye(k, 8), t, ignore_index=i, backend=b),
    ),
    "split": (
        "segments",
        lambda t, k, i, b: mk.split_by_label(
            torch.arange(20).view(4, 5).expand(t.shape), t, capacity=50, num_classes=k, ignore_index=i, backend=b
        ),
    ),
    "contrast": (
        "contrast",
        lambda t, k, i, b: mk.pixel_contrast_loss(
            features(t).permute(0, 2, 3, 1).flatten(0, 2), t.flatten(), ignore_index=-1 if isinstance(i, str) else i or 0,
            backend=b,
        ),
    ),
    "dice": ("region", lambda t, k, i, b: DiceLoss(ignore_index=i, backend=b)(features(t, k), t)),
    "lovasz": ("lovasz", lambda t, k, i, b: mk.lovasz_loss(features(t, k), t, ignore_index=i, backend=b)),
    "distill": (
        "distill",
        lambda t, k, i, b: mk.distillation_loss(features(t, k), features(t, k) ** 2, t, ignore_index=i, backend=b),
    ),
    "pixel_contrast": (
        "",
        lambda t, k, i, b: PixelContrastLoss(sampling="all", num_classes=k, ignore_index=i)(features(t), t),
    ),
    "memory": ("", memory_rows),
    "ccs": ("", lambda t, k, i, b: ccs(k, i)(features(t), t)[1]["push"]),
}  # fmt: skip


def ccs(classes: int, ignore_index: Any) -> CCSLayer:
    torch.manual_seed(0)
    return CCSLayer(8, classes, ignore_index=ignore_index, push=1.0, dice=0.0, guidance=0.0, pull=0.0)


def outcome(call: Callable[..., Any], *arguments: Any) -> Any:
    """What a call gives, or the error that it raises."""
    try:
        return call(*arguments)
    except ValueError as error:
        return type(error)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("ignore_index", IGNORED)
@pytest.mark.parametrize("classes", [171, 256])
@pytest.mark.parametrize("name", CALLS)
def test_every_dtype_is_int64(name: str, classes: int, ignore_index: Any, backend: str) -> None:
    family, call = CALLS[name]
    if not family and backend != "reference":
        pytest.skip("no kernels")
    labels = torch.randint(0, classes, (2, 4, 5), generator=torch.Generator().manual_seed(3))
    labels[0, 0, :4] = torch.tensor([156 % classes, 200 % classes, 255, 0])  # what -100, and what else wraps around to
    truth = outcome(call, labels, classes, ignore_index, backend)
    for dtype in (torch.uint8, torch.int32):
        got = outcome(call, labels.to(dtype), classes, ignore_index, backend)
        if isinstance(truth, type) or isinstance(got, type):
            assert got is truth
            continue
        for ours, theirs in zip(*((x if isinstance(x, tuple) else (x,)) for x in (got, truth)), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("ignore_index, ignored", [("auto", False), (None, False), (255, True)])
def test_more_than_255_classes_have_a_class_255(ignore_index: Any, ignored: bool) -> None:
    logits, labels = torch.zeros(1, 300, 2, 2), torch.full((1, 2, 2), 255)
    assert (mk.cross_entropy(logits, labels, ignore_index=ignore_index) == 0) == ignored
    assert (mk.sigmoid_focal_loss(logits, labels, ignore_index=ignore_index) == 0) == ignored
    centers = mk.class_centers(torch.ones(1, 3, 2, 2), labels, num_classes=300, ignore_index=ignore_index)
    assert (centers[0, 255].sum() == 0) == ignored
    chosen = mk.sample_anchors(
        labels, strategy="random", num_classes=300, min_pixels=0, ignore_index=ignore_index, seed=0
    )
    assert (chosen.count == 0) == ignored


def test_none_ignores_nothing() -> None:
    logits, labels = torch.zeros(1, 4, 2, 2), torch.full((1, 2, 2), 255, dtype=torch.uint8)
    for call in (mk.cross_entropy, mk.sigmoid_focal_loss, mk.ohem_cross_entropy):
        with pytest.raises(ValueError, match=r"4 labels that are not in \[0, 4\): for example 255"):
            call(logits, labels, ignore_index=None)


def test_labels_of_one_channel_are_labels() -> None:
    logits, labels = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    for call in (mk.cross_entropy, mk.focal_loss, mk.ohem_cross_entropy, mk.sigmoid_focal_loss):
        assert torch.equal(call(logits, labels[:, None]), call(logits, labels))
