"""The lovasz family's Triton kernels: what causes a compilation, and sums in fixed point."""

from __future__ import annotations

import itertools

import launches
import pytest
import torch

from benchmarks.harness.memory import FreshProcesses
from metricseg_kernels.core import backends
from metricseg_kernels.lovasz import op

FAMILY = "lovasz"
BACKENDS = ("triton",)

# Image sizes of one ratio and with the same tile constants: they have as many lanes to a program.
CELLS = [(33, 62), (96, 120), (17, 31), (64, 217)]


def launch_all(classes: int) -> None:
    from metricseg_kernels.lovasz import triton as lovasz

    for (h, w), bins, ignore_index in itertools.product(CELLS, (2, 512, 1023), (255, -100)):
        input = torch.empty((2, classes, h, w), device="meta")
        target = torch.empty((2, 4 * h, 4 * w), dtype=torch.int32, device="meta")
        inputs = op.Inputs(input, target, ignore_index, False)
        shape = (1, classes, 2, bins)
        counts, sums, totals = (torch.empty(s, dtype=torch.float64, device="meta") for s in (shape, shape, (1, 4)))
        lovasz.lovasz_fwd_kernel(inputs, counts, sums, totals)
        lovasz.lovasz_bwd_kernel(inputs, sums.float(), torch.empty_like(input))


@pytest.mark.parametrize(("classes", "walks"), [(19, 2), (150, 5)])
def test_numbers_of_a_call_cause_no_compilation(classes: int, walks: int, fresh_processes: FreshProcesses) -> None:
    """Sizes, bins and ignore_index are run-time arguments: one walk forward and one backward, or two and three."""
    assert launches.compiled_by(fresh_processes, launch_all, classes) == {"finish": 1, "walk": walks}


def bins_of(logits: torch.Tensor, target: torch.Tensor, bins: int, backend: str) -> op.Bins:
    shape = (1, logits.shape[1], 2, bins)
    found = op.Bins(*(torch.empty(s, dtype=torch.float64, device=logits.device) for s in (shape, shape, (1, 4))))
    op.kernels(backend).lovasz_fwd_kernel(op.Inputs(logits, target, 255, False), *found)
    return found


@pytest.mark.parametrize("bins", [2, 512, 4096])
@pytest.mark.parametrize("magnitude", [0.0, 1.0, 20.0, 200.0])
def test_pixels_of_one_bin(magnitude: float, bins: int, backend: str, device: str) -> None:
    """All pixels alike, so that an entry has all of them, as many as its bits of a count can hold; errors down to 0 and
    up to 1."""
    logits = torch.tensor([magnitude, 0.0, 0.3 * magnitude], device=device).view(1, 3, 1, 1).expand(1, 3, 17, 15)
    for label in range(3):
        target = torch.full((1, 17, 15), label, device=device)
        found = bins_of(logits.contiguous(), target, bins, backend)
        errors = logits[0, :, 0, 0].double().softmax(0)
        errors[label] = errors[[k for k in range(3) if k != label]].sum()
        for k, error in enumerate(errors):
            place = min(int(error * bins + 1e-4), bins - 1)
            expected = torch.zeros(2, bins, dtype=torch.float64, device=device)
            if place or k == label:
                expected[int(k == label), place] = 255
            assert torch.equal(found.counts[0, k], expected)
            torch.testing.assert_close(found.sums[0, k], expected * error, rtol=2e-6, atol=255 * 2**-29)
        assert found.totals.tolist() == [[255, 0, 0, 0]]


def test_digits_are_left_for_large_sets() -> None:
    """No count and no sum of places overflows; errors have the digits of their dtype as long as there is room."""
    if (reason := backends.why_not("lovasz", "triton", "cpu" if not torch.cuda.is_available() else "cuda")) is not None:
        pytest.skip(reason)
    from metricseg_kernels.lovasz.triton import layout

    for pixels in (1, 2, 255, 256, 2**21, 2**26, 2**32 - 1):
        for bins in (2, 3, 512, 4096):
            for acc in (torch.float32, torch.float64):
                fraction, shift = layout(pixels, bins, acc)
                assert fraction >= 0 and pixels * (2**fraction - 1) < 2**shift and pixels << shift < 2**64
                assert bins << fraction <= (2**30 if acc == torch.float32 else 2**52)
    assert layout(2**21 - 1, 512, torch.float32) == (21, 42)
    with pytest.raises(ValueError, match=r"less than 2\^32"):
        layout(2**32, 512, torch.float32)
