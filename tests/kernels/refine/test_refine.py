"""Refined upsampling, every backend against F.grid_sample of the materialized map in fp64."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gradients import gradcheck
from refine_cases import CASES, NAMED, Case, make, materialized
from tolerances import FLOOR_PARAMS, assert_as_good, assert_gradient, skip_unsupported
from torch import Tensor

import metricseg_kernels as mk

FAMILY = "refine"
by_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)


def results(function: Any, arguments: dict[str, Any], upstream: Tensor | None = None, **options: Any) -> list[Tensor]:
    """The output and the gradients of all tensors."""
    leaves = {n: v.detach().requires_grad_() for n, v in arguments.items() if isinstance(v, Tensor)}
    output = function(**{**arguments, **leaves}, **options)
    if upstream is None:
        upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    return [output.detach(), *torch.autograd.grad(output, list(leaves.values()), upstream.to(output))]


def widened(arguments: dict[str, Any]) -> dict[str, Any]:
    return {n: v.double().cpu() if isinstance(v, Tensor) else v for n, v in arguments.items()}


@pytest.mark.parametrize("dtype", FLOOR_PARAMS)
@by_case
def test_output_and_gradients(case: Case, dtype: torch.dtype, backend: str, device: str) -> None:
    skip_unsupported(backend, dtype)
    arguments = make(case, dtype, device)
    got = results(mk.refine_upsample, arguments, backend=backend)
    assert got[0].dtype == dtype and got[0].shape == (*case.shape[:2], *case.size)
    if 0 in case.shape:
        assert not any(g.any() for g in got)
        return
    plain = {n: v.float() if dtype != torch.float64 and isinstance(v, Tensor) else v for n, v in arguments.items()}
    plain = [p.to(g.dtype) for p, g in zip(results(mk.refine_upsample, plain, backend="reference"), got, strict=True)]
    truth = results(materialized, widened(arguments))
    assert_as_good(got[0], plain[0], truth[0], dtype)
    for ours, theirs, true in zip(got[1:], plain[1:], truth[1:], strict=True):
        assert_gradient(ours, theirs, true, dtype)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(7, 9), (14, 18), (23, 40)], ids=str)
def test_zero_offsets_are_interpolate(size: tuple[int, int], align_corners: bool, backend: str, device: str) -> None:
    x = torch.randn(2, 6, 7, 9, dtype=torch.float64, device=device, requires_grad=True)
    options = {"align_corners": align_corners}
    expected = F.interpolate(x, size, mode="bilinear", **options)
    upstream = torch.randn_like(expected)
    logits = torch.randn(2, 9, *size, dtype=torch.float64, device=device)
    for given in ((), (logits,)):
        offsets = torch.zeros(2, 2, *size, dtype=torch.float64, device=device)
        got = mk.refine_upsample(x, offsets, *given, **options, backend=backend)
        torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-14)
        grads = [torch.autograd.grad(y, x, upstream, retain_graph=True)[0] for y in (got, expected)]
        torch.testing.assert_close(*grads, rtol=1e-13, atol=1e-13)


def test_half_precision_offsets_reach_beyond_2048(backend: str, device: str) -> None:
    """Positions are float32: fp16 has no odd numbers there."""
    x = torch.arange(3001.0, device=device)[None, None, None].half() / 1000
    offsets = torch.zeros(1, 2, 1, 3001, device=device, dtype=torch.float16)
    got = mk.refine_upsample(x, offsets, backend=backend)
    assert torch.equal(got, x)


@pytest.mark.parametrize("padding, edge", [("border", 5.0), ("zeros", 0.0)])
def test_offsets_that_are_not_finite(padding: str, edge: float, backend: str, device: str) -> None:
    """NaN gives NaN at its pixel, infinity what the padding says; their offsets have no gradient, the others are as ever."""
    arguments = make(NAMED["primes" if padding == "border" else "zeros"], torch.float32, device) | {"padding": padding}
    x, offsets, logits = (arguments[name] for name in ("features", "offsets", "neighbor_logits"))
    x[:, :, 0] = edge  # what lies above the map
    # one neighbor each: weights of 1 and 0 exactly
    logits.fill_(-200.0)[:, 4] = 200.0
    clean = results(mk.refine_upsample, arguments, backend=backend)
    assert clean[0].isfinite().all()
    bad = {(0, 3, 4): torch.nan, (1, 9, 9): -torch.inf}
    upstream = torch.randn(clean[0].shape, generator=torch.Generator().manual_seed(1)).to(device)
    for (b, row, column), value in bad.items():
        offsets[b, 0, row, column] = value
        upstream[b, :, row, column] = 0
    expected = results(
        mk.refine_upsample, arguments | {"offsets": offsets.nan_to_num(0, 0, 0)}, upstream, backend=backend
    )
    # without neighbors, for 0 inf is NaN
    flow = {name: value for name, value in arguments.items() if name != "neighbor_logits"}
    got = results(mk.refine_upsample, flow, upstream, backend=backend)
    assert got[0][0, :, 3, 4].isnan().all()
    assert (got[0][1, :, 9, 9] == edge).all()
    for b, row, column in bad:
        got[0][b, :, row, column] = expected[0][b, :, row, column]
        assert not got[2][b, :, row, column].any()
    for ours, theirs in zip(got, expected, strict=False):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_cell_without_weight_does_not_count(backend: str, device: str) -> None:
    """Whatever it holds: with zero offsets a NaN reaches as far as in F.interpolate on the CPU."""
    x = torch.randn(1, 3, 6, 7)
    x[0, 1, 2, 3] = torch.nan
    x[0, 2, 4, 4] = torch.inf
    for size in ((6, 7), (12, 14), (11, 23)):
        expected = F.interpolate(x, size, mode="bilinear")
        offsets = torch.zeros(1, 2, *size, device=device)
        got = mk.refine_upsample(x.to(device), offsets, backend=backend).cpu()
        assert torch.equal(got.isfinite(), expected.isfinite())


def test_only_what_is_asked_for(backend: str, device: str) -> None:
    """Gradients of some tensors, the others fixed."""
    arguments = make(NAMED["primes"], torch.float64, device)
    names = ("features", "offsets", "neighbor_logits")
    every = dict(zip(names, results(mk.refine_upsample, arguments, backend=backend)[1:], strict=True))
    for name in names:
        leaf = arguments[name].detach().requires_grad_()
        output = mk.refine_upsample(**{**arguments, name: leaf}, backend=backend)
        upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output)
        (grad,) = torch.autograd.grad(output, leaf, upstream)
        assert torch.equal(grad, every[name])


@pytest.mark.parametrize("name", ["primes", "zeros-corners-flow"])
def test_gradcheck(name: str, backend: str, device: str) -> None:
    def call(cells: tuple[int, int], size: tuple[int, int]) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
        arguments = make(NAMED[name]._replace(shape=(1, 2, *cells), size=size, reach=0.9), torch.float64, device)
        leaves = {n: v.requires_grad_() for n, v in arguments.items() if isinstance(v, Tensor)}
        options = {n: v for n, v in arguments.items() if n not in leaves}
        return functools.partial(mk.refine_upsample, **options, backend=backend), tuple(leaves.values())

    gradcheck(*call((3, 4), (5, 7)), backend, device)
    if backend == "reference":  # the work grows with the square of the inputs
        torch.autograd.gradgradcheck(*call((2, 3), (3, 5)))
