"""The shapes, labels and magnitudes that every backend of the focal family is held against."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from tolerances import assert_as_good, assert_gradient, lay_out, skip_unsupported
from torch import Tensor


class Case(NamedTuple):
    id: str
    cells: tuple[int, ...]  # (h, w), of a volume (d, h, w)
    size: tuple[int, ...]  # (H, W), of a volume (D, H, W)
    batch: int = 1
    classes: int = 5
    align_corners: bool = False
    labels: str = "mixed"  # mixed (a fifth ignored), full, ignored, one (class)
    label_dtype: torch.dtype = torch.int64
    layout: str = "nchw"  # nchw, nhwc, strided
    magnitude: float = 1.0
    gamma: float = 2.0
    weighted: bool = False
    label_smoothing: float = 0.0
    ignore_index: int = 255


CASES = [
    Case("up4", (4, 6), (16, 24), batch=2, label_dtype=torch.uint8),
    Case("up4-wide", (3, 40), (12, 160), classes=3, weighted=True),
    Case("up8-tall", (9, 2), (72, 16), classes=2),
    Case("primes", (7, 11), (13, 37), classes=19, weighted=True, label_dtype=torch.int32),
    Case("primes-aligned", (7, 11), (13, 37), classes=19, align_corners=True, gamma=0.5),
    Case("aligned-up4", (5, 9), (17, 33), align_corners=True, label_smoothing=0.1, weighted=True),
    Case("identity", (9, 13), (9, 13), batch=2, classes=7, weighted=True),
    Case("identity-aligned", (9, 13), (9, 13), align_corners=True),
    Case("half-identity", (9, 13), (9, 26), classes=4),
    Case("down", (16, 24), (5, 7), classes=6, gamma=1.0),
    Case("down-up", (16, 5), (5, 23), gamma=5.0, weighted=True),
    Case("one-cell", (1, 1), (9, 5)),
    Case("one-row", (1, 8), (6, 29), align_corners=True),
    Case("one-pixel", (6, 7), (1, 1), align_corners=True, labels="full"),
    Case("two-classes", (4, 5), (16, 20), classes=2, gamma=0.0),
    Case("ade", (2, 3), (8, 12), classes=150, weighted=True, label_smoothing=0.1),
    Case("many-classes", (2, 2), (3, 5), classes=331, gamma=0.0),
    Case("ratio-33", (2, 3), (34, 99), classes=3),
    Case("ignored", (4, 6), (8, 12), labels="ignored"),
    Case("one-label", (4, 6), (8, 12), labels="one"),
    Case("ignore-0", (4, 6), (8, 12), ignore_index=0),
    Case("ignore-negative", (4, 6), (8, 12), ignore_index=-100),
    Case("channels-last", (6, 7), (24, 28), batch=2, classes=19, layout="nhwc"),
    Case("channels-last-identity", (6, 7), (6, 7), classes=19, layout="nhwc"),
    Case("strided", (6, 7), (24, 28), batch=2, layout="strided"),
    Case("tiny", (4, 6), (16, 24), magnitude=1e-4),
    Case("huge", (4, 6), (16, 24), magnitude=1e4),
    Case("huge-gamma", (4, 6), (16, 24), magnitude=1e3, gamma=0.1),
    Case("confident", (4, 6), (16, 24), magnitude=30.0, gamma=0.5, label_smoothing=0.1),
    Case("empty-batch", (4, 6), (8, 12), batch=0),
    Case("no-pixels", (4, 6), (0, 12)),
]
VOLUMES = [
    Case("volume-up2", (3, 4, 6), (6, 8, 12), batch=2, label_dtype=torch.uint8),
    Case("volume-primes", (3, 7, 11), (7, 13, 37), classes=19, weighted=True, label_dtype=torch.int32),
    Case("volume-aligned", (3, 5, 4), (9, 17, 13), align_corners=True, label_smoothing=0.1, weighted=True),
    Case("volume-identity", (5, 6, 7), (5, 6, 7), batch=2, weighted=True),
    Case("volume-slices", (4, 3, 5), (4, 12, 20), batch=2),
    Case("volume-planes", (3, 6, 7), (9, 6, 7), classes=4, gamma=0.5),
    Case("volume-down", (8, 9, 10), (3, 4, 5)),
    Case("volume-down-up", (8, 3, 4), (3, 12, 16), align_corners=True),
    Case("volume-one-plane", (1, 4, 6), (5, 8, 12)),
    Case("volume-one-slice", (4, 4, 6), (1, 8, 12), align_corners=True),
    Case("volume-one-cell", (1, 1, 1), (3, 9, 5)),
    Case("volume-ade", (2, 2, 3), (4, 8, 12), classes=150, label_smoothing=0.1, weighted=True),
    Case("volume-ratio-9", (2, 2, 3), (17, 18, 27), classes=3, gamma=0.0),
    Case("volume-ignored", (2, 4, 6), (4, 8, 12), labels="ignored"),
    Case("volume-nhwc", (3, 4, 5), (6, 8, 10), batch=2, classes=19, layout="nhwc"),
    Case("volume-nhwc-identity", (3, 4, 5), (3, 4, 5), classes=19, layout="nhwc"),
    Case("volume-strided", (3, 4, 5), (6, 8, 10), batch=2, layout="strided"),
    Case("volume-strided-identity", (3, 4, 5), (3, 4, 5), batch=2, layout="strided"),
    Case("volume-huge", (3, 4, 6), (6, 8, 12), magnitude=1e3, gamma=0.1),
    Case("volume-empty-batch", (2, 4, 6), (4, 8, 12), batch=0),
    Case("volume-no-pixels", (2, 4, 6), (0, 8, 12)),
]
NAMED = {c.id: c for c in CASES}
CASE_PARAMS = [pytest.param(c, id=c.id) for c in CASES]


def make(case: Case, dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor | None]:
    """(input, target, weight) of a case; the same numbers for every dtype up to rounding."""
    rng = torch.Generator().manual_seed(sum(map(ord, case.id)))
    logits = torch.randn(case.batch, case.classes, *case.cells, generator=rng, dtype=torch.float64) * case.magnitude
    target = torch.randint(0, case.classes, (case.batch, *case.size), generator=rng)
    if case.labels == "one":
        target.fill_(case.classes - 1)
    if case.labels == "mixed":
        target[torch.rand(target.shape, generator=rng) < 0.2] = case.ignore_index
    if case.labels == "ignored":
        target.fill_(case.ignore_index)
    weight = torch.rand(case.classes, generator=rng, dtype=torch.float64) + 0.5 if case.weighted else None
    input = lay_out(logits.to(dtype), case.layout).to(device)
    return input, target.to(case.label_dtype).to(device), None if weight is None else weight.to(device, dtype)


def options(case: Case) -> dict[str, object]:
    return {
        "gamma": case.gamma,
        "label_smoothing": case.label_smoothing,
        "ignore_index": case.ignore_index,
        "align_corners": case.align_corners,
    }


def loss_and_grad(loss_fn, input: Tensor, target: Tensor, upstream: Tensor | None = None, **kwargs):
    x = input.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    if x.stride() != input.stride():  # a strided case keeps its strides
        x = input.detach().requires_grad_()
    loss = loss_fn(x, target, **kwargs)
    loss.backward(upstream if upstream is None else upstream.to(loss))
    return loss.detach(), x.grad


def against_reference(loss_fn, case: Case, dtype: torch.dtype, backend: str, device: str, upstream_for=None, **kwargs):
    """One call on the backend, in plain PyTorch, and in fp64; each held against the last."""
    skip_unsupported(backend, dtype)
    input, target, weight = make(case, dtype, device)
    if "weight" in kwargs:
        kwargs["weight"] = weight
    wide = {k: v.double().cpu() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in kwargs.items()}
    upstream = upstream_for(target) if upstream_for else None
    wide_target = target.cpu().double() if target.is_floating_point() else target.cpu()
    truth = loss_and_grad(loss_fn, input.double().cpu(), wide_target, upstream, **wide, backend="reference")
    plain = loss_and_grad(loss_fn, input, target, upstream, **kwargs, backend="reference")
    got = loss_and_grad(loss_fn, input, target, upstream, **kwargs, backend=backend)
    assert got[0].dtype == plain[0].dtype
    assert got[1].dtype == dtype
    assert_as_good(got[0], plain[0], truth[0], dtype)
    assert_gradient(got[1], plain[1], truth[1], dtype)
    return got


# what Triton's interpreter keeps: cases in fp32, and tests
INTERPRETED = (
    "primes",
    "identity",
    "ignored",
    "channels-last",
    "up4",
    "down",
    "one-cell",
    "many-classes",
    "huge-gamma",
    "confident",
    "empty-batch",
)
INTERPRETED_TESTS = {
    "test_focal_mean",
    "test_focal_map",
    "test_sigmoid_focal_of_labels",
    "test_ohem_keeps_the_hard_pixels",
}
# cases that run in other dtypes as well, if kernels are compiled
IN_EVERY_DTYPE = {
    "ade",
    "channels-last",
    "confident",
    "down",
    "huge",
    "identity",
    "one-cell",
    "primes",
    "primes-aligned",
    "ratio-33",
    "up4",
}
