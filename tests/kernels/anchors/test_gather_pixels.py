"""Rows of a feature map and their gradient, every backend against the specification in fp64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from anchors_cases import FEATURES, make_features
from conftest import device_of
from gradients import gradcheck
from threads import each_of
from tolerances import FLOOR_PARAMS, assert_as_good, assert_gradient
from torch import Tensor

import metricseg_kernels as mk

FAMILY = "anchors"

by_features = pytest.mark.parametrize(("shape", "layout"), FEATURES)


def rows_and_grad(features: Tensor, index: Tensor, upstream: Tensor, **kwargs) -> tuple[Tensor, Tensor]:
    x = features.detach().requires_grad_()
    rows = mk.gather_pixels(x, index, **kwargs)
    (grad,) = torch.autograd.grad(rows, x, upstream.to(rows))
    return rows.detach(), grad


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dtype", FLOOR_PARAMS)
@by_features
def test_rows_and_gradient(shape, layout, dtype, normalize, backend: str, device: str) -> None:
    features, index = make_features(shape, layout, dtype, device)
    upstream = torch.randn(len(index), shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    upstream = upstream.to(dtype)
    truth = rows_and_grad(features.double().cpu(), index.cpu(), upstream, normalize=normalize, backend="reference")
    plain = rows_and_grad(features, index, upstream, normalize=normalize, backend="reference")
    got = rows_and_grad(features, index, upstream, normalize=normalize, backend=backend)
    assert got[0].dtype == got[1].dtype == dtype
    assert_as_good(got[0], plain[0], truth[0], dtype)
    if normalize and shape[1] == 1:  # a row of one channel is its sign, and has no gradient but rounding
        assert got[1].abs().max() <= 4 * torch.finfo(dtype).eps * (1 / features.abs()).nan_to_num(posinf=0).max()
    elif dtype == torch.float64:  # the cosine of 3,600 products is known no better than its bound
        assert_as_good(got[1], plain[1], truth[1], dtype)
    else:
        assert_gradient(got[1], plain[1], truth[1], dtype)
    assert not got[0][index == -1].any()
    if normalize:  # the pixel of norm 0
        assert not got[0][7].any() and not got[1][-1, :, 0, 0].any()


@pytest.mark.parametrize(("shape", "layout"), [p for p in FEATURES if p.id != "one-channel"])
def test_what_people_write_instead(shape, layout, backend: str, device: str) -> None:
    """A permuted copy, an index, F.normalize."""
    features, index = make_features(shape, layout, torch.float32, device)
    index = index[index >= 0]
    upstream = torch.randn(len(index), shape[1], device=device)
    upstream[index == index[6]] = 0  # of the pixel of norm 0 F.normalize has a gradient of 1e12
    x = features.detach().requires_grad_()
    rows = F.normalize(x.permute(0, 2, 3, 1).reshape(-1, shape[1])[index], dim=1)
    (grad,) = torch.autograd.grad(rows, x, upstream)
    got = rows_and_grad(features, index, upstream, backend=backend)
    torch.testing.assert_close(got[0], rows.detach(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(got[1], grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make_upstream", [lambda g: torch.ones((), device=g.device).expand(g.shape),
                                           lambda g: g.mT.contiguous().mT, lambda g: g[:, :1].expand(g.shape)],
                         ids=["expanded", "transposed", "broadcast"])  # fmt: skip
def test_upstream_gradient_of_any_stride(make_upstream, backend: str, device: str) -> None:
    features, index = make_features((2, 5, 3, 4), "nchw", torch.float32, device)
    upstream = make_upstream(torch.randn(len(index), 5, device=device))
    got, plain = (rows_and_grad(features, index, upstream, backend=name)[1] for name in (backend, "reference"))
    assert_gradient(got, plain, plain, torch.float32)


@pytest.mark.parametrize("magnitude", [1e-20, 1e-12, 1e-6, 1e4, 1e18])
def test_norms_of_any_magnitude(magnitude: float, backend: str, device: str) -> None:
    """Above eps unit rows, below it x / eps; and the gradient that goes with them."""
    features, index = make_features((2, 5, 3, 4), "nchw", torch.float64, device)
    features *= magnitude
    upstream = torch.randn(len(index), 5, dtype=torch.float64)
    got = rows_and_grad(features, index, upstream, backend=backend)
    plain = rows_and_grad(features, index, upstream, backend="reference")
    torch.testing.assert_close(got[0], plain[0])
    torch.testing.assert_close(got[1], plain[1], rtol=1e-9, atol=1e-9 * float(plain[1].abs().max()))


def test_nan_stays_in_its_pixel(backend: str, device: str) -> None:
    features, _ = make_features((1, 5, 3, 4), "nchw", torch.float32, device)
    features[0, 2, 0, 1] = torch.nan
    rows, grad = rows_and_grad(features, torch.arange(12, device=device), torch.ones(12, 5), backend=backend)
    assert rows[1].isnan().all() and rows.isfinite().all(1).sum() == 11
    assert grad[0, :, 0, 1].isnan().all() and grad.isfinite().all(1).sum() == 11


def test_fp16_up_to_its_end_and_down_to_zero(backend: str, device: str) -> None:
    """Squares overflow and eps underflows in fp16; the norm is in fp32."""
    features = torch.zeros(1, 64, 1, 3, dtype=torch.float16, device=device)
    features[..., 0], features[0, 0, 0, 1] = 1e4, 6e-8
    index = torch.arange(3, device=device)
    rows, grad = rows_and_grad(features, index, torch.ones(3, 64), backend=backend)
    torch.testing.assert_close(rows.float().norm(dim=1).cpu(), torch.tensor([1.0, 1.0, 0.0]), rtol=1e-3, atol=0)
    assert grad[..., 0].isfinite().all() and not grad[..., 2].any()


@pytest.mark.parametrize("dtype", FLOOR_PARAMS)
def test_one_pixel_many_times(dtype: torch.dtype, backend: str, device: str) -> None:
    """The gradients of 500 rows add up in fp32, whatever the dtype."""
    features = torch.randn(1, 6, 2, 2, device=device).to(dtype)
    upstream = torch.rand(500, 6, dtype=torch.float64).to(dtype)
    _, grad = rows_and_grad(features, torch.full((500,), 3, device=device), upstream, normalize=False, backend=backend)
    expected = upstream.double().sum(0)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}[dtype]
    if backend != "reference":
        torch.testing.assert_close(grad[0, :, 1, 1].double().cpu(), expected, rtol=tolerance, atol=0)
    assert not grad[0, :, 0].any() and not grad[0, :, 1, 0].any()


def test_gradcheck(backend: str, device: str) -> None:
    index = torch.tensor([5, -1, 0, 5, 7, 5], device=device)
    for layout, normalize in (("nchw", True), ("nhwc", True), ("nchw", False)):
        features, _ = make_features((2, 3, 2, 2), layout, torch.float64, device)
        call = lambda x, n=normalize: mk.gather_pixels(x, index, normalize=n, backend=backend)  # noqa: E731
        gradcheck(call, features.detach().requires_grad_(), backend, device)


def test_double_backward(backend: str, device: str) -> None:
    features, index = make_features((2, 3, 2, 3), "nchw", torch.float64, device)
    features[-1, :, 0, 0] = 1.0
    features.requires_grad_()
    call = lambda x: mk.gather_pixels(x, index, backend=backend)  # noqa: E731
    if backend == "reference":
        assert torch.autograd.gradgradcheck(call, features)
        return
    (grad,) = torch.autograd.grad(call(features).square().sum(), features, create_graph=True)
    with pytest.raises(RuntimeError, match="reference"):
        grad.sum().backward()


@by_features
@pytest.mark.kernels
def test_same_bits_twice_and_for_any_number_of_threads(shape, layout, backend: str, device: str) -> None:
    features, index = make_features(shape, layout, torch.float32, device)
    index = index.repeat(9)
    upstream = torch.randn(len(index), shape[1])
    runs = []
    for _ in each_of(1, 1, 2, 3, backend=backend):
        runs.append(rows_and_grad(features, index, upstream, backend=backend))
    for rows, grad in runs[1:]:
        assert torch.equal(rows, runs[0][0]) and torch.equal(grad, runs[0][1])


@pytest.mark.kernels
def test_gradient_has_the_features_memory_format(backend: str, device: str) -> None:
    features, index = make_features((2, 33, 6, 5), "nhwc", torch.float32, device)
    _, grad = rows_and_grad(features, index, torch.ones(len(index), 33), backend=backend)
    assert grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.kernels
def test_the_map_is_not_kept_alive(backend: str, device: str) -> None:
    """Backward needs rows and norms only: between forward and backward the map's memory is free."""
    features, index = make_features((2, 5, 3, 4), "nchw", torch.float32, device)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        mk.gather_pixels(features.requires_grad_(), index, backend=backend)
    assert kept and all(t.numel() <= index.numel() * 5 for t in kept)


@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (2, 0, 3, 3), (2, 4, 0, 3)], ids=str)
def test_empty_maps(shape: tuple[int, ...], backend: str, device: str) -> None:
    features = torch.zeros(shape, device=device)
    for index in (torch.full((3,), -1, device=device), torch.zeros(0, dtype=torch.long, device=device)):
        rows, grad = rows_and_grad(features, index, torch.ones(len(index), shape[1]), backend=backend)
        assert rows.shape == (len(index), shape[1]) and not rows.any()
        assert grad.shape == shape


@pytest.mark.parametrize("bad", [24, 25, -2, 2**62])
def test_an_index_out_of_range(bad: int, backend: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    features, index = make_features((2, 5, 3, 4), "nchw", torch.float32, device)
    index[5] = bad
    monkeypatch.setenv("METRICSEG_VALIDATE", "1")
    with pytest.raises(ValueError, match=rf"index must hold -1 or the number of a pixel in \[0, 24\), got {bad}"):
        mk.gather_pixels(features, index, backend=backend)
    if device_of(backend) == "cuda" and device == "cuda":
        monkeypatch.delenv("METRICSEG_VALIDATE")
        rows, grad = rows_and_grad(features, index, torch.ones(len(index), 5), backend=backend)
        assert rows[5].isnan().all() and rows[torch.arange(37) != 5].isfinite().all() and grad.isfinite().all()
