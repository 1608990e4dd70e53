"""What only the Triton backend of the segments family cuts up: parts of images, blocks of clusters, sorted keys."""

from __future__ import annotations

import pytest
import torch
from segments_cases import Case, make, published_kmeans, written_out_split

import metricseg_kernels as mk

FAMILY, BACKENDS = "segments", ("triton",)


def test_parts_and_blocks(backend: str, device: str) -> None:
    """Several blocks of clusters, of channels and of pixels, none full."""
    from metricseg_kernels.segments.triton import make_launch

    case = Case("cut", (1, 70, 9, 17), (7, 10), iterations=1)
    sums, assign = (make_launch(torch.float64, job, 70, 70).tile for job in ("sums", "assign"))
    assert sums.BK.value < 70 and sums.BC.value < 70 and assign.BN.value < 9 * 17 and assign.BK.value < 70
    ids = mk.spherical_kmeans(**make(case, device=device), backend=backend)
    assert torch.equal(ids.cpu(), published_kmeans(make(case)))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_segment(value: float, backend: str, device: str) -> None:
    """Sums are products with memberships, in which 0 times NaN would reach every segment of a block."""
    x = torch.ones(1, 5, 7, 9, device=device)
    x[0, 2, 3, 4] = value
    ids = torch.arange(63, device=device).view(1, 7, 9) % 21
    means = mk.segment_mean(x, ids, 21, normalize=False, backend=backend)
    wild = torch.zeros(21, 5, dtype=torch.bool, device=device)
    wild[ids[0, 3, 4], 2] = True
    assert torch.equal(~means.isfinite(), wild) and (means[~wild] == 1).all()


def test_ids_of_any_size_are_ranked(backend: str, device: str) -> None:
    """int64 ids do not fit a sorted key; nor is their range known."""
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(-(2**62), 2**62, (40,), generator=rng)[torch.randint(40, (3, 6, 11), generator=rng)]
    labels = torch.randint(3, (3, 6, 11), generator=rng)
    got = mk.split_by_label(ids.to(device), labels.to(device), capacity=150, backend=backend)
    expected = written_out_split(ids, labels, 150, 255)
    assert torch.equal(got.ids.cpu(), expected[0]) and torch.equal(got.labels.cpu(), expected[1])
    assert got.count == expected[2]
