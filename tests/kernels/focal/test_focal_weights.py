"""What weighs pixels, divides sums and leaves pixels out: weights, avg_factor, dense targets, hard examples with NaN."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import metricseg_kernels as mk
from metricseg.losses import CrossEntropyLoss, FocalLoss, SigmoidFocalLoss

FAMILY = "focal"
R = torch.Generator().manual_seed(0)
LOGITS = torch.randn(2, 5, 4, 6, generator=R)
TARGET = torch.randint(0, 5, (2, 8, 12), generator=R)
TARGET[0, :3] = 255
CLASS_WEIGHT = torch.rand(5, generator=R) + 0.5
WEIGHT = torch.rand(2, 8, 12, generator=R)
NAN = float("nan")
LOSSES = {
    "focal": (mk.focal_loss, {"gamma": 1.5, "weight": CLASS_WEIGHT}),
    "cross_entropy": (mk.cross_entropy, {"label_smoothing": 0.1, "weight": CLASS_WEIGHT}),
    "sigmoid": (mk.sigmoid_focal_loss, {}),
}


def with_grad(loss: Any, target: Tensor, device: str, **options: Any) -> tuple[Tensor, Tensor]:
    x = LOGITS.to(device).clone().requires_grad_()
    options = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in options.items()}
    value = loss(x, target.to(device), **options)
    value.sum().backward()
    return value.detach(), x.grad


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", LOSSES)
def test_pixel_weights(name: str, reduction: str, backend: str, device: str) -> None:
    """Ones change nothing; the rest are factors, and one at an ignored pixel may be anything."""
    loss, options = LOSSES[name]
    options = {**options, "reduction": reduction, "backend": backend}
    plain = with_grad(loss, TARGET, device, **options)
    for ones in (torch.ones(2, 8, 12), torch.ones(2, 1, 8, 12)):
        for got, expected in zip(with_grad(loss, TARGET, device, pixel_weight=ones, **options), plain, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-7)
    x = LOGITS.to(device).clone().requires_grad_()
    kwargs = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in options.items() if k != "reduction"}
    each = loss(x, TARGET.to(device), reduction="none", **kwargs)
    factors = WEIGHT.to(device) if each.ndim == 3 else WEIGHT.to(device)[:, None]
    expected = each * factors
    if reduction != "none":
        expected = expected.sum()
    if reduction == "mean":  # by what it is divided without weights
        expected = expected * (plain[0] / each.detach().sum())
    expected.sum().backward()
    spoiled = torch.where(TARGET == 255, NAN, WEIGHT)
    got = with_grad(loss, TARGET, device, pixel_weight=spoiled, **options)
    torch.testing.assert_close(got[0], expected.detach(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(got[1], x.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("module", [FocalLoss(class_weight=CLASS_WEIGHT), CrossEntropyLoss(class_weight=CLASS_WEIGHT),
                                    SigmoidFocalLoss()], ids=lambda m: type(m).__name__)  # fmt: skip
def test_modules_take_pixel_weights_of_one_shape(module: torch.nn.Module) -> None:
    plain = module(LOGITS, TARGET)
    torch.testing.assert_close(module(LOGITS, TARGET, torch.ones(2, 8, 12)), plain)
    torch.testing.assert_close(module(LOGITS, TARGET, torch.ones(2, 1, 8, 12)), plain)
    for shape in ((2, 8), (8, 12), (2, 5, 8, 12), (2, 1, 1, 1), (1, 8, 12)):
        with pytest.raises(ValueError, match="pixel_weight must be"):
            module(LOGITS, TARGET, torch.ones(shape))
    with pytest.raises(ValueError, match="avg_factor goes with"):
        module(LOGITS, TARGET, torch.ones(2, 8, 12), avg_factor=3.0, reduction_override="sum")


@pytest.mark.parametrize("zero", [0, 0.0, torch.tensor(0), torch.zeros(1, 1), torch.zeros((), dtype=torch.float64)],
                         ids=["int", "float", "tensor", "matrix", "double"])  # fmt: skip
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_avg_factor_of_0_gives_0(name: str, weighted: bool, zero: Any, backend: str, device: str) -> None:
    loss, options = LOSSES[name]
    weight = {"pixel_weight": WEIGHT} if weighted else {}
    value, grad = with_grad(loss, TARGET, device, avg_factor=zero, backend=backend, **options, **weight)
    assert value.shape == () and value.dtype == torch.float32 and value == 0 and not grad.any()


def test_avg_factor_keeps_shape_and_dtype(backend: str, device: str) -> None:
    expected = with_grad(mk.focal_loss, TARGET, device, avg_factor=7, backend=backend)
    for seven in (torch.full((1, 1), 7.0), torch.tensor(7.0, dtype=torch.float64), torch.tensor(7)):
        for got, value in zip(
            with_grad(mk.focal_loss, TARGET, device, avg_factor=seven, backend=backend), expected, strict=True
        ):
            assert got.dtype == value.dtype
            torch.testing.assert_close(got, value)


@pytest.mark.parametrize("ignored", [255, -1, -100])
def test_dense_targets_ignore_pixels(ignored: int, backend: str, device: str) -> None:
    """As labels that are ignored do: the one-hot map of labels with these pixels filled gives what the labels give."""
    dense = F.one_hot(TARGET.where(TARGET < 5, 0), 5).movedim(-1, 1).float()
    dense = torch.where((TARGET == 255)[:, None], float(ignored), dense)
    for reduction in ("mean", "sum", "none"):
        options = {"reduction": reduction, "backend": backend}
        expected = with_grad(mk.sigmoid_focal_loss, TARGET, device, **options)
        for target in (dense, dense.double(), dense.long()):
            got = with_grad(mk.sigmoid_focal_loss, target, device, ignore_index=ignored, **options)
            for ours, theirs in zip(got, expected, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_binary_masks(backend: str, device: str) -> None:
    """[B, 1, H, W] of integers, as data sets of one class have them."""
    logits, mask = LOGITS[:, :1].to(device), (TARGET == 3).to(torch.uint8).to(device)[:, None]
    expected = mk.sigmoid_focal_loss(logits, mask.float(), backend=backend)
    assert torch.equal(mk.sigmoid_focal_loss(logits, mask, backend=backend), expected)


@pytest.mark.parametrize("bad", [255.0, -0.5, 1.5, NAN])
def test_dense_targets_out_of_range_are_named(bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = torch.rand(2, 5, 8, 12, generator=torch.Generator().manual_seed(0))
    dense[1, 2, 3, 4] = bad
    with pytest.raises(ValueError, match=f"target holds 1 values.*for example {bad:g}"):
        mk.sigmoid_focal_loss(LOGITS, dense)
    monkeypatch.setattr("metricseg_kernels.core.checks.validates", lambda device: False)  # as on CUDA
    for backend in ("reference", "cpu"):
        assert mk.sigmoid_focal_loss(LOGITS, dense, backend=backend).isnan()


def test_hard_examples_show_a_nan(backend: str, device: str) -> None:
    logits = LOGITS.to(device).clone()
    logits[1, 2, 1, 1] = NAN
    for min_kept in (0, 10, 10_000):
        assert mk.ohem_cross_entropy(logits, TARGET.to(device), min_kept=min_kept, backend=backend).isnan()
