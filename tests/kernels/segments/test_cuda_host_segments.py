"""The CUDA kernels of the segments family on the host: tests of every backend, and what only a shim can show."""

from __future__ import annotations

from types import ModuleType

import cuda_host
import pytest
import test_segments
import test_segments_contract
import torch
from cuda_host.fixtures import *  # noqa: F403
from segments_cases import CASES, NAMED, Case, make, published_kmeans, written_out_split
from test_segments import (  # noqa: F401
    FAMILY,
    MAPS,
    mean_and_grad,
    mean_inputs,
    test_a_location_that_is_not_finite_takes_no_part,
    test_an_empty_cluster_is_never_chosen,
    test_degenerate_segments,
    test_empty_maps,
    test_huge_clusters_and_ignored_labels,
    test_init_of_any_integer,
    test_no_cluster_has_a_pixel,
    test_rows_are_pixels,
    test_segments_of_every_integer,
    test_two_opposite_halves,
)

import metricseg_kernels as mk
from metricseg_kernels.segments import op

pytestmark = pytest.mark.slow

CUT = [  # tiles, parts and blocks of clusters, none full, by csrc/segments/kmeans_layout.h
    Case("tiles-of-a-part", (1, 3, 30, 40), (20, 20), iterations=1),
    Case("sums-in-global-memory", (1, 40, 24, 30), (12, 12), iterations=1),
    Case("copies-in-global-memory", (1, 32, 16, 32), (10, 12), iterations=1, valid=0.9),
]
IN_EVERY_DTYPE = ("channels-last", "larger-strided", "masked")
POISONED = ("one-column", "masked", "larger-corners", "no-channels", "empty-batch")


@pytest.mark.parametrize("case", [*CASES, *CUT], ids=lambda c: c.id)
def test_clusters_are_the_published_ones(case: Case, backend: str) -> None:
    case = case._replace(iterations=min(case.iterations, 2))
    assert torch.equal(mk.spherical_kmeans(**make(case), backend=backend), published_kmeans(make(case)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", IN_EVERY_DTYPE)
def test_every_iteration_takes_the_nearest_center(name: str, dtype: torch.dtype, backend: str) -> None:
    test_segments.test_every_iteration_takes_the_nearest_center(NAMED[name], dtype, backend, "cpu")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", POISONED)
def test_margins_and_poison(name: str, dtype: torch.dtype, backend: str, monkeypatch) -> None:
    case = NAMED[name]._replace(iterations=1)
    test_segments_contract.test_margins_and_poison(case, dtype, backend, "cpu", monkeypatch)


def test_a_pixel_that_is_not_finite_takes_no_part(backend: str) -> None:
    test_segments.test_a_pixel_that_is_not_finite_takes_no_part(torch.nan, torch.float32, backend, "cpu")


def test_segments_are_the_written_out_ones(backend: str) -> None:
    """More pairs in an image than a block ranks, a full table, images without any, and a capacity that is too small."""
    rng = torch.Generator().manual_seed(0)
    distinct = torch.randint(-(2**62), 2**62, (3, 19, 27), generator=rng)
    few = distinct[:, :1, :9].flatten()[torch.randint(27, (3, 19, 27), generator=rng)]
    for ids, capacity in ((distinct, 999), (few, 40), (few.clamp(max=-1), 5), (few[:, :, :0], 2), (few[:0], 2)):
        labels = torch.randint(4, ids.shape, generator=rng)
        labels[labels == 3] = 255
        got = mk.split_by_label(ids, labels, capacity=capacity, backend=backend)
        expected = written_out_split(ids, labels, capacity, 255)
        assert torch.equal(got.ids, expected[0]) and torch.equal(got.labels, expected[1]) and got.count == expected[2]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_mean_and_gradient(dtype: torch.dtype, backend: str) -> None:
    """Two passes of the sort over two tiles, runs that fill several units, and lanes along pixels or channels."""
    for i, (shape, layout, count) in enumerate(
        (*(m.values for m in MAPS if m.id != "many-segments"), ((2, 37, 9, 7), "nhwc", 300))
    ):
        if i % 2 == (dtype in (torch.float64, torch.bfloat16)) or dtype == torch.float64:
            test_segments.test_mean_and_gradient(shape, layout, count, dtype, True, backend, "cpu")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_segment(value: float, backend: str) -> None:
    x = torch.ones(1, 5, 13, 21)
    x[0, 2, 3, 4] = x[0, 1, 3, 5] = value  # the second in no segment
    ids = torch.arange(273).view(1, 13, 21) % 2
    ids[0, 3, 5] = -1
    means = mk.segment_mean(x, ids, 2, normalize=False, backend=backend)
    wild = torch.zeros(2, 5, dtype=torch.bool)
    wild[ids[0, 3, 4], 2] = True
    assert torch.equal(~means.isfinite(), wild) and (means[~wild] == 1).all()


def test_numbers_out_of_range_belong_nowhere(backend: str) -> None:
    """The raw kernels, as a device runs them: no exception, no address made of such a number."""
    x, ids = torch.randn(1, 3, 4, 6), torch.full((1, 4, 6), 2)
    ids[0, 0, :4] = torch.tensor([2**62, 5, -2, 2**32 + 2])
    sums, mass, grad = torch.empty(5, 3), torch.empty(5), torch.empty_like(x)
    kernels = op.kernels(backend)
    kernels.segment_sums_fwd_kernel(x, ids, sums, mass)
    kernels.segment_sums_bwd_kernel(torch.ones(()).expand(5, 3), ids, grad)
    assert mass.tolist() == [0, 0, 20, 0, 0] and torch.equal(grad[0, 1] != 0, ids[0] == 2)
    found = torch.empty_like(ids)
    inputs = op.KmeansInputs(x, None, None, ids, 5, 1, 1, True, False)
    kernels.spherical_kmeans_kernel(inputs, found)
    assert (found == 2).all()  # none of the others has a pixel


def test_order_of_threads_does_not_matter(shim: ModuleType, backend: str) -> None:
    arguments = make(NAMED["primes"]._replace(iterations=3), torch.float32)
    x, ids, upstream = mean_inputs((2, 16, 30, 33), "plain", 3, torch.float32, "cpu")
    results = []
    for seed in (0, 1):
        shim.configure(1, cuda_host.SHARED, seed)
        found = mk.spherical_kmeans(**arguments, backend=backend)
        segments = mk.split_by_label(found, found % 5, capacity=99, backend=backend)
        results.append((found, *segments, *mean_and_grad(x, ids, upstream, backend=backend)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("barrier", [1, 2, 3, 4])
def test_a_lost_barrier_is_found(barrier: int, shim: ModuleType, backend: str) -> None:
    """So the tests above show that none is missing."""
    x, ids, _ = mean_inputs((1, 5, 20, 30), "plain", 7, torch.float32, "cpu")
    shim.lose_barrier(barrier)
    with pytest.raises(RuntimeError, match="race in shared memory: thread"):
        mk.spherical_kmeans(x, iterations=2, backend=backend)
    with pytest.raises(RuntimeError, match="race in shared memory: thread"):
        mk.segment_mean(x, ids, 7, backend=backend)


ASAN_SCRIPT = """
rng = np.random.default_rng(0)
def values(*shape, dtype):
    x = rng.standard_normal(shape)
    return (x.astype("f4").view("u4") >> 16).astype("u2") if dtype == "u2" else x.astype(dtype)
for B, C, h, w, H, W, K, dtype, acc in [(2, 5, 9, 31, 9, 31, 4, "f4", "f4"), (1, 3, 5, 6, 11, 25, 9, "f8", "f8"),
                                        (1, 50, 4, 5, 4, 5, 33, "u2", "f4"), (1, 300, 3, 7, 3, 7, 30, "f4", "f4"),
                                        (1, 2, 7, 8, 3, 100, 33, "f2", "f4"), (0, 3, 4, 4, 4, 4, 3, "f4", "f4")]:
    x = values(B, C, h, w, dtype=dtype)
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    init = rng.integers(-2, K + 2, (B, H, W)).astype("i4")
    valid = rng.random((B, H, W)) < 0.8
    location = values(B, 2, H, W, dtype=dtype)
    for map, at, ok, first in ((x, None, None, None), (last, location, valid, init)):
        ids = np.full((B, H, W), 99999)
        m.spherical_kmeans_kernel(map, at, ok, first, K, 1, 1, at is None, True, ids)
        assert (ids >= -1).all() and (ids < K).all()
    if (h, w) != (H, W):
        continue
    for S, map in ((1, x), (99, last)):
        some = rng.integers(-1, S, (B, h, w)).astype("i8" if S > 1 else "u1")
        sums, mass, grad = np.empty((S, C), acc), np.empty(S, acc), np.empty_like(x)
        m.segment_sums_fwd_kernel(map, some, sums, mass)
        assert mass.sum() == (some.astype("i8") < S).sum() - (some < 0).sum() and np.isfinite(sums).all()
        m.segment_sums_bwd_kernel(np.broadcast_to(sums[:1], sums.shape), some, grad)
for B, h, w, K, capacity in [(2, 9, 31, 4, 100), (3, 1, 300, 10**15, 50), (2, 1, 1, 5, 1), (0, 3, 3, 2, 4)]:
    ids, labels = rng.integers(-1, K, (B, h, w)), rng.integers(0, 9, (B, h, w)).astype("u1")
    dense, found, count = np.empty((B, h, w), "i8"), np.empty(capacity, "i8"), np.empty((), "i8")
    m.split_by_label_kernel(ids, labels, 8, 3, dense, found, count)
    known = (ids >= 0) & (labels != 3) & (labels < 8)
    pairs = np.stack([np.broadcast_to(np.arange(B)[:, None, None], ids.shape)[known], ids[known], labels[known]], 1)
    assert int(count) == len(np.unique(pairs, axis=0)) and dense.max(initial=-1) < capacity
print("clean")
"""


def test_kernels_under_address_sanitizer(shim: ModuleType) -> None:
    cuda_host.run_sanitized("segments", ASAN_SCRIPT)
