"""Clusters, segments and their means, every backend against the published algorithm and the specification in fp64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from gradients import gradcheck
from segments_cases import CASES, NAMED, Case, assert_nearest, make, published_kmeans, written_out_split
from tolerances import FLOOR_PARAMS, assert_as_good, assert_gradient, lay_out
from torch import Tensor

import metricseg_kernels as mk

FAMILY = "segments"
NEAR = {torch.float64: 1e-13, torch.float32: 3e-6, torch.bfloat16: 3e-6, torch.float16: 3e-6}

by_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)


# --- spherical k-means ---------------------------------------------------------------------------------------------


@by_case
def test_clusters_are_the_published_ones(case: Case, backend: str, device: str) -> None:
    ids = mk.spherical_kmeans(**make(case, device=device), backend=backend)
    assert ids.dtype == torch.int64
    assert torch.equal(ids.cpu(), published_kmeans(make(case)))


@pytest.mark.parametrize("dtype", FLOOR_PARAMS)
@by_case
def test_every_iteration_takes_the_nearest_center(case: Case, dtype: torch.dtype, backend: str, device: str) -> None:
    """In every dtype: by the centers of the clusters before it, in fp64, no other center is nearer."""
    arguments = make(case, dtype, device)
    if case.iterations == 0:
        pytest.skip("no iteration")
    before = mk.spherical_kmeans(**{**arguments, "iterations": 0}, backend=backend)
    for iterations in (1, 2, 3):
        ids = mk.spherical_kmeans(**{**arguments, "iterations": iterations}, backend=backend)
        assert_nearest(ids, before, arguments, NEAR[dtype])
        before = ids


def test_channels_without_values(backend: str, device: str) -> None:
    """The location alone."""
    ids = mk.spherical_kmeans(torch.zeros(2, 0, 6, 7, device=device), grid=(2, 2), backend=backend)
    assert ids.shape == (2, 6, 7) and ids.min() == 0
    ids = mk.spherical_kmeans(torch.zeros(2, 0, 6, 7, device=device), location=False, grid=(2, 2), backend=backend)
    assert not ids.any()  # every product is 0: a tie


def test_an_ignored_image_has_no_cluster(backend: str, device: str) -> None:
    arguments = make(NAMED["image-ignored"], device=device)
    ids = mk.spherical_kmeans(**arguments, backend=backend)
    assert (ids[0] == -1).all() and torch.equal(ids >= 0, arguments["valid"])
    alone = {n: v[1:] if isinstance(v, Tensor) else v for n, v in arguments.items()}
    assert torch.equal(mk.spherical_kmeans(**alone, backend=backend), ids[1:])


def test_an_empty_cluster_is_never_chosen(backend: str, device: str) -> None:
    """Also where all products are negative, and an empty center's would be 0."""
    x = torch.randn(1, 3, 8, 9, device=device)
    init = torch.full((1, 8, 9), 5, device=device)
    init[0, :4] = 2
    for iterations in (1, 2, 9):
        ids = mk.spherical_kmeans(x, init=init, num_clusters=70, location=False, iterations=iterations, backend=backend)
        assert set(ids.unique().tolist()) <= {2, 5}
    x = torch.ones(1, 3, 2, 4, device=device)
    x[..., 2:] = -1
    init = torch.tensor([-1, -1, 7, 7], device=device).expand(1, 2, 4)  # the first pixels start in no cluster
    ids = mk.spherical_kmeans(x, init=init, num_clusters=9, location=False, iterations=1, backend=backend)
    assert (ids == 7).all()


def test_no_cluster_has_a_pixel(backend: str, device: str) -> None:
    x, init = torch.randn(2, 3, 4, 5, device=device), torch.full((2, 4, 5), -1, device=device)
    init[1, 2, 3] = 1
    ids = mk.spherical_kmeans(x, init=init, num_clusters=3, backend=backend)
    assert (ids[0] == -1).all() and (ids[1] == 1).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", FLOOR_PARAMS)
def test_a_pixel_that_is_not_finite_takes_no_part(value: float, dtype: torch.dtype, backend: str, device: str) -> None:
    """As if it were not valid: all others have the clusters that they have without it."""
    arguments = make(NAMED["even"], dtype, device)
    valid = torch.ones(2, 20, 25, dtype=torch.bool, device=device)
    for b, y, x in ((0, 0, 0), (0, 7, 11), (1, 19, 24)):
        arguments["embeddings"][b, b + 3, y, x] = value
        valid[b, y, x] = False
    ids = mk.spherical_kmeans(**arguments, backend=backend)
    clean = {**arguments, "embeddings": arguments["embeddings"].nan_to_num(1.0, 1.0, 1.0), "valid": valid}
    assert torch.equal(ids, mk.spherical_kmeans(**clean, backend=backend))
    assert torch.equal(ids >= 0, valid)


def test_a_location_that_is_not_finite_takes_no_part(backend: str, device: str) -> None:
    arguments = make(NAMED["given-location"], device=device)
    arguments["location"][1, 0, 3, 4] = torch.nan
    ids = mk.spherical_kmeans(**arguments, backend=backend)
    assert (ids < 0).nonzero().tolist() == [[1, 3, 4]]


def test_ties_go_to_the_lowest_cluster(backend: str, device: str) -> None:
    """All pixels are alike without a location: every center is the same."""
    x = torch.zeros(2, 4, 10, 10, device=device)
    x[:, 1] = 2.0
    ids = mk.spherical_kmeans(x, location=False, backend=backend)
    assert not ids.any()
    valid = torch.ones(2, 10, 10, dtype=torch.bool, device=device)
    valid[0, :2], valid[1, :4] = False, False
    ids = mk.spherical_kmeans(x, location=False, valid=valid, backend=backend)
    assert (ids[0, 2:] == 5).all() and (ids[1, 4:] == 10).all()


def test_two_opposite_halves(backend: str, device: str) -> None:
    """A center whose sum is 0 has the product 0 to every pixel."""
    x = torch.ones(1, 2, 2, 4, device=device)
    x[:, :, 1] = -1
    ids = mk.spherical_kmeans(x, grid=(1, 1), location=False, backend=backend)
    assert not ids.any()


@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1e15])
def test_the_norm_of_an_embedding_does_not_count(scale: float, backend: str, device: str) -> None:
    """At 1e-30 the square is 0, and so is v: the location is left."""
    arguments = make(NAMED["even"], torch.float32, device)
    plain = mk.spherical_kmeans(**arguments, backend=backend)
    arguments["embeddings"] = arguments["embeddings"] * scale
    scaled = mk.spherical_kmeans(**arguments, backend=backend)
    if scale == 1e-30:
        arguments["embeddings"] = torch.zeros_like(arguments["embeddings"])
        plain = mk.spherical_kmeans(**arguments, backend=backend)
    assert (plain == scaled).double().mean() > 0.99


def test_expanded_images_have_the_same_clusters(backend: str, device: str) -> None:
    ids = mk.spherical_kmeans(**make(NAMED["expanded"], torch.float32, device), backend=backend)
    assert torch.equal(ids[0], ids[1]) and torch.equal(ids[0], ids[2])


def test_warm_start_goes_on(backend: str, device: str) -> None:
    """Three iterations, then two from their clusters, are five."""
    arguments = make(NAMED["masked"], torch.float32, device)
    five = mk.spherical_kmeans(**{**arguments, "iterations": 5}, backend=backend)
    init = mk.spherical_kmeans(**{**arguments, "iterations": 3}, backend=backend)
    rest = {n: v for n, v in arguments.items() if n != "grid"}
    two = mk.spherical_kmeans(**{**rest, "iterations": 2, "init": init, "num_clusters": 25}, backend=backend)
    assert torch.equal(two, five)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_init_of_any_integer(dtype: torch.dtype, backend: str, device: str) -> None:
    arguments = make(NAMED["init"], device=device)
    arguments["init"] = arguments["init"].clamp(min=0)
    expected = mk.spherical_kmeans(**arguments, backend=backend)
    assert torch.equal(
        mk.spherical_kmeans(**{**arguments, "init": arguments["init"].to(dtype)}, backend=backend), expected
    )


def test_no_gradient(backend: str, device: str) -> None:
    ids = mk.spherical_kmeans(torch.randn(1, 3, 4, 5, device=device, requires_grad=True), backend=backend)
    assert not ids.requires_grad


# --- segments ------------------------------------------------------------------------------------------------------


def regions(shape: tuple[int, int, int], clusters: int, classes: int, ignored: float = 0.1) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(sum(shape))
    ids = torch.randint(-1, clusters, shape, generator=rng)
    labels = torch.randint(classes, shape, generator=rng)
    return ids, labels.masked_fill(torch.rand(shape, generator=rng) < ignored, 255)


@pytest.mark.parametrize("capacity", [1, 7, 64, 5000])
@pytest.mark.parametrize(
    ("shape", "clusters", "classes", "ignored"),
    [
        ((2, 16, 24), 4, 3, 0.1), ((3, 13, 29), 25, 19, 0.1), ((1, 31, 37), 1000, 200, 0.2), ((2, 5, 7), 3, 2, 1.0),
        ((2, 1, 1), 1, 1, 0.0), ((0, 4, 5), 3, 3, 0.1), ((2, 0, 5), 3, 3, 0.1),
    ],
    ids=str,
)  # fmt: skip
def test_segments_are_the_written_out_ones(shape, clusters, classes, ignored, capacity, backend, device) -> None:
    """Beyond the capacity pixels get -1, and the count goes on."""
    ids, labels = regions(shape, clusters, classes, ignored)
    got = mk.split_by_label(ids.to(device), labels.to(device), capacity=capacity, backend=backend)
    expected = written_out_split(ids, labels, capacity, 255)
    assert torch.equal(got.ids.cpu(), expected[0]) and torch.equal(got.labels.cpu(), expected[1])
    assert got.count == expected[2] and got.count.shape == ()
    assert {t.dtype for t in got} == {torch.int64}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64], ids=str)
def test_segments_of_every_integer(dtype: torch.dtype, backend: str, device: str) -> None:
    ids, labels = regions((2, 9, 11), 6, 4)
    expected = mk.split_by_label(ids.clamp(min=0), labels, capacity=99, backend="reference")
    got = mk.split_by_label(ids.clamp(min=0).to(device, dtype), labels.to(device, dtype), capacity=99, backend=backend)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(got, expected, strict=True))


def test_huge_clusters_and_ignored_labels(backend: str, device: str) -> None:
    """Cluster numbers are compared, never addressed."""
    ids = torch.tensor([[[2**62, 0, -(2**62), 2**62 - 1]]], device=device)
    labels = torch.tensor([[[3, 1, 2, 0]]], device=device)
    found = mk.split_by_label(ids, labels, capacity=4, ignore_index=1, backend=backend)
    assert found.ids.tolist() == [[[1, -1, -1, 0]]] and found.labels.tolist() == [0, 3, -1, -1] and found.count == 2


# --- means ---------------------------------------------------------------------------------------------------------

MAPS = [
    pytest.param((2, 5, 6, 7), "plain", 9, id="small"),
    pytest.param((3, 19, 13, 11), "plain", 40, id="primes"),
    pytest.param((2, 33, 9, 10), "nhwc", 20, id="channels-last"),
    pytest.param((2, 6, 9, 10), "strided", 20, id="strided"),
    pytest.param((2, 16, 40, 33), "plain", 3, id="large-segments"),
    pytest.param((2, 20, 12, 13), "plain", 3000, id="many-segments"),
    pytest.param((1, 7, 1, 1), "plain", 2, id="one-pixel"),
]


def mean_inputs(shape, layout, count, dtype, device) -> tuple[Tensor, Tensor, Tensor]:
    """(x, ids, upstream); some pixels in no segment, one segment empty."""
    rng = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype)
    ids = torch.randint(-1, count, (shape[0], *shape[2:]), generator=rng)
    ids[ids == 1] = 0
    upstream = torch.randn(count, shape[1], generator=rng, dtype=torch.float64).to(dtype)
    return lay_out(x, layout).to(device), ids.to(device), upstream.to(device)


def mean_and_grad(x: Tensor, ids: Tensor, upstream: Tensor, **options) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    mean = mk.segment_mean(x, ids, len(upstream), **options)
    (grad,) = torch.autograd.grad(mean, x, upstream.to(mean))
    return mean.detach(), grad


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dtype", FLOOR_PARAMS)
@pytest.mark.parametrize(("shape", "layout", "count"), MAPS)
def test_mean_and_gradient(shape, layout, count, dtype, normalize, backend: str, device: str) -> None:
    x, ids, upstream = mean_inputs(shape, layout, count, dtype, device)
    exact = x.double().cpu(), ids.cpu(), upstream.double().cpu()
    truth = mean_and_grad(*exact, normalize=normalize, backend="reference")
    plain = mean_and_grad(x, ids, upstream, normalize=normalize, backend="reference")
    got = mean_and_grad(x, ids, upstream, normalize=normalize, backend=backend)
    assert got[0].dtype == got[1].dtype == dtype and not got[0][1].any()
    assert_as_good(got[0], plain[0], truth[0], dtype)
    if dtype == torch.float64 or count < 9:  # pixels of a segment share one rounding
        assert_as_good(got[1], plain[1], truth[1], dtype)
    else:
        assert_gradient(got[1], plain[1], truth[1], dtype, shared=True)


@pytest.mark.parametrize(("shape", "layout", "count"), MAPS)
def test_means_are_those_of_a_loop(shape, layout, count, backend: str, device: str) -> None:
    x, ids, _ = mean_inputs(shape, layout, count, torch.float64, device)
    means = mk.segment_mean(x, ids, count, normalize=False, backend=backend)
    directions = mk.segment_mean(x, ids, count, backend=backend)
    rows, flat = x.permute(0, 2, 3, 1).flatten(0, 2), ids.flatten()
    for s in range(min(count, 30)):
        own = rows[flat == s]
        mean = own.mean(0) if len(own) else torch.zeros(shape[1], dtype=torch.float64, device=device)
        torch.testing.assert_close(means[s], mean)
        torch.testing.assert_close(directions[s], F.normalize(mean, dim=0))


@pytest.mark.parametrize("normalize", [True, False])
def test_rows_are_pixels(normalize: bool, backend: str, device: str) -> None:
    x, ids, upstream = mean_inputs((2, 12, 6, 7), "plain", 9, torch.float32, device)
    rows = x.permute(0, 2, 3, 1).flatten(0, 2).contiguous()
    mean, grad = mean_and_grad(x, ids, upstream, normalize=normalize, backend=backend)
    row_mean, row_grad = mean_and_grad(rows, ids.flatten(), upstream, normalize=normalize, backend=backend)
    torch.testing.assert_close(row_mean, mean)
    torch.testing.assert_close(row_grad, grad.permute(0, 2, 3, 1).flatten(0, 2))
    assert row_grad.is_contiguous()


def test_every_pixel_of_a_segment_has_the_gradient(backend: str, device: str) -> None:
    """Through the mean and its norm; the pixels of other segments and of none have 0."""
    x, ids, _ = mean_inputs((2, 5, 6, 7), "plain", 9, torch.float64, device)
    x.requires_grad_()
    mean = mk.segment_mean(x, ids, 9, backend=backend)
    (grad,) = torch.autograd.grad(mean[3, 2], x)
    total = x.detach().permute(0, 2, 3, 1)[ids == 3].sum(0)
    unit = total / total.norm()
    expected = (torch.eye(5, dtype=torch.float64, device=device)[2] - unit[2] * unit) / total.norm()
    got = grad.permute(0, 2, 3, 1)
    torch.testing.assert_close(got[ids == 3], expected.expand(int((ids == 3).sum()), 5))
    assert not got[ids != 3].any()


def test_gradcheck(backend: str, device: str) -> None:
    for layout, normalize in (("plain", True), ("nhwc", True), ("plain", False)):
        x, ids, _ = mean_inputs((2, 3, 2, 3), layout, 4, torch.float64, device)
        ids[0, 0, 0] = 2
        call = lambda x, n=normalize, i=ids: mk.segment_mean(x, i, 4, normalize=n, backend=backend)  # noqa: E731
        gradcheck(call, x.requires_grad_(), backend, device)


def test_degenerate_segments(backend: str, device: str) -> None:
    """Empty, of sum 0, of no valid pixel, with a NaN: zeros with a zero gradient, and the NaN stays in its segment."""
    x = torch.ones(1, 3, 2, 4, device=device)
    x[..., 1], x[0, 1, 0, 3], x[0, 0, 1, 3] = -1, torch.nan, torch.inf
    ids = torch.tensor([[[0, 0, 1, 2], [1, 1, 1, -1]]], device=device)
    x[0, :, 1, 1] = 1
    mean, grad = mean_and_grad(x, ids, torch.ones(4, 3, device=device), backend=backend)
    assert not mean[0].any() and not mean[3].any() and mean[1].isfinite().all() and mean[2].isnan().any()
    assert not grad[0, :, 0, :2].any() and not grad[0, :, 1, 3].any() and grad[0, :, 1, :3].isfinite().all()
    mean, grad = mean_and_grad(x, torch.full_like(ids, -1), torch.ones(4, 3, device=device), backend=backend)
    assert not mean.any() and not grad.any()


@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (2, 0, 3, 3), (2, 4, 0, 3)], ids=str)
def test_empty_maps(shape: tuple[int, ...], backend: str, device: str) -> None:
    ids = torch.zeros(shape[0], *shape[2:], dtype=torch.long, device=device)
    mean, grad = mean_and_grad(
        torch.zeros(shape, device=device), ids, torch.ones(5, shape[1], device=device), backend=backend
    )
    assert mean.shape == (5, shape[1]) and not mean.any() and grad.shape == shape


def test_double_backward(backend: str, device: str) -> None:
    x, ids, _ = mean_inputs((2, 3, 2, 3), "plain", 4, torch.float64, device)
    x.requires_grad_()
    call = lambda x: mk.segment_mean(x, ids, 4, backend=backend)  # noqa: E731
    if backend == "reference":
        assert torch.autograd.gradgradcheck(call, x)
        return
    (grad,) = torch.autograd.grad(call(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="reference"):
        grad.sum().backward()
