"""The Triton kernels of the anchors family: repair of unlucky limits, pixels, slots and channels of several blocks."""

from __future__ import annotations

import pytest
import torch
from anchors_cases import UNLUCKY, Case, arguments, make

import metricseg_kernels as mk

FAMILY, BACKENDS = "anchors", ("triton",)


@pytest.mark.parametrize("deviations", [-1.0, 40.0])
@pytest.mark.parametrize("case", UNLUCKY, ids=lambda case: case.id)
def test_bad_luck_is_repaired(case: Case, deviations: float, backend: str, device: str, monkeypatch) -> None:
    """Limits under which cells find too few candidates, or more than there is room for: the same choice."""
    from metricseg_kernels.anchors import triton

    monkeypatch.setattr(triton, "DEVIATIONS", deviations)
    truth, got = (
        mk.sample_anchors(labels, predictions, seed=2, backend=name, **arguments(case, "hard", confidence))
        for name, (labels, predictions, confidence) in (("reference", make(case)), (backend, make(case, device)))
    )
    assert all(torch.equal(a.cpu(), b) for a, b in zip(got, truth, strict=True))


def test_pixels_slots_and_channels_of_several_blocks(backend: str, device: str) -> None:
    from metricseg_kernels.anchors.triton import CHANNELS, LANES, PIXELS, RUN, SLOTS

    case = Case("blocks", (3, 47, 59), classes=9, max_samples=700, max_views=300, min_pixels=0, num_classes=500)
    labels, predictions, confidence = make(case)
    assert labels[0].numel() > max(LANES * RUN, PIXELS) and SLOTS < 3 * 500
    options = arguments(case, "hard", confidence) | {"seed": 5}
    truth = mk.sample_anchors(labels, predictions, backend="reference", **options)
    options["confidence"] = confidence.to(device)
    got = mk.sample_anchors(labels.to(device), predictions.to(device), backend=backend, **options)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(got, truth, strict=True))
    x = torch.randn(1, CHANNELS + 44, 3, 5, device=device, requires_grad=True)
    index = torch.tensor([3, -1, 14, 3, 3], device=device)
    results = []
    for name in ("reference", backend):
        rows = mk.gather_pixels(x, index, backend=name)
        results.append((rows.detach(), *torch.autograd.grad(rows.square().sum() + rows[3, 2], x)))
    for ours, theirs in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, theirs)
