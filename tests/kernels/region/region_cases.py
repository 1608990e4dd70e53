"""The shapes, targets and options that every backend of the region family is held against."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from gradients import loss_and_grad, widen
from tolerances import assert_as_good, assert_gradient, lay_out, skip_unsupported
from torch import Tensor


class Case(NamedTuple):
    id: str
    cells: tuple[int, ...]  # (h, w), of a volume (d, h, w)
    size: tuple[int, ...]  # (H, W), of a volume (D, H, W)
    batch: int = 2
    classes: int = 5
    options: dict[str, Any] = {}  # noqa: RUF012 (of region_loss; read only)
    labels: str = "mixed"  # mixed (a fifth ignored), full, ignored, absent (of the last class)
    label_dtype: torch.dtype = torch.int64
    soft: bool = False
    weighted: bool = False
    layout: str = "nchw"  # nchw, nhwc, strided
    magnitude: float = 1.0
    ignore_index: int = 255


TVERSKY = {"form": "tversky", "alpha": 0.3, "beta": 0.8}
CASES = [
    Case("up4", (4, 6), (16, 24), label_dtype=torch.uint8),
    Case("up4-wide", (3, 40), (12, 160), classes=3, weighted=True, options={"form": "jaccard"}),
    Case("primes", (7, 11), (13, 37), classes=19, weighted=True, label_dtype=torch.int32, options=TVERSKY),
    Case("primes-aligned", (7, 11), (13, 37), classes=19, options={"align_corners": True, "log": True}),
    Case("focal-tversky", (5, 9), (17, 33), options={**TVERSKY, "exponent": 0.75, "per_image": True}),
    Case("images", (5, 9), (20, 36), batch=3, options={"per_image": True, "average": "present", "smooth": 0.0}),
    Case("identity", (9, 13), (9, 13), classes=7, weighted=True, options={"label_smoothing": 0.1}),
    Case("identity-images", (9, 13), (9, 13), options={"per_image": True, "align_corners": True}),
    Case("half-identity", (9, 13), (9, 26), classes=4, options={"form": "jaccard", "log": True, "exponent": 0.3}),
    Case("down", (16, 24), (5, 7), classes=6, options={"smooth": 0.0}),
    Case("one-cell", (1, 1), (9, 5), options={"label_smoothing": 1.0}),
    Case("one-pixel", (6, 7), (1, 1), labels="full", options={"align_corners": True}),
    Case("two-classes", (4, 5), (16, 20), classes=2),
    Case("ade", (2, 3), (8, 12), classes=150, weighted=True),
    Case("many-classes", (2, 2), (3, 5), classes=331, options={"average": "present", "smooth": 0.0}, ignore_index=-1),
    Case("ratio-32", (2, 3), (64, 96), classes=3),
    Case("ignored", (4, 6), (8, 12), labels="ignored"),
    Case("ignored-no-smooth", (4, 6), (8, 12), labels="ignored",
         options={"smooth": 0.0, "exponent": 0.5, "label_smoothing": 0.1}),
    Case("ignored-log", (4, 6), (8, 12), labels="ignored", options={"smooth": 0.0, "log": True, "per_image": True}),
    Case("absent", (4, 6), (8, 12), labels="absent", options={"average": "present", "smooth": 0.0}),
    Case("absent-log", (4, 6), (8, 12), labels="absent", options={"smooth": 0.0, "log": True}),
    Case("ignore-0", (4, 6), (8, 12), ignore_index=0),
    Case("ignore-negative", (4, 6), (8, 12), ignore_index=-100),
    Case("channels-last", (6, 7), (24, 28), classes=19, layout="nhwc"),
    Case("channels-last-identity", (6, 7), (6, 7), classes=19, layout="nhwc"),
    Case("strided", (6, 7), (24, 28), layout="strided"),
    Case("tiny", (4, 6), (16, 24), magnitude=1e-4),
    Case("huge", (4, 6), (16, 24), magnitude=100.0),
    Case("confident", (4, 6), (16, 24), magnitude=30.0),
    Case("soft", (5, 9), (17, 33), soft=True),
    Case("soft-identity", (6, 7), (6, 7), classes=3, soft=True, layout="nhwc", options={"form": "jaccard"}),
    Case("soft-ade", (2, 3), (8, 12), classes=150, soft=True, options={"label_smoothing": 0.2, **TVERSKY}),
    Case("sigmoid", (5, 9), (17, 33), options={"activation": "sigmoid", "label_smoothing": 0.1}),
    Case("sigmoid-soft", (5, 9), (20, 36), soft=True, options={"activation": "sigmoid", "per_image": True}),
    Case("sigmoid-huge", (5, 9), (20, 36), magnitude=1e3, options={"activation": "sigmoid"}),
    Case("mask", (5, 9), (20, 36), classes=1, options={"activation": "sigmoid"}),
    Case("mask-soft", (7, 3), (7, 3), classes=1, soft=True, options={"activation": "sigmoid", "smooth": 0.0}),
    Case("empty-batch", (4, 6), (8, 12), batch=0),
    Case("empty-batch-images", (4, 6), (8, 12), batch=0, options={"per_image": True}),
    Case("no-pixels", (4, 6), (0, 12)),
]  # fmt: skip
VOLUMES = [
    Case("volume-up2", (3, 4, 6), (6, 8, 12), label_dtype=torch.uint8),
    Case("volume-primes", (3, 7, 11), (7, 13, 37), classes=19, weighted=True, label_dtype=torch.int32, options=TVERSKY),
    Case("volume-aligned", (3, 5, 4), (9, 17, 13), options={"align_corners": True, "log": True}),
    Case("volume-images", (3, 5, 4), (6, 10, 8), batch=3, options={"per_image": True, "average": "present"}),
    Case("volume-identity", (5, 6, 7), (5, 6, 7), weighted=True, options={"label_smoothing": 0.1}),
    Case("volume-identity-images", (5, 6, 7), (5, 6, 7), options={"per_image": True}),
    Case("volume-slices", (4, 3, 5), (4, 12, 20), options={"form": "jaccard"}),
    Case("volume-planes", (3, 6, 7), (9, 6, 7), classes=4),
    Case("volume-down", (8, 9, 10), (3, 4, 5), options={"smooth": 0.0}),
    Case("volume-ignored", (2, 4, 6), (4, 8, 12), labels="ignored"),
    Case("volume-strided", (3, 4, 5), (6, 8, 10), layout="strided"),
    Case("volume-strided-identity", (3, 4, 5), (3, 4, 5), layout="strided"),
    Case("volume-nhwc", (3, 4, 5), (6, 8, 10), classes=19, layout="nhwc"),
    Case("volume-soft", (3, 5, 4), (7, 13, 11), soft=True),
    Case("volume-soft-identity", (3, 4, 5), (3, 4, 5), classes=3, soft=True, layout="nhwc"),
    Case("volume-sigmoid", (3, 5, 4), (6, 10, 8), options={"activation": "sigmoid"}),
    Case("volume-sigmoid-soft", (3, 5, 4), (6, 10, 8), soft=True, options={"activation": "sigmoid", "per_image": True}),
    Case("volume-mask", (3, 5, 4), (6, 10, 8), classes=1, options={"activation": "sigmoid"}),
    Case("volume-empty-batch", (2, 4, 6), (4, 8, 12), batch=0),
]  # fmt: skip
NAMED = {c.id: c for c in CASES}
CASE_PARAMS = [pytest.param(c, id=c.id) for c in CASES]
# with a term of pixels as well: labels and softmax
LABELED = [pytest.param(c, id=c.id) for c in CASES if not c.soft and "activation" not in c.options]


def make(case: Case, dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[Tensor, Tensor, dict[str, Any]]:
    """(input, target, options) of a case; the same numbers for every dtype up to rounding."""
    rng = torch.Generator().manual_seed(sum(map(ord, case.id)))
    pixels = (case.batch, *case.size)
    input = case.magnitude * torch.randn(case.batch, case.classes, *case.cells, generator=rng, dtype=torch.float64)
    ignored = (
        torch.rand(pixels, generator=rng) < {"mixed": 0.2, "absent": 0.1, "full": 0.0, "ignored": 1.0}[case.labels]
    )
    if case.soft:
        target = torch.rand(case.batch, case.classes, *case.size, generator=rng, dtype=torch.float64).to(dtype)
        target[:, 0][ignored] = case.ignore_index
    else:
        labels = max(case.classes, 2) - (case.labels == "absent")
        target = torch.randint(0, labels, pixels, generator=rng)
        target = target.where(~ignored, case.ignore_index).to(case.label_dtype)
    options = {"ignore_index": case.ignore_index, **case.options}
    if case.weighted:
        options["weight"] = (torch.rand(case.classes, generator=rng, dtype=torch.float64) + 0.5).to(device, dtype)
    return lay_out(input.to(dtype), case.layout).to(device), target.to(device), options


def against_reference(function, case: Case, dtype: torch.dtype, backend: str, device: str, **more):
    """One call on the backend, in plain PyTorch, and in fp64; each held against the last."""
    skip_unsupported(backend, dtype)
    input, target, options = make(case, dtype, device)
    options = {n: v for n, v in options.items() if n in function.__kwdefaults__} | more
    wide = {n: widen(v) for n, v in options.items()}
    truth = loss_and_grad(function, widen(input), widen(target).cpu(), **wide, backend="reference")
    plain = loss_and_grad(function, input, target, **options, backend="reference")
    got = loss_and_grad(function, input, target, **options, backend=backend)
    assert got[0].dtype == plain[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert got[1].dtype == dtype
    assert_as_good(got[0], plain[0], truth[0], dtype)
    assert_gradient(got[1], plain[1], truth[1], dtype)
    assert got[0].isfinite() and got[1].isfinite().all()
    return got


# what Triton's interpreter keeps: cases in fp32, and tests
INTERPRETED = ("up4", "primes", "ade", "soft", "sigmoid-soft", "mask", "ignored-no-smooth", "empty-batch-images")
INTERPRETED_TESTS = {
    "test_region_loss", "test_with_pixels",
    "test_ignored_pixels_may_hold_anything", "test_a_mask_is_a_soft_target_of_one_class",
    "test_bad_targets_that_may_not_be_looked_at_give_nan", "test_double_backward_says_what_to_do",
    "test_margins_and_poison", "test_no_gradient_is_made_without_need", "test_gradient_has_the_inputs_memory_format",
    "test_loss_scaling_survives_half_precision", "test_long_columns_keep_their_digits",
}  # fmt: skip
# cases that run in other dtypes as well, if kernels are compiled
IN_EVERY_DTYPE = {
    "ade", "channels-last", "confident", "down", "focal-tversky", "huge", "identity", "one-cell", "primes",
    "primes-aligned", "ratio-32", "sigmoid", "sigmoid-soft", "soft", "soft-ade", "up4",
}  # fmt: skip
