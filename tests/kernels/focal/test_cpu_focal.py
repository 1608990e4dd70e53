"""Tests of the cpu backend alone: vector widths and threads. Neither may change a result."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from focal_cases import CASES, Case, make, options
from threads import each_of
from tolerances import assert_as_good, assert_gradient
from torch import Tensor
from widths import by_width, run_at

import metricseg_kernels as mk
from metricseg_kernels.core import backends
from metricseg_kernels.focal import op

pytestmark = pytest.mark.skipif(
    backends.why_not("focal", "cpu", "cpu") is not None, reason=str(backends.why_not("focal", "cpu", "cpu"))
)


def results(case: Case, dtype: torch.dtype, backend: str) -> list[Tensor]:
    """[softmax map, its gradient, sigmoid map, its gradient]"""
    input, target, weight = make(case, dtype)
    found = []
    for loss in (
        lambda x: mk.focal_loss(x, target, weight=weight, reduction="none", backend=backend, **options(case)),
        lambda x: mk.sigmoid_focal_loss(
            x,
            target,
            reduction="none",
            ignore_index=case.ignore_index,
            align_corners=case.align_corners,
            backend=backend,
        ),
    ):
        x = input.detach().clone().requires_grad_()
        value = loss(x)
        value.backward(torch.linspace(0, 1, value.numel(), dtype=value.dtype).reshape(value.shape))
        assert x.grad is not None
        found += [value.detach(), x.grad]
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_threads_change_no_bit(case: Case) -> None:
    alone, *others = [results(case, torch.float32, "cpu") for _ in each_of(1, 2, 3, 7)]
    assert all(torch.equal(a, b) for other in others for a, b in zip(alone, other, strict=True))


def test_threads_share_a_large_image() -> None:
    """Large enough for every thread to get a share, which the table's cases are not."""
    input, target = torch.randn(1, 19, 32, 40), torch.randint(0, 19, (1, 128, 160))
    found = []
    for _ in each_of(1, 2, 5):
        x = input.clone().requires_grad_()
        loss = mk.focal_loss(x, target, backend="cpu")
        loss.backward()
        found.append((loss.detach(), x.grad))
    for loss, grad in found[1:]:
        assert torch.equal(loss, found[0][0]) and torch.equal(grad, found[0][1])


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_both_passes_of_ohem_see_the_same_bits(case: Case) -> None:
    """The pass that ranks the pixels and the one that keeps those above a rank, whatever else it computes."""
    input, target, weight = make(case)
    kernel, ignored = op.kernels("cpu").focal_kernel, case.ignore_index

    def totals_of(weight, keep_above, smoothing, loss, grad) -> Tensor:
        totals = torch.empty(5, dtype=torch.float64)
        kernel(input, target, weight, keep_above, None, 0.0, smoothing, ignored, case.align_corners, 0.0,
               False, loss, totals, None, None, grad)  # fmt: skip
        return totals

    nll = torch.empty(target.shape)
    totals_of(None, None, 0.0, nll, None)
    for rank in (0.1, 0.5, 0.9):
        keep_above = nll[target != ignored].quantile(rank, interpolation="nearest") if nll.any() else torch.zeros(())
        for smoothing, grad in ((0.0, None), (0.0, torch.empty_like(input)), (0.1, torch.empty_like(input))):
            kept = totals_of(weight, keep_above, smoothing, torch.empty(()), grad)[0]
            assert kept == (nll > keep_above).sum()


@pytest.mark.parametrize("loss", [mk.cross_entropy, mk.focal_loss, mk.sigmoid_focal_loss])
def test_gradient_of_a_cell_under_more_than_2_to_the_24_labels(loss: Callable[..., Tensor]) -> None:
    """Sums in fp32 are at most twice as far off as those of F.interpolate. Truth: two labels, counted."""
    input = torch.randn(1, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    target = (torch.rand(1, 4104, 4104, generator=torch.Generator().manual_seed(0)) < 0.1).to(torch.uint8)

    def gradient(target: Tensor, dtype: torch.dtype, backend: str) -> Tensor:
        x = input.to(dtype, copy=True).requires_grad_()
        return torch.autograd.grad(loss(x, target, reduction="sum", backend=backend), x)[0]

    of_label = [gradient(torch.full((1, 1, 1), k, dtype=torch.uint8), torch.float64, "reference") for k in (0, 1)]
    positive = int(target.sum())
    truth = (target.numel() - positive) * of_label[0] + positive * of_label[1]
    x = input.clone().requires_grad_()
    upstream = torch.where(target[:, None].bool(), of_label[1].float(), of_label[0].float())
    (plain,) = torch.autograd.grad(F.interpolate(x, size=(4104, 4104), mode="bilinear"), x, upstream)
    assert_as_good(gradient(target, torch.float32, "cpu"), plain, truth, torch.float32)


def compare_all() -> None:
    """Every case of the table in the vector width that METRICSEG_SIMD names."""
    for case in CASES:
        for dtype in (torch.float32, torch.float64):
            truth, plain = results(case, torch.float64, "reference"), results(case, dtype, "reference")
            got = results(case, dtype, "cpu")
            for i in (0, 2):
                assert_as_good(got[i], plain[i], truth[i], dtype)
                assert_gradient(got[i + 1], plain[i + 1], truth[i + 1], dtype)


@by_width
def test_narrower_vectors(width: str, fresh_processes: object) -> None:
    run_at(fresh_processes, width, "test_cpu_focal", "compare_all")
