"""The CUDA kernels of the refine family on the host: tests of every backend, and what only a shim can show."""

from __future__ import annotations

from types import ModuleType

import cuda_host
import pytest
import test_refine
import torch
from cuda_host.fixtures import *  # noqa: F403
from refine_cases import NAMED, Case, make
from test_refine import (  # noqa: F401
    FAMILY,
    results,
    test_a_cell_without_weight_does_not_count,
    test_half_precision_offsets_reach_beyond_2048,
    test_offsets_that_are_not_finite,
)
from test_refine_contract import test_margins_and_poison as check_margins

import metricseg_kernels as mk

pytestmark = pytest.mark.slow

TILES = Case("tiles", (1, 3, 10, 34), (20, 68), reach=3.0)  # several of cells and of pixels, by csrc/refine
LONG = Case("long", (1, 1, 1, 132), (9, 528), neighbors=False)  # more tiles of pixels in a row than lanes
BY_DTYPE = {
    torch.float64: (
        "corners",
        "zeros",
        "far-zeros",
        "identity-corners",
        "one-cell",
        "one-pixel",
        "one-row",
        "one-column",
    ),
    torch.float32: ("primes", "far", "hardly-larger", "strided", "no-channels"),
    torch.bfloat16: ("twice", "mixed", "zeros-corners-flow", "empty-batch"),
    torch.float16: ("flow", "one-channel", "one-cell-corners"),
}
LANES = [  # channels-last: vectors of 16 bytes or not, fewer and more channels than lanes
    (Case("vectors", (2, 24, 3, 5), (7, 9), layout="nhwc"), torch.bfloat16),
    (Case("many-vectors", (1, 136, 3, 4), (5, 7), layout="nhwc", mixed=True), torch.float32),
    (Case("no-vectors", (1, 35, 3, 5), (7, 9), layout="nhwc", padding="zeros"), torch.float16),
    (Case("many-channels", (1, 70, 3, 4), (5, 7), layout="nhwc", neighbors=False), torch.float64),
]


@pytest.mark.parametrize("dtype", BY_DTYPE, ids=str)
def test_output_and_gradients(dtype: torch.dtype, backend: str) -> None:
    for name in BY_DTYPE[dtype]:
        test_refine.test_output_and_gradients(NAMED[name], dtype, backend, "cpu")


@pytest.mark.parametrize(
    "case, dtype", [*LANES, (TILES, torch.float32), (LONG, torch.float32)], ids=lambda x: getattr(x, "id", None)
)
def test_lanes_and_tiles(case: Case, dtype: torch.dtype, backend: str) -> None:
    test_refine.test_output_and_gradients(case, dtype, backend, "cpu")


@pytest.mark.parametrize("case", [TILES._replace(size=(13, 37)), LANES[0][0], NAMED["one-column"]], ids=lambda c: c.id)
def test_margins_and_poison(case: Case, backend: str, monkeypatch) -> None:
    check_margins(case, torch.bfloat16, backend, "cpu", monkeypatch)


def test_zero_offsets_are_interpolate(backend: str) -> None:
    test_refine.test_zero_offsets_are_interpolate((14, 18), False, backend, "cpu")
    test_refine.test_zero_offsets_are_interpolate((7, 9), True, backend, "cpu")


def test_a_gradient_of_any_strides(backend: str) -> None:
    arguments = make(LANES[0][0], torch.float32)
    upstream = torch.randn(2, 24, 7, 9)
    last = upstream.contiguous(memory_format=torch.channels_last)
    same = upstream[:, :, :1, :1].contiguous()
    for seen in (last, same.expand_as(upstream)):
        got, expected = (results(mk.refine_upsample, arguments, g, backend=backend) for g in (seen, seen.contiguous()))
        for ours, theirs in zip(got, expected, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_order_of_threads_does_not_matter(shim: ModuleType, backend: str) -> None:
    """In whatever order blocks, warps and lanes run, all pixels at one cell included."""
    for case in (TILES, NAMED["corners"]._replace(reach=1e6)):
        arguments = make(case, torch.float32)
        runs = []
        for seed in (0, 1):
            shim.configure(2, cuda_host.SHARED, seed)
            runs.append(results(mk.refine_upsample, arguments, backend=backend))
        assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize(
    "name, barrier", [("features", 0), ("features", 1), ("features", 2), ("offsets", 0), ("offsets", 1)]
)
def test_a_lost_barrier_is_found(name: str, barrier: int, shim: ModuleType, backend: str) -> None:
    """So the tests above show that none is missing."""
    arguments = make(NAMED["primes"], torch.float32)  # channels for two groups of threads
    arguments[name].requires_grad_()
    output = mk.refine_upsample(**arguments, backend=backend)
    shim.lose_barrier(barrier)
    with pytest.raises(RuntimeError, match="race in shared memory: thread"):
        output.sum().backward()
    if barrier == 0:
        with pytest.raises(RuntimeError, match="race in shared memory: thread"):
            mk.refine_upsample(**arguments, backend=backend)


def test_launches_of_a_small_call(shim: ModuleType, backend: str) -> None:
    x, offsets, neighbors = (
        torch.zeros(2, *size, requires_grad=True) for size in ((256, 32, 64), (2, 128, 256), (9, 128, 256))
    )
    out, forward = cuda_host.launches(shim, lambda: mk.refine_upsample(x, offsets, neighbors, backend=backend))
    upstream = torch.ones_like(out)
    _, back = cuda_host.launches(shim, lambda: torch.autograd.grad(out, (x, offsets, neighbors), upstream))
    assert len(forward) <= 1 and len(back) <= 5, (forward, back)


ASAN_SCRIPT = """
rng = np.random.default_rng(0)
def values(*shape, dtype, scale=1):
    x = scale * rng.standard_normal(shape)
    return (x.astype("f4").view("u4") >> 16).astype("u2") if dtype == "u2" else x.astype(dtype)
for B, C, h, w, H, W, dtype, kind, reach in [(2, 5, 4, 6, 9, 13, "f4", "f4", 2), (1, 70, 9, 17, 20, 35, "f8", "f8", 5),
                                             (1, 24, 3, 5, 7, 9, "u2", "u2", 2), (1, 1, 1, 30, 1, 300, "f2", "f4", 99),
                                             (1, 2, 1, 1, 5, 4, "f4", "f4", 1e9), (1, 150, 5, 6, 17, 20, "f2", "f2", 3),
                                             (0, 3, 4, 4, 4, 4, "f4", "f4", 1), (1, 0, 4, 4, 4, 4, "f4", "f4", 1)]:
    x = values(B, C, h, w, dtype=dtype)
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    offsets, logits = (values(B, k, H, W, dtype=kind, scale=s) for k, s in ((2, reach), (9, 1)))
    if kind == "f4" and offsets.size:
        offsets[0, :, 0, 0] = np.nan, np.inf
    out = np.empty((B, C, H, W), dtype)
    out_last = np.empty((B, H, W, C), dtype).transpose(0, 3, 1, 2)
    for map, y, l, corners, zeros in ((x, out, None, False, True), (last, out_last, logits, True, False)):
        m.refine_fwd_kernel(map, offsets, l, corners, zeros, y)
        grads = [None if t is None else np.empty_like(t) for t in (map, offsets, l)]
        m.refine_bwd_kernel(map, offsets, l, corners, zeros, y, *grads)
print("clean")
"""


def test_kernels_under_address_sanitizer(shim: ModuleType) -> None:
    cuda_host.run_sanitized("refine", ASAN_SCRIPT)
