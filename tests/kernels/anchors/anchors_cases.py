"""The maps that the anchors family is held against, its choice written out as loops, and its backends."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

import pytest
import torch
from tolerances import lay_out
from torch import Tensor

STRATEGIES = ("hard", "random", "semi_hard", "boundary")


class Case(NamedTuple):
    id: str
    shape: tuple[int, int, int]  # [B, h, w]
    classes: int = 5
    max_samples: int = 64
    max_views: int = 9
    min_pixels: int | None = None
    labels: str = "regions"  # regions, noise, ignored, one (class)
    dtype: torch.dtype = torch.int64
    ignore_index: int = 255
    num_classes: int | None = 0  # 0: as many as there are; None: the default
    layout: str = "plain"  # plain, strided
    wrong: float = 0.3  # share of pixels that the prediction gets wrong


CASES = [
    Case("even", (2, 16, 24)),
    Case("primes", (3, 13, 29), classes=7, max_samples=101, max_views=11, dtype=torch.uint8),
    Case("noise", (2, 11, 17), labels="noise", max_views=5, dtype=torch.int32),
    Case("one-row", (2, 1, 67), labels="noise"),
    Case("one-column", (1, 97, 1), labels="noise", max_views=3),
    Case("one-pixel", (3, 1, 1), min_pixels=0),
    Case("one-class", (2, 9, 13), labels="one"),
    Case("one-image", (1, 31, 37), classes=19, max_samples=1024, max_views=100, min_pixels=10),
    Case("all-right", (2, 12, 15), wrong=0.0),
    Case("all-wrong", (2, 12, 15), wrong=1.0),
    Case("few-wrong", (2, 12, 15), wrong=0.02, max_views=12),
    Case("few-right", (2, 12, 15), wrong=0.98, max_views=12),
    Case("everything", (2, 9, 11), max_samples=400, max_views=200, min_pixels=0),
    Case("small-slots", (2, 9, 11), labels="noise", classes=40, max_samples=300, max_views=50, min_pixels=0),
    Case("more-slots-than-samples", (4, 9, 14), labels="noise", classes=12, max_samples=17, min_pixels=2),
    Case("one-sample", (2, 9, 14), max_samples=1, max_views=1),
    Case("ignored", (2, 8, 9), labels="ignored"),
    Case("no-slot", (2, 8, 9), min_pixels=10_000),
    Case("ignore-0", (2, 16, 24), ignore_index=0),
    Case("ignore-negative", (2, 16, 24), ignore_index=-100, dtype=torch.int32),
    Case("default-capacity", (2, 16, 24), num_classes=None),
    Case("large-capacity", (2, 16, 24), num_classes=65536),
    Case("strided", (2, 16, 24), layout="strided"),
    Case("empty-batch", (0, 8, 9)),
    Case("no-rows", (2, 0, 9)),
]
NAMED = {c.id: c for c in CASES}
# of which cells find too few candidates, or too many, if limits are off
UNLUCKY = [
    Case("large", (2, 24, 40), classes=2, max_samples=90, max_views=30),
    Case("one-class", (1, 20, 50), classes=1, labels="one", max_samples=200, max_views=150),
]
# Triton's interpreter: few cases and tests; the others run compiled (ttsem_plugin.py)
INTERPRETED = ("noise", "more-slots-than-samples", "no-rows")
INTERPRETED_TESTS = {
    "test_the_same_choice_on_every_backend", "test_bad_luck_is_repaired", "test_label_out_of_range",
    "test_one_pixel_many_times", "test_an_index_out_of_range", "test_nan_stays_in_its_pixel", "test_empty_maps",
}  # fmt: skip
# Triton kernels compiled: cases in dtypes other than fp32
IN_EVERY_DTYPE = {"primes", "channels-last"}


def make(case: Case, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """(labels, predictions, confidence) of a case."""
    rng = torch.Generator().manual_seed(sum(map(ord, case.id)))
    batch, height, width = case.shape
    if case.labels == "regions":
        coarse = torch.randint(case.classes, (batch, height // 4 + 1, width // 4 + 1), generator=rng)
        labels = coarse.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, :height, :width].contiguous()
    else:
        labels = torch.randint(case.classes, case.shape, generator=rng)
    if case.labels == "one":
        labels.fill_(case.classes - 1)
    other = torch.randint(case.classes, case.shape, generator=rng)
    predictions = torch.where(torch.rand(case.shape, generator=rng) < case.wrong, other, labels)
    labels[torch.rand(case.shape, generator=rng) < (1.0 if case.labels == "ignored" else 0.1)] = case.ignore_index
    confidence = torch.rand(case.shape, generator=rng)
    if case.layout == "strided":
        labels, predictions, confidence = (
            torch.stack([x, x], -1).transpose(1, 2).contiguous().transpose(1, 2)[..., 0]
            for x in (labels, predictions, confidence)
        )
    return labels.to(case.dtype).to(device), predictions.to(device), confidence.to(device)


def arguments(case: Case, strategy: str, confidence: Tensor) -> dict[str, Any]:
    names = ("max_samples", "max_views", "min_pixels", "ignore_index")
    capacity = case.classes if case.num_classes == 0 else case.num_classes
    return {
        **{n: getattr(case, n) for n in names},
        "num_classes": capacity,
        "strategy": strategy,
        "confidence": confidence,
    }


def slots_of(case: Case, labels: Tensor) -> dict[tuple[int, int], list[int]]:
    """The pixels of every slot, by (image, class), in loops."""
    slots: dict[tuple[int, int], list[int]] = defaultdict(list)
    _, height, width = case.shape
    for i, label in enumerate(labels.flatten().tolist()):
        if label != case.ignore_index:
            slots[i // (height * width), label].append(i)
    least = case.max_views if case.min_pixels is None else case.min_pixels
    return {slot: slots[slot] for slot in sorted(slots) if len(slots[slot]) > least}


def published_quota(hard: int, easy: int, views: int) -> tuple[int, int]:
    """ContrastiveSeg's three cases; where a slot has fewer pixels than views, all of them."""
    if hard + easy <= views:
        return hard, easy
    if hard >= views / 2 and easy >= views / 2:
        return views // 2, views - views // 2
    return (views - easy, easy) if hard >= views / 2 else (hard, views - hard)


FEATURES = [
    pytest.param((2, 5, 3, 4), "nchw", id="small"),
    pytest.param((3, 19, 7, 11), "nchw", id="primes"),
    pytest.param((2, 33, 6, 5), "nhwc", id="channels-last"),
    pytest.param((2, 8, 6, 5), "strided", id="strided"),
    pytest.param((1, 1, 4, 9), "nchw", id="one-channel"),
    pytest.param((2, 300, 2, 3), "nchw", id="many-channels"),
]


def make_features(shape: tuple[int, ...], layout: str, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """(features, index): duplicates, unused rows, and a pixel of norm 0 among them."""
    rng = torch.Generator().manual_seed(sum(shape))
    features = torch.randn(shape, generator=rng, dtype=torch.float64)
    features[-1, :, 0, 0] = 0.0
    pixels = shape[0] * shape[2] * shape[3]
    index = torch.randint(pixels, (37,), generator=rng)
    index[3:6] = index[20]
    index[7] = index[30] = pixels - shape[2] * shape[3]
    index[[0, 11, 36]] = -1
    return lay_out(features.to(dtype), layout).to(device), index.to(device)
