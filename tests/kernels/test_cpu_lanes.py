"""Vector functions and products of the cpu backend, at every width that this processor has, against fp64 and torch."""

from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess

import pytest
import torch
from places import SUPPORT
from torch import Tensor

SOURCE = SUPPORT / "cpu_lanes" / "lanes.cpp"
WIDTHS = ("avx512", "avx2", "baseline") if platform.machine() == "x86_64" else ("baseline",)
FLAGS = (
    "-O2",
    "-std=c++17",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fPIC",
    "-shared",
    "-Wall",
    "-Wextra",
    "-Werror",
)


@pytest.fixture(scope="module", params=WIDTHS)
def lanes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    library = tmp_path_factory.mktemp("lanes") / f"{request.param}.so"
    subprocess.run(["g++", *FLAGS, f"-DMETRICSEG_SIMD={request.param}", str(SOURCE), "-o", str(library)], check=True)
    loaded = ctypes.CDLL(str(library))
    if not loaded.lanes_run_here():
        pytest.skip(f"this processor has no {request.param}")
    return loaded


def apply(function: object, x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    padded = torch.cat([x, x.new_zeros(-len(x) % 16)])
    out = torch.empty(padded.shape, dtype=dtype)
    function(ctypes.c_void_p(padded.data_ptr()), ctypes.c_void_p(out.data_ptr()), len(padded))  # type: ignore[operator]
    return out[: len(x)]


def ulps(got: Tensor, truth: Tensor) -> Tensor:
    """Error in units in the last place of the true value, normal numbers."""
    exponent = truth.abs().clamp(min=2.0**-126).log2().floor()
    return (got.double() - truth).abs() / (exponent - 23).exp2()


def floats_between(low: float, high: float, count: int = 1 << 20) -> Tensor:
    """Every n-th float of a range of one sign: as dense near zero as floats are."""
    edges = torch.tensor([low, high]).view(torch.int32).sort().values
    return torch.linspace(int(edges[0]), int(edges[1]), count, dtype=torch.float64).to(torch.int32).view(torch.float32)


def test_exp(lanes: ctypes.CDLL) -> None:
    x = torch.cat([floats_between(-87.33, -1e-30), torch.linspace(-20, 0, 1 << 18)])
    truth = x.double().exp()
    for function in (lanes.lanes_exp, lanes.lanes_exp_below_zero):
        assert ulps(apply(function, x), truth).max() < 1.2
    x = torch.linspace(0, 88.37, 1 << 18)
    assert ulps(apply(lanes.lanes_exp, x), x.double().exp()).max() < 1.2
    inf, nan = float("inf"), float("nan")
    special = apply(lanes.lanes_exp_below_zero, torch.tensor([0.0, -0.0, -87.4, -1e4, -3e38, -inf, nan]))
    torch.testing.assert_close(special, torch.tensor([1.0, 1.0, 0, 0, 0, 0, nan]), rtol=0, atol=0, equal_nan=True)


def test_log1p(lanes: ctypes.CDLL) -> None:
    x = torch.cat([floats_between(1e-37, 1e9), torch.linspace(0, 4, 1 << 18)])
    assert ulps(apply(lanes.lanes_log1p, x), x.double().log1p()).max() < 1.8
    assert apply(lanes.lanes_log1p, torch.tensor([0.0])).item() == 0
    assert apply(lanes.lanes_log1p, torch.tensor([float("nan")])).isnan().all()


def test_pow(lanes: ctypes.CDLL) -> None:
    x = floats_between(1.2e-38, 1.0)
    for function, exponent in ((lanes.lanes_square_root, 0.5), (lanes.lanes_fifth_power, 5.0)):
        truth = x.double() ** exponent
        bound = 2 * (1 + (exponent * x.double().log()).abs())
        normal = truth > 2.0**-125
        assert (ulps(apply(function, x), truth) < bound)[normal].all()
        special = apply(function, torch.tensor([0.0, 1.0, float("nan")]))
        assert special[0] == 0 and special[1] == 1 and special[2].isnan()


def test_shift(lanes: ctypes.CDLL) -> None:
    n = lanes.lanes_count()
    x = torch.arange(1.0, 1 + 64)
    rows = x.reshape(-1, n)
    zero = torch.zeros(len(rows), 1)
    assert torch.equal(apply(lanes.lanes_shift_down, x).reshape(-1, n), torch.cat([rows[:, 1:], zero], 1))
    assert torch.equal(apply(lanes.lanes_shift_up, x).reshape(-1, n), torch.cat([zero, rows[:, :-1]], 1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
def test_conversions_are_those_of_torch(lanes: ctypes.CDLL, dtype: torch.dtype) -> None:
    name = "bf16" if dtype == torch.bfloat16 else "f16"
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    wide = apply(getattr(lanes, f"widen_{name}"), every)
    torch.testing.assert_close(wide, every.view(dtype).float(), rtol=0, atol=0, equal_nan=True)
    finite = wide[wide.isfinite()]
    inf = torch.tensor([float("inf"), -float("inf"), float("nan")])
    step = torch.nextafter(finite, inf[0])
    middles = (finite.double() + finite.double() * 2.0 ** -(9 if name == "bf16" else 12)).float()
    x = torch.cat([wide, step, middles, torch.randn(1 << 18) * 1e-6, torch.randn(1 << 18) * 1e5, inf])
    got = apply(getattr(lanes, f"narrow_{name}"), x, torch.int16).view(dtype)
    torch.testing.assert_close(got.float(), x.to(dtype).float(), rtol=0, atol=0, equal_nan=True)


# (M, N, K): none, one, parts of a block, of a panel, of a square that is transposed, of a step and a run of K, of a run
# of rows
PRODUCTS = (
    (0, 3, 4), (3, 0, 4), (5, 7, 0), (1, 1, 1), (3, 5, 7), (6, 8, 4), (14, 32, 16), (15, 33, 17), (28, 16, 256),
    (31, 31, 600), (100, 190, 63), (300, 70, 257), (513, 64, 1030), (2050, 9, 20),
)  # fmt: skip


def stored(matrix: Tensor, transposed: bool) -> Tensor:
    """A view of the same values with the other dimension contiguous, inside a tensor of NaN: its rows are strided."""
    values = matrix.t() if transposed else matrix
    room = torch.full((len(values), values.shape[1] + 3), torch.nan, dtype=matrix.dtype)
    room[:, : values.shape[1]] = values
    room = room[:, : values.shape[1]]
    return room.t() if transposed else room


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("turned", [(0, 0), (0, 1), (1, 0)], ids=["W-Y", "X-Yt", "Wt-X"])
def test_product(lanes: ctypes.CDLL, turned: tuple[int, int], dtype: torch.dtype) -> None:
    """Against fp64: the error bound of a sum of K terms in any order. Nothing beside `out` is read or written."""
    function = lanes.product_f32 if dtype == torch.float32 else lanes.product_f64
    rng = torch.Generator().manual_seed(0)
    for M, N, K in PRODUCTS:
        a = stored(torch.randn(M, K, generator=rng, dtype=dtype), bool(turned[0]))
        b = stored(torch.randn(K, N, generator=rng, dtype=dtype), bool(turned[1]))
        truth, sizes = a.numpy().astype("f8") @ b.numpy().astype("f8"), abs(a.double()) @ abs(b.double())
        for sign, accumulate in ((1, 0), (1, 1), (-1, 1)):
            room = torch.randn(M, N + 5, generator=rng, dtype=dtype)
            before, out = room.clone(), room[:, 1 : N + 1]
            strides = (ctypes.c_int64 * 5)(*a.stride(), *b.stride(), room.stride(0))
            pointers = (ctypes.c_void_p(t.data_ptr()) for t in (a, b, out))
            function(*pointers, *map(ctypes.c_int64, (M, N, K)), strides, sign, accumulate)
            start = accumulate * before[:, 1 : N + 1].double()
            error = (out.double() - (start + sign * torch.from_numpy(truth))).abs()
            assert (error <= torch.finfo(dtype).eps * (0.5 * K + 1) * (sizes + start.abs())).all(), (M, N, K)
            assert torch.equal(room[:, 0], before[:, 0]) and torch.equal(room[:, N + 1 :], before[:, N + 1 :])


def test_product_keeps_a_nan_in_its_row_and_column(lanes: ctypes.CDLL) -> None:
    for M, N, K in ((29, 37, 300), (14, 32, 16)):
        a, b, out = torch.randn(M, K), torch.randn(K, N), torch.zeros(M, N)
        a[-1, 3], b[5, 0] = torch.nan, torch.inf
        strides = (ctypes.c_int64 * 5)(*a.stride(), *b.stride(), N)
        pointers = (ctypes.c_void_p(t.data_ptr()) for t in (a, b, out))
        lanes.product_f32(*pointers, *map(ctypes.c_int64, (M, N, K)), strides, 1, 0)
        assert out[:-1, 1:].isfinite().all() and out[-1].isnan().all() and not out[:, 0].isfinite().any()
