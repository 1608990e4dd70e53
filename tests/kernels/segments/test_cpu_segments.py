"""Tests of the cpu backend of segments alone: panels of pixels, sums in parts, vector widths, no copy."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from segments_cases import CASES, Case, assert_nearest, make
from threads import each_of
from torch import Tensor
from widths import by_width, run_at

import metricseg_kernels as mk
from metricseg_kernels.core import backends

pytestmark = pytest.mark.skipif(
    backends.why_not("segments", "cpu", "cpu") is not None, reason=str(backends.why_not("segments", "cpu", "cpu"))
)

LARGE = [  # more pixels than a panel, more panels than parts, and neither a whole number of tiles
    Case("large", (2, 33, 57, 61)),
    Case("large-many-clusters", (1, 18, 71, 67), (15, 17)),
    Case("large-channels-last", (3, 29, 43, 51), layout="nhwc", valid=0.8),
    Case("large-resized", (2, 10, 31, 33), size=(67, 70)),
    Case("large-many-images", (70, 6, 11, 13), (3, 3)),
]


@pytest.mark.parametrize("case", LARGE, ids=lambda c: c.id)
def test_many_panels(case: Case) -> None:
    ids = [mk.spherical_kmeans(**make(case), backend=backend) for backend in ("reference", "cpu")]
    assert torch.equal(*ids)


@pytest.mark.parametrize("case", LARGE, ids=lambda c: c.id)
def test_bits_do_not_depend_on_the_threads(case: Case) -> None:
    found = []
    for _ in each_of(1, 2, 3):
        found.append(mk.spherical_kmeans(**make(case, torch.float32), backend="cpu"))
    assert all(torch.equal(ids, found[0]) for ids in found)


def compare_all() -> None:
    """The cases in the vector width that METRICSEG_SIMD names."""
    for case in [*CASES, *LARGE]:
        arguments = make(case)
        expected = mk.spherical_kmeans(**arguments, backend="reference")
        assert torch.equal(mk.spherical_kmeans(**arguments, backend="cpu"), expected), case.id
    for case in LARGE:
        arguments = make(case, torch.float32)
        before, after = (mk.spherical_kmeans(**{**arguments, "iterations": n}, backend="cpu") for n in (0, 1))
        assert_nearest(after, before, arguments, 3e-6)


@by_width
def test_narrower_vectors(width: str, fresh_processes: object) -> None:
    run_at(fresh_processes, width, "test_cpu_segments", "compare_all")


def kmeans_step(size: tuple[int, int] | None = None) -> Callable[[], Tensor]:
    x = torch.randn(4, 64, 64, 128)
    return lambda: mk.spherical_kmeans(x, size=size)


def test_nothing_of_the_size_of_the_embeddings_exists(fresh_processes) -> None:
    """8 MiB of embeddings, and 32 MiB of their interpolation: beyond ids, a call takes less than 1 MiB."""
    for size, pixels in ((None, 4 * 64 * 128), ((128, 256), 4 * 128 * 256)):
        assert fresh_processes.peak(kmeans_step, size) - 8 * pixels < 2**20
