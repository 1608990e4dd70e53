"""The shapes, targets and options that every backend of the distill family is held against."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from tolerances import lay_out
from torch import Tensor

KINDS = ("kl", "reverse_kl", "js")


class Case(NamedTuple):
    id: str
    cells: tuple[int, int]  # (h, w) of the student
    others: tuple[int, int]  # (h2, w2) of the teacher
    size: tuple[int, int]  # (H, W)
    batch: int = 2
    classes: int = 5
    options: dict[str, Any] = {}  # noqa: RUF012 (of distillation_loss; read only)
    labels: str = "mixed"  # mixed (a fifth ignored), full, ignored, none (a size alone)
    label_dtype: torch.dtype = torch.int64
    layout: str = "nchw"  # nchw, nhwc, strided; of both maps
    magnitude: float = 1.0
    distance: float = 1.0  # of the teacher from the student, where both have the same cells
    ignore_index: int = 255


CASES = [
    Case("same", (4, 6), (4, 6), (16, 24), label_dtype=torch.uint8),
    Case("same-wide", (3, 70), (3, 70), (12, 280), classes=3, options={"temperature": 4.0}),
    Case("same-columns", (3, 20), (5, 20), (12, 80), classes=3),
    Case("teacher-coarse", (8, 40), (4, 20), (32, 160), classes=3, label_dtype=torch.int32),
    Case("teacher-fine", (4, 20), (8, 40), (32, 160), classes=3, labels="none"),
    Case("teacher-finer", (2, 20), (8, 80), (16, 160), classes=3),
    Case("teacher-finest", (2, 20), (16, 160), (16, 160), classes=3),
    Case("teacher-larger", (3, 5), (25, 90), (12, 40), classes=3),
    Case("student-fine", (16, 160), (2, 20), (16, 160), classes=3, options={"temperature": 0.5}),
    Case("primes", (7, 11), (5, 19), (13, 37), classes=19, label_dtype=torch.int32),
    Case("primes-aligned", (7, 11), (5, 19), (13, 37), classes=19, options={"align_corners": True}),
    Case("identity", (9, 13), (9, 13), (9, 13), classes=7),
    Case("identity-long", (17, 61), (17, 61), (17, 61), classes=2, labels="none"),
    Case("half-identity", (9, 13), (3, 26), (9, 26), classes=4),
    Case("other-half-identity", (9, 26), (9, 13), (9, 26), classes=4, options={"align_corners": True}),
    Case("crossed", (9, 5), (2, 26), (9, 26), classes=4),
    Case("down", (16, 24), (11, 31), (5, 7), classes=6),
    Case("down-same", (16, 24), (16, 24), (5, 7), classes=6),
    Case("down-one", (16, 24), (2, 3), (5, 7), classes=6),
    Case("one-cell", (1, 1), (2, 1), (9, 5), labels="none"),
    Case("one-pixel", (6, 7), (2, 3), (1, 1), labels="full", options={"align_corners": True}),
    Case("one-class", (4, 5), (2, 3), (16, 20), classes=1),
    Case("two-classes", (4, 5), (2, 3), (16, 20), classes=2),
    Case("ade", (2, 3), (4, 6), (8, 12), classes=150),
    Case("ade-same", (2, 3), (2, 3), (8, 12), classes=150, options={"temperature": 2.0}),
    Case("many-classes", (2, 2), (3, 2), (3, 5), classes=331, ignore_index=-1),
    Case("ratio-33", (2, 3), (4, 6), (66, 99), classes=3),
    Case("ratio-32-8", (2, 3), (8, 12), (64, 96), classes=3),
    Case("ignored", (4, 6), (2, 3), (8, 12), labels="ignored"),
    Case("ignore-0", (4, 6), (2, 3), (8, 12), ignore_index=0),
    Case("ignore-negative", (4, 6), (2, 3), (8, 12), ignore_index=-100),
    Case("channels-last", (6, 7), (3, 4), (24, 28), classes=19, layout="nhwc"),
    Case("channels-last-identity", (6, 7), (6, 7), (6, 7), classes=19, layout="nhwc"),
    Case("strided", (6, 7), (3, 4), (24, 28), layout="strided"),
    Case("close", (4, 6), (4, 6), (16, 24), distance=1e-2),
    Case("tiny", (4, 6), (4, 6), (16, 24), magnitude=1e-2),
    Case("huge", (4, 6), (3, 5), (16, 24), magnitude=100.0),
    Case("hot", (4, 6), (3, 5), (16, 24), magnitude=100.0, options={"temperature": 50.0}),
    Case("empty-batch", (4, 6), (3, 5), (8, 12), batch=0),
    Case("no-pixels", (4, 6), (3, 5), (0, 12)),
]
NAMED = {c.id: c for c in CASES}
# what runs in Triton's interpreter
INTERPRETED = ("crossed", "empty-batch")
INTERPRETED_TESTS = {
    "test_distillation_loss", "test_margins_and_poison", "test_maxima_that_rise_from_chunk_to_chunk",
    "test_numbers_of_a_call_cause_no_compilation",
}  # fmt: skip
# cases that run in other dtypes as well, if kernels are compiled
IN_EVERY_DTYPE = {
    "ade", "channels-last", "close", "crossed", "down", "hot", "huge", "identity", "many-classes", "one-cell", "primes",
    "primes-aligned", "ratio-33", "same", "teacher-coarse",
}  # fmt: skip
CASE_PARAMS = [pytest.param(c, id=c.id) for c in CASES]


class Maps(NamedTuple):
    student: Tensor
    teacher: Tensor
    target: Any  # labels, or a size


def make(case: Case, dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[Maps, dict[str, Any]]:
    """(maps, options) of a case; the same numbers for every dtype up to rounding."""
    rng = torch.Generator().manual_seed(sum(map(ord, case.id)))
    shape = (case.batch, case.classes)
    student, teacher = (
        case.magnitude * torch.randn(*shape, *cells, generator=rng, dtype=torch.float64)
        for cells in (case.cells, case.others)
    )
    if case.distance != 1:
        teacher = student + case.distance * teacher
    pixels = (case.batch, *case.size)
    target = torch.randint(0, case.classes + 1, pixels, generator=rng)  # one value that is no class
    target[torch.rand(pixels, generator=rng) < {"mixed": 0.2, "ignored": 1.0}.get(case.labels, 0.0)] = case.ignore_index
    if case.labels == "full" and case.ignore_index == 0:
        target += 1
    maps = [lay_out(t.to(dtype), case.layout).to(device) for t in (student, teacher)]
    labels = case.size if case.labels == "none" else target.to(case.label_dtype).to(device)
    return Maps(*maps, labels), {"ignore_index": case.ignore_index, **case.options}


def widen(maps: Maps) -> Maps:
    target = maps.target.cpu() if isinstance(maps.target, Tensor) else maps.target
    return Maps(maps.student.double().cpu(), maps.teacher.double().cpu(), target)


def loss_and_grads(function: Any, maps: Maps, upstream: Tensor | None = None, **options: Any) -> list[Tensor]:
    """The loss, and the gradients of student and teacher."""
    leaves = [t.detach().requires_grad_() for t in maps[:2]]
    loss = function(*leaves, maps.target, **options)
    weights = None if upstream is None else upstream.to(loss)
    return [loss.detach(), *torch.autograd.grad(loss, leaves, weights)]
