"""The lovasz family, every backend against the specification in fp64, and the specification against a sort."""

from __future__ import annotations

import pytest
import torch
from gradients import loss_and_grad, widen
from lovasz_cases import CASE_PARAMS, NAMED, Case, make, sorted_loss
from tolerances import FLOOR_PARAMS, assert_as_good, assert_gradient, skip_unsupported

import metricseg_kernels as mk
from metricseg_kernels.lovasz.formulas import slopes

FAMILY = "lovasz"


@pytest.mark.parametrize("dtype", FLOOR_PARAMS)
@pytest.mark.parametrize("case", CASE_PARAMS)
def test_lovasz_loss(case: Case, dtype: torch.dtype, backend: str, device: str) -> None:
    skip_unsupported(backend, dtype)
    input, target, options = make(case, dtype, device)
    wide = {n: widen(v) for n, v in options.items()}
    truth = loss_and_grad(mk.lovasz_loss, widen(input), target.cpu(), **wide, backend="reference")
    plain = loss_and_grad(mk.lovasz_loss, input, target, **options, backend="reference")
    got = loss_and_grad(mk.lovasz_loss, input, target, **options, backend=backend)
    assert got[0].dtype == plain[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert got[1].dtype == dtype
    assert_as_good(got[0], plain[0], truth[0], dtype)
    assert_gradient(got[1], plain[1], truth[1], dtype)
    assert got[0].isfinite() and got[1].isfinite().all()
    if case.labels == "ignored" or not case.batch or 0 in case.size:
        assert got[0] == 0 and not got[1].any()


@pytest.mark.parametrize("average", ["present", "classes"])
@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("name", ["up4", "primes", "identity", "two-classes", "confident", "absent", "ade"])
def test_within_a_bin_of_the_sorted_errors(name: str, per_image: bool, average: str, backend: str, device: str) -> None:
    input, target, options = make(NAMED[name], torch.float64, device)
    options = {n: v for n, v in options.items() if n in ("ignore_index", "align_corners")}
    options |= {"per_image": per_image, "average": average}
    truth = loss_and_grad(sorted_loss, input, target, **options)
    distances = []
    for bins in (2, 16, 512, 4096):
        loss, grad = loss_and_grad(mk.lovasz_loss, input, target, **options, bins=bins, backend=backend)
        assert abs(loss - truth[0]) <= 1 / bins
        distances.append(((grad - truth[1]).norm() / truth[1].norm()).item())
    assert distances[-1] < 0.05 and distances[-1] <= distances[0]


def test_errors_apart_are_sorted_exactly() -> None:
    """With one error to a bin the differences are those of the sort."""
    rng = torch.Generator().manual_seed(0)
    for _ in range(20):
        own = (torch.rand(30, generator=rng) < 0.4).double()
        place = torch.randperm(64, generator=rng)[:30]
        counts = torch.zeros(1, 1, 2, 64, dtype=torch.float64)
        counts[0, 0, own.long(), place] = 1
        order = place.argsort(descending=True)
        hits = own.sum() - own[order].cumsum(0)
        jaccard = 1 - hits / (own.sum() + (1 - own[order]).cumsum(0))
        expected = torch.cat([jaccard[:1], jaccard.diff()])
        found = slopes(counts)[0, 0, own.long(), place][order]
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_the_rise_of_each_bin_is_that_of_the_jaccard_loss() -> None:
    rng = torch.Generator().manual_seed(0)
    counts = torch.randint(0, 9, (3, 4, 2, 32), generator=rng).double()
    counts[1, 2, 1] = 0  # an absent class
    found = slopes(counts)
    assert (found >= 0).all()
    torch.testing.assert_close((found * counts).sum((-1, -2)), torch.ones(3, 4, dtype=torch.float64))


def test_images_without_valid_pixels_do_not_count(backend: str, device: str) -> None:
    input, target, options = make(NAMED["images"], torch.float64, device)
    target[1] = 255
    found = loss_and_grad(mk.lovasz_loss, input, target, **options, backend=backend)
    kept = loss_and_grad(mk.lovasz_loss, input[::2], target[::2], **options, backend=backend)
    torch.testing.assert_close(found[0], kept[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(found[1][::2], kept[1])
    assert not found[1][1].any()


def test_ignored_pixels_may_hold_anything(backend: str, device: str) -> None:
    """A NaN or infinity under an ignored label leaves the loss alone; under a class it is NaN."""
    input, target, options = make(NAMED["identity"], device=device)
    target[0, 2, 3] = target[1, 5, 5] = 255
    expected = mk.lovasz_loss(input, target, **options, backend=backend)
    input[0, 1, 2, 3], input[1, 0, 5, 5] = torch.nan, torch.inf
    torch.testing.assert_close(mk.lovasz_loss(input, target, **options, backend=backend), expected)
    for average in ("present", "classes"):
        for place in ((0, 2, 3), (1, 5, 5)):
            labels = target.clone()
            labels[place] = 1
            assert mk.lovasz_loss(input, labels, average=average, backend=backend).isnan()


def test_all_reduce_sees_every_sum(backend: str, device: str) -> None:
    """Two halves of a batch, whose counts are added, equal the whole: loss and gradient."""
    input, target, options = make(NAMED["primes"], torch.float64, device)
    others: list[torch.Tensor] = []

    def keep(sums: torch.Tensor) -> torch.Tensor:
        others.append(sums)
        return sums

    mk.lovasz_loss(input[1:], target[1:], all_reduce=keep, **options, backend=backend)
    found = loss_and_grad(mk.lovasz_loss, input[:1], target[:1], all_reduce=lambda v: v + others[0], **options,
                          backend=backend)  # fmt: skip
    whole = loss_and_grad(mk.lovasz_loss, input, target, **options, backend=backend)
    torch.testing.assert_close(found[0], whole[0])
    torch.testing.assert_close(found[1], whole[1][:1])
