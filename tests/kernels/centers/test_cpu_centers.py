"""Tests of the cpu backend of centers alone: panels of pixels, sums in parts, vector widths."""

from __future__ import annotations

import pytest
import torch
from centers_cases import CASES, JOBS, Case, against_reference, make, run
from threads import each_of
from widths import by_width, run_at

from metricseg_kernels.core import backends

pytestmark = pytest.mark.skipif(
    backends.why_not("centers", "cpu", "cpu") is not None, reason=str(backends.why_not("centers", "cpu", "cpu"))
)

LARGE = [  # more pixels than a panel, more panels than parts, and neither a whole number of tiles
    Case("large", (2, 40, 57), 13, 5),
    Case("large-own", (3, 31, 37), 18, 29, "own", layout="nhwc"),
    Case("large-slice", (1, 43, 51), 7, 15, layout="rows"),
    Case("large-channels", (1, 9, 41), 700, 3, layout="channels"),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", LARGE, ids=lambda c: c.id)
@pytest.mark.parametrize("name", JOBS)
def test_many_panels(name: str, case: Case, dtype: torch.dtype) -> None:
    if "hard" in name and dtype == torch.bfloat16:
        pytest.skip("all pixels of a class share one rounding, in plain PyTorch too: a bias")
    against_reference(name, case, dtype, "cpu", "cpu")


@pytest.mark.parametrize("case", LARGE, ids=lambda c: c.id)
@pytest.mark.parametrize("name", ["cosine", "pulled", "soft", "hard"])
def test_bits_do_not_depend_on_the_threads(name: str, case: Case) -> None:
    found = []
    for _ in each_of(1, 2, 3):
        outputs, grads = run(JOBS[name], make(case), case, backend="cpu")
        found.append([*outputs, *grads])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert torch.equal(a, b)


def compare_all() -> None:
    """The cases in the vector width that METRICSEG_SIMD names."""
    for name in ("pulled", "euclidean", "soft"):
        for case in [*CASES, *LARGE]:
            against_reference(name, case, torch.float32, "cpu", "cpu")
        for case in LARGE:
            against_reference(name, case, torch.float64, "cpu", "cpu")


@by_width
def test_narrower_vectors(width: str, fresh_processes: object) -> None:
    run_at(fresh_processes, width, "test_cpu_centers", "compare_all")
