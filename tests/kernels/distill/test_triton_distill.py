"""The distill family's Triton kernels: what causes a compilation, and statistics that pass from chunk to chunk."""

from __future__ import annotations

import itertools

import launches
import pytest
import torch
from distill_cases import KINDS, Maps, loss_and_grads

import metricseg_kernels as mk
from benchmarks.harness.memory import FreshProcesses

FAMILY = "distill"
BACKENDS = ("triton",)

# Image sizes of one ratio and with the same tile constants: they have as many lanes to a program.
CELLS = [(33, 62), (96, 120), (17, 31), (64, 217)]


def launch_all() -> None:
    from metricseg_kernels.distill import triton as distill

    for (h, w), temperature, ignore_index in itertools.product(CELLS, (1.0, 2.5), (255, -100)):
        for others in ((h, w), (h // 2, w // 2), (16, 16)):
            input, other = (torch.empty((2, 19, *n), device="meta") for n in ((h, w), others))
            target = torch.empty((2, 4 * h, 4 * w), dtype=torch.int32, device="meta")
            loss = torch.empty((), device="meta")
            call = (4 * h, 4 * w, temperature, 0, ignore_index, False)
            distill.distill_kernel(input, other, target, None, *call, loss, loss, torch.empty_like(input))


def test_numbers_of_a_call_cause_no_compilation(fresh_processes: FreshProcesses) -> None:
    """Sizes of both maps, temperature and ignore_index are run-time arguments."""
    assert launches.compiled_by(fresh_processes, launch_all) == {"sum_partials": 1, "walk": 1}


@pytest.mark.parametrize("kind", KINDS)
def test_maxima_that_rise_from_chunk_to_chunk(kind: str, backend: str, device: str) -> None:
    """Those of either map by itself; and a first chunk of classes that have no share, in one map or in both."""
    rise = torch.linspace(-40, 40, 60, device=device).view(1, 60, 1, 1)
    noise = torch.randn(2, 1, 60, 1, 2, generator=torch.Generator().manual_seed(0)).to(device)
    absent = torch.zeros_like(rise)
    absent[:, :25] = -torch.inf
    for own, other in ((rise, -rise), (absent, absent)):
        maps = Maps(noise[0] + own, noise[1] + other, (1, 2))
        found = loss_and_grads(mk.distillation_loss, maps, kind=kind, temperature=2.0, backend=backend)
        exact = Maps(maps.student.double(), maps.teacher.double(), maps.target)
        expected = loss_and_grads(mk.distillation_loss, exact, kind=kind, temperature=2.0, backend="reference")
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=2e-5, atol=1e-7 + 2e-5 * float(b.abs().max()))
