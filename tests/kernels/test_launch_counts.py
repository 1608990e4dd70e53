"""Launches on a GPU of small calls: there the host decides, and each launch costs it several microseconds.

Operators of ATen that launch a kernel are counted as a profile of the CPU shows them, those inside another operator
not; launches of Triton kernels are counted, not run. Counts that rise are a regression; those that fall belong here.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from aten_launches import outermost
from torch import Tensor

import metricseg_kernels as mk
from metricseg_kernels.core import checks

# forward, backward: operators of ATen and launches of Triton kernels, at most
COUNTS = {
    "contrast": ((0, 8), (1, 6)),
    "contrast, ids": ((0, 8), (1, 6)),
    "contrast, all": ((0, 8), (1, 6)),
    "contrast, weights": ((0, 8), (1, 6)),
    "contrast, bank": ((0, 8), (1, 6)),
    "margin": ((0, 6), (1, 5)),
    "nca": ((0, 8), (1, 7)),
    "cosine centers": ((0, 2), (1, 3)),
    "centers with pull": ((0, 4), (1, 3)),
    "soft class sums": ((0, 3), (0, 4)),
    "hard class sums": ((0, 2), (0, 2)),
    "focal": ((0, 2), (2, 0)),
    "cross-entropy": ((0, 2), (2, 0)),
    "cross-entropy, weights": ((0, 2), (2, 0)),
    "OHEM": ((0, 5), (2, 0)),
    "region": ((12, 2), (14, 1)),
    "region, 150 classes": ((12, 3), (14, 2)),
    "lovasz": ((48, 2), (9, 1)),
    "lovasz, 150 classes": ((48, 3), (9, 3)),
    "cross-entropy and Dice": ((16, 2), (14, 1)),
    "distill": ((0, 2), (2, 0)),
    "distill, 150 classes": ((0, 3), (2, 0)),
    "distill, js, 150 classes": ((0, 4), (2, 0)),
    "distill, map": ((0, 1), (0, 1)),
    "anchors": ((1, 4), None),
    "refine": ((0, 1), (1, 4)),
    "top-k": ((0, 2), None),
    "predict": ((0, 1), None),
    "predict, six maps": ((0, 1), None),
    "confusion": ((2, 1), None),
}


def make_calls() -> tuple[list[Tensor], dict[str, Callable[[], Tensor | tuple[Tensor, ...]]]]:
    """Return (what requires a gradient, calls by name)."""
    generator = torch.Generator().manual_seed(0)

    def classes(*shape: int) -> Tensor:
        return torch.randint(19, shape, generator=generator)

    def rows(count: int) -> Tensor:
        return torch.nn.functional.normalize(torch.randn(count, 256, generator=generator), dim=1)

    def maps(channels: int) -> Tensor:
        return torch.randn(2, channels, 32, 64, generator=generator).requires_grad_()

    anchors, labels, bank, bank_labels = rows(1024).requires_grad_(), classes(1024), rows(4096), classes(4096)
    class_weights = torch.rand(19, generator=generator) + 0.5
    weights, bank_weights = (torch.rand(count, generator=generator) + 0.5 for count in (1024, 4096))
    prototypes, prototype_labels = rows(300).requires_grad_(), classes(300)
    logits, many, features, centers = maps(19), maps(150), maps(256), rows(19).requires_grad_()
    target, cells, predicted, seed = classes(2, 128, 256), classes(2, 32, 64), classes(2, 32, 64), torch.tensor(1)
    offsets, neighbors = (torch.randn(2, k, 128, 256, generator=generator).requires_grad_() for k in (2, 9))
    coarse = torch.randn(2, 19, 16, 32, generator=generator)
    contrast, learned = (
        mk.pixel_contrast_loss,
        [anchors, prototypes, logits, many, features, centers, offsets, neighbors],
    )
    return learned, {
        "contrast": lambda: contrast(anchors, labels, backend="triton"),
        "contrast, ids": lambda: contrast(anchors, labels, anchor_ids=labels, backend="triton"),
        "contrast, all": lambda: contrast(anchors, labels, denominator="all", backend="triton"),
        "contrast, weights": lambda: contrast(
            anchors, labels, bank, bank_labels, anchor_weights=weights, contrast_weights=bank_weights, backend="triton"
        ),
        "contrast, bank": lambda: contrast(anchors, labels, bank, bank_labels, backend="triton"),
        "margin": lambda: mk.margin_contrast_loss(anchors, labels, backend="triton"),
        "nca": lambda: mk.prototype_nca_loss(
            anchors, labels, labels, prototypes, prototype_labels, backend="triton"
        ),
        "cosine centers": lambda: mk.center_similarity(features, centers, backend="triton"),
        "centers with pull": lambda: mk.center_similarity(features, centers, pull_labels=cells, backend="triton"),
        "soft class sums": lambda: mk.class_centers(features, logits, backend="triton"),
        "hard class sums": lambda: mk.class_centers(features, cells, num_classes=19, backend="triton"),
        "focal": lambda: mk.focal_loss(logits, target, backend="triton"),
        "cross-entropy": lambda: mk.cross_entropy(logits, target, backend="triton"),
        "cross-entropy, weights": lambda: mk.cross_entropy(
            logits, target, weight=class_weights, backend="triton"
        ),
        "OHEM": lambda: mk.ohem_cross_entropy(logits, target, min_kept=1000, backend="triton"),
        "distill": lambda: mk.distillation_loss(logits, coarse, target, backend="triton"),
        "distill, 150 classes": lambda: mk.distillation_loss(many, many.detach(), target, backend="triton"),
        "distill, js, 150 classes": lambda: mk.distillation_loss(
            many, many.detach(), target, kind="js", backend="triton"
        ),
        "distill, map": lambda: mk.distillation_loss(logits, coarse, target, reduction="none", backend="triton"),
        "region": lambda: mk.region_loss(logits, target, backend="triton"),
        "lovasz": lambda: mk.lovasz_loss(logits, target, backend="triton"),
        "lovasz, 150 classes": lambda: mk.lovasz_loss(many, target, backend="triton"),
        "region, 150 classes": lambda: mk.region_loss(many, target, backend="triton"),
        "cross-entropy and Dice": lambda: mk.cross_entropy_dice(logits, target, backend="triton"),
        "anchors": lambda: mk.sample_anchors(cells, predicted, seed=seed, backend="triton").index,
        "refine": lambda: mk.refine_upsample(features, offsets, neighbors, backend="triton"),
        "top-k": lambda: mk.topk_similarity(anchors.detach(), bank, 15, backend="triton")[0],
        "predict": lambda: mk.predict_labels(logits, (128, 256), backend="triton"),
        "predict, six maps": lambda: mk.predict_labels(
            [logits] * 6, (128, 256), flipped=[False, True] * 3, return_entropy=True, backend="triton"
        )[0],
        "confusion": lambda: mk.confusion_matrix(logits, target, backend="triton"),
    }  # fmt: skip


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the Triton kernels that a test asked for; none runs."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("counted without a device")
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    names: list[str] = []
    monkeypatch.setattr(checks, "validates", lambda device: False)
    monkeypatch.setattr(interpreter.InterpretedFunction, "run", lambda self, *_, **__: names.append(self.fn.__name__))
    return names


def test_small_calls_launch_no_more_than_this(launched: list[str]) -> None:
    def count(step: Callable[[], Any]) -> tuple[Any, tuple[int, int], str]:
        launched.clear()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            out = step()
        operators = list(outermost([e for e in profile.events() if e.cpu_parent is None]))
        return out, (len(operators), len(launched)), f"{dict(Counter(operators))} {launched}"

    def backward(out: Tensor | tuple[Tensor, ...]) -> Callable[[], Any]:
        upstream = torch.utils._pytree.tree_map(torch.ones_like, out)
        return lambda: torch.autograd.grad(out, learned, upstream, allow_unused=True)

    more = []
    learned, calls = make_calls()
    for name, call in calls.items():
        forward, back = COUNTS[name]
        out, *found = count(call)
        counts = [("forward", forward, *found)]
        if back is not None:
            counts.append(("backward", back, *count(backward(out))[1:]))
        for which, most, found, details in counts:
            if found[0] > most[0] or found[1] > most[1]:
                more.append(f"{name} {which}: {found}, not {most}: {details}")
    assert not more, "\n".join(more)
