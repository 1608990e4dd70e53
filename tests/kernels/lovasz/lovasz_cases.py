"""The shapes, targets and options that every backend of the lovasz family is held against."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from tolerances import lay_out
from torch import Tensor


class Case(NamedTuple):
    id: str
    cells: tuple[int, int]  # (h, w)
    size: tuple[int, int]  # (H, W)
    batch: int = 2
    classes: int = 5
    bins: int = 16
    options: dict[str, Any] = {}  # noqa: RUF012 (of lovasz_loss; read only)
    labels: str = "mixed"  # mixed (a fifth ignored), full, ignored, absent (of the last class)
    label_dtype: torch.dtype = torch.int64
    weighted: bool = False
    layout: str = "nchw"  # nchw, nhwc, strided
    magnitude: float = 1.0
    ignore_index: int = 255


CASES = [
    Case("up4", (4, 6), (16, 24), label_dtype=torch.uint8),
    Case("primes", (7, 11), (13, 37), classes=19, weighted=True, label_dtype=torch.int32),
    Case("primes-aligned", (7, 11), (13, 37), classes=19, bins=37, options={"align_corners": True}),
    Case("fine", (5, 9), (20, 36), classes=3, bins=512),
    Case("two-bins", (5, 9), (20, 36), bins=2),
    Case("images", (5, 9), (20, 36), batch=3, options={"per_image": True, "average": "classes"}),
    Case("identity", (9, 13), (9, 13), classes=7, weighted=True),
    Case("identity-images", (9, 13), (9, 13), options={"per_image": True, "align_corners": True}),
    Case("half-identity", (9, 13), (9, 26), classes=4),
    Case("down", (16, 24), (5, 7), classes=6),
    Case("one-cell", (1, 1), (9, 5)),
    Case("one-pixel", (6, 7), (1, 1), labels="full", options={"align_corners": True}),
    Case("two-classes", (4, 5), (16, 20), classes=2, bins=64),
    Case("ade", (2, 3), (8, 12), classes=150, bins=64, weighted=True, magnitude=3.0),
    Case("many-classes", (2, 2), (3, 5), classes=331, ignore_index=-1),
    Case("ratio-32", (2, 3), (64, 96), classes=3),
    Case("ignored", (4, 6), (8, 12), labels="ignored"),
    Case("ignored-images", (4, 6), (8, 12), labels="ignored", options={"per_image": True, "average": "classes"}),
    Case("absent", (4, 6), (8, 12), labels="absent", options={"average": "classes"}),
    Case("ignore-0", (4, 6), (8, 12), ignore_index=0),
    Case("channels-last", (6, 7), (24, 28), classes=19, layout="nhwc"),
    Case("channels-last-identity", (6, 7), (6, 7), classes=19, layout="nhwc"),
    Case("strided", (6, 7), (24, 28), layout="strided"),
    Case("tiny", (4, 6), (16, 24), magnitude=1e-4),
    Case("huge", (4, 6), (16, 24), magnitude=100.0),
    Case("confident", (4, 6), (16, 24), magnitude=10.0),
    Case("empty-batch", (4, 6), (8, 12), batch=0),
    Case("empty-batch-images", (4, 6), (8, 12), batch=0, options={"per_image": True}),
    Case("no-pixels", (4, 6), (0, 12)),
]  # fmt: skip
NAMED = {c.id: c for c in CASES}
CASE_PARAMS = [pytest.param(c, id=c.id) for c in CASES]
# what Triton's interpreter keeps: cases in fp32, and tests
INTERPRETED = ("up4", "primes", "ade", "identity-images", "empty-batch-images")
INTERPRETED_TESTS = {
    "test_lovasz_loss", "test_margins_and_poison", "test_double_backward_says_what_to_do",
    "test_bad_labels_that_may_not_be_looked_at_give_nan", "test_numbers_of_a_call_cause_no_compilation",
}  # fmt: skip
# cases that run in other dtypes as well, if kernels are compiled
IN_EVERY_DTYPE = {
    "ade", "channels-last", "confident", "down", "fine", "huge", "identity", "images", "one-cell", "primes", "up4",
}  # fmt: skip


def make(case: Case, dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[Tensor, Tensor, dict[str, Any]]:
    """(input, target, options) of a case. Pixels with an error so near a border of bins that rounding could move it to
    another one are ignored."""
    rng = torch.Generator().manual_seed(sum(map(ord, case.id)))
    pixels = (case.batch, *case.size)
    input = case.magnitude * torch.randn(case.batch, case.classes, *case.cells, generator=rng, dtype=torch.float64)
    input = input.to(dtype)
    ignored = (
        torch.rand(pixels, generator=rng) < {"mixed": 0.2, "absent": 0.1, "full": 0.0, "ignored": 1.0}[case.labels]
    )
    target = torch.randint(0, case.classes - (case.labels == "absent"), pixels, generator=rng)
    if target.numel():
        mode = {"mode": "bilinear", "align_corners": case.options.get("align_corners", False)}
        p = F.interpolate(input.double(), case.size, **mode).softmax(1) * case.bins
        own = F.one_hot(target, case.classes).movedim(-1, 1).bool()
        place = torch.where(own, case.bins - p, p)
        near = (place - place.round()).abs() < 2e-6 * case.bins * max(1, case.magnitude)
        ignored |= (near & (place.round() > 0) & (place.round() < case.bins)).any(1)
    target = target.where(~ignored, case.ignore_index).to(case.label_dtype)
    options = {"ignore_index": case.ignore_index, "bins": case.bins, **case.options}
    if case.weighted:
        options["weight"] = (torch.rand(case.classes, generator=rng, dtype=torch.float64) + 0.5).to(device, dtype)
    return lay_out(input, case.layout).to(device), target.to(device), options


def sorted_loss(
    input: Tensor, target: Tensor, *, average: str = "present", per_image: bool = False, ignore_index: int = 255,
    align_corners: bool = False,
) -> Tensor:  # fmt: skip
    """The loss by a sort of the errors, as in the paper, class by class."""
    p = F.interpolate(input, target.shape[-2:], mode="bilinear", align_corners=align_corners).softmax(1)
    rows = [(p[[b]], target[[b]]) for b in range(len(p))] if per_image else [(p, target)]
    losses = []
    for q, labels in rows:
        valid, of_classes = labels != ignore_index, []
        for k in range(p.shape[1]):
            own = (labels[valid] == k).to(p.dtype)
            if average == "present" and not own.any():
                continue
            errors, order = (own - q[:, k][valid]).abs().sort(descending=True)
            hits = own.sum() - own[order].cumsum(0)
            jaccard = 1 - hits / (own.sum() + (1 - own[order]).cumsum(0))
            steps = torch.cat([jaccard[:1], jaccard.diff()]).detach()
            of_classes.append((errors * steps).sum())
        losses.append(torch.stack(of_classes).mean())
    return torch.stack(losses).mean()
