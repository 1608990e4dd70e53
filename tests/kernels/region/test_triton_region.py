"""The region family's Triton kernels: what causes a compilation, and the digits of their sums."""

from __future__ import annotations

import itertools

import launches
import pytest
import torch

from benchmarks.harness.memory import FreshProcesses
from metricseg_kernels.region import op

FAMILY = "region"
BACKENDS = ("triton",)

# Image sizes of one ratio and with the same tile constants: they have as many lanes to a program.
CELLS = [(33, 62), (96, 120), (17, 31), (64, 217)]


def launch_all() -> None:
    from metricseg_kernels.region import triton as region

    for (h, w), gamma, ignore_index in itertools.product(CELLS, (2.5, 0.5), (255, -100)):
        input = torch.empty((2, 19, h, w), device="meta")
        target = torch.empty((2, 4 * h, 4 * w), dtype=torch.int32, device="meta")
        inputs = op.Inputs(input, target, None, gamma, 0.1 * gamma, ignore_index, False, True, True)
        sums, loss, totals = (torch.empty(s, dtype=torch.float64, device="meta") for s in ((1, 19, 3), (), (1, 3)))
        region.region_fwd_kernel(inputs, sums, loss, totals)
        region.region_bwd_kernel(inputs, sums, loss, torch.empty_like(input))


def test_numbers_of_a_call_cause_no_compilation(fresh_processes: FreshProcesses) -> None:
    """Sizes, gamma, label smoothing and ignore_index are run-time arguments: one walk forward and one backward."""
    assert launches.compiled_by(fresh_processes, launch_all) == {"add_sums": 1, "walk": 2}


@pytest.mark.parametrize(("rows", "error"), [(64, 1e-6), (200, 3e-7)])
def test_long_columns_keep_their_digits(rows: int, error: float, backend: str, device: str) -> None:
    """A lane that adds a whole column of label rows, all alike: rounding errors of one sign. Beyond 64 in fp64."""
    logits = torch.tensor([0.3, -1.2, 0.1], device=device).view(1, 3, 1, 1)
    target = torch.zeros(1, rows, 1, dtype=torch.int64, device=device)
    sums = torch.empty(1, 3, 3, dtype=torch.float64, device=device)
    inputs = op.Inputs(logits, target, None, 0.0, 0.0, 255, False, True, False)
    op.kernels(backend).region_fwd_kernel(inputs, sums, sums.new_empty(()), sums.new_empty(1, 3))
    p = logits.double().softmax(1).flatten()
    first = p.new_tensor([1, 0, 0])
    torch.testing.assert_close(sums[0], rows * torch.stack([p * first, p, first], 1), rtol=error, atol=0)
