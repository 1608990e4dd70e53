"""Tests of the cpu backend of refine alone: vector widths, threads that share channels, no map of the upsampled size."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from refine_cases import CASES, Case, make, materialized
from test_refine import results, widened
from threads import each_of
from tolerances import relative_error
from widths import by_width, run_at

import metricseg_kernels as mk
from metricseg_kernels.core import backends

pytestmark = pytest.mark.skipif(
    backends.why_not("refine", "cpu", "cpu") is not None, reason=str(backends.why_not("refine", "cpu", "cpu"))
)
WIDE = Case("wide", (2, 203, 9, 13), (31, 45))


def test_bits_do_not_depend_on_the_threads_that_share_channels() -> None:
    runs = []
    for _ in each_of(1, 2, 3, 8):
        runs.append(results(mk.refine_upsample, make(WIDE, torch.float32), backend="cpu"))
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


def compare_all() -> None:
    """The cases in the vector width that METRICSEG_SIMD names."""
    for case in (*CASES, WIDE):
        if 0 in case.shape:
            continue
        for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-4 if case.reach > 100 else 1e-5)):
            arguments = make(case, dtype)
            got = results(mk.refine_upsample, arguments, backend="cpu")
            truth = results(materialized, widened(arguments))
            for ours, true in zip(got, truth, strict=True):
                if true.norm() > 1e-9:  # offsets between equal cells have no gradient
                    assert relative_error(ours, true) < tolerance, case.id


@by_width
def test_narrower_vectors(width: str, fresh_processes: object) -> None:
    run_at(fresh_processes, width, "test_cpu_refine", "compare_all")


def upsample_step(_: None = None) -> Callable[[], torch.Tensor]:
    x, offsets, logits = (torch.randn(1, c, *size) for c, size in ((128, (32, 64)), (2, (128, 256)), (9, (128, 256))))
    return lambda: mk.refine_upsample(x, offsets, logits)


def test_no_upsampled_map_beside_the_output(fresh_processes) -> None:
    """16 MiB of output: beyond it a call takes the copy of 1 MiB of features, and little else."""
    assert fresh_processes.peak(upsample_step, None) - 4 * 128 * 128 * 256 < 3 * 2**20
