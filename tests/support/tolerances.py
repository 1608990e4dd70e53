"""Tolerances, the same for every op family and backend, and the layouts of maps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metricseg_kernels.core import backends

# relative floors under the rule "error <= 2 x plain PyTorch's error + floor"
FLOORS = {torch.float64: 1e-11, torch.float32: 2e-6, torch.bfloat16: 2e-3, torch.float16: 3e-4}
FLOOR_PARAMS = [pytest.param(d, id=str(d).removeprefix("torch.")) for d in FLOORS]


def lay_out(x: Tensor, layout: str) -> Tensor:
    if layout == "nhwc":
        return x.contiguous(memory_format=torch.channels_last_3d if x.ndim == 5 else torch.channels_last)
    if layout == "strided" and x.ndim == 5:
        wide = x.new_full((x.shape[0], x.shape[1] + 1, *(n + 1 for n in x.shape[2:])), torch.nan)
        inner = wide[:, 1:, 1:, :-1, :-1]
        inner.copy_(x)
        return inner
    if layout == "strided":
        wide = x.new_full((x.shape[0], x.shape[1] + 1, x.shape[2], 2 * x.shape[3]), torch.nan)
        wide[:, 1:, :, ::2] = x
        return wide[:, 1:, :, ::2]
    return x


def relative_error(got: Tensor, truth: Tensor) -> float:
    """Relative L2; absolute where the truth is zero."""
    assert got.shape == truth.shape
    if truth.numel() == 0:
        return 0.0
    difference = (got.detach().double().cpu() - truth.detach().double().cpu()).norm().item()
    scale = truth.detach().double().norm().item()
    return difference / scale if scale > 0 else difference


def assert_as_good(got: Tensor, plain: Tensor, truth: Tensor, dtype: torch.dtype) -> float:
    """The rule: the error against fp64 truth is at most twice plain PyTorch's in the same dtype, plus a floor."""
    bound = 2 * relative_error(plain, truth) + FLOORS[dtype]
    assert relative_error(got, truth) <= bound
    return bound


def assert_gradient(got: Tensor, plain: Tensor, truth: Tensor, dtype: torch.dtype, shared: bool = False) -> None:
    """As `assert_as_good`; and the direction is right, and the errors do not add up to a bias.

    shared: pixels of the map [B, C, h, w] share numbers that were rounded; the errors of their sums do not add up.
    """
    bound = assert_as_good(got, plain, truth, dtype)
    g, t = got.detach().double().cpu(), truth.detach().double().cpu()
    if t.numel() == 0 or t.norm() == 0:
        return
    assert (g * t).sum() / (g.norm() * t.norm()) >= 1 - bound**2 - 1e-14  # of the cosine itself
    if shared:
        g, t = g.flatten(2).sum(2), t.flatten(2).sum(2)
    assert abs((g - t).sum()) <= 4 * bound * t.norm()


def skip_unsupported(backend: str, dtype: torch.dtype) -> None:
    if backend == "triton" and backends.interpreting() and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter has no bf16 arithmetic")


def assert_argmax(labels: Tensor, scores: Tensor, expected: Tensor) -> None:
    """The labels [B, H, W] expected, the largest of the scores [B, K, H, W]; but for scores that are equal to rounding,
    of which there may be one pixel in a thousand."""
    assert labels.shape == expected.shape
    lost = scores.amax(1) - scores.gather(1, labels.long()[:, None])[:, 0]
    assert lost.max() <= 1e-5 * scores.abs().max()
    assert (labels != expected).sum() <= labels.numel() / 1000
