"""Errors of the region family: they name the argument, what it got and what it takes."""

from __future__ import annotations

import pytest
import torch

import metricseg_kernels as mk

FAMILY = "region"
Z, T = torch.zeros(2, 3, 4, 5), torch.zeros(2, 8, 10, dtype=torch.int64)
SOFT = torch.rand(2, 3, 8, 10)
region, both = mk.region_loss, mk.cross_entropy_dice


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda: region(3.0, T), TypeError, r"input must be a Tensor \[B, K, h, w\] or \[B, K, d, h, w\], got float"),
    (lambda: region(Z[0], T), ValueError, r"input must be \[B, K, h, w\] or \[B, K, d, h, w\], got shape \(3, 4, 5\)"),
    (lambda: region(Z.long(), T), TypeError, "input must have dtype float64, float32, bfloat16, float16, got int64"),
    (lambda: region(Z, T.float()), TypeError, "target must have dtype uint8, int32, int64, got float32"),
    (lambda: region(Z, T[0]), ValueError, r"target must be \[B, H, W\], got shape \(8, 10\)"),
    (lambda: region(Z, T[:1]), ValueError, r"target \(1, 8, 10\) and input \(2, 3, 4, 5\) differ in batch size"),
    (lambda: region(Z, SOFT[:, :2]), ValueError, "differ in batch size or classes"),
    (lambda: region(Z, SOFT > 0.5), TypeError, "target must have dtype float64, .* got bool"),
    (lambda: region(Z, SOFT.clone().requires_grad_()), ValueError, "target requires grad"),
    (lambda: region(Z, SOFT - 0.5), ValueError, r"target holds \d+ soft values that are not >= 0: for example -0"),
    (lambda: region(Z, SOFT * torch.nan), ValueError, "target holds 480 soft values that are not >= 0: for example nan"),
    (lambda: region(Z, T + 3), ValueError, r"target holds 160 labels that are neither ignore_index \(255\) nor in \[0, 3\)"),
    (lambda: region(Z, T - 1, ignore_index=None), ValueError, r"not in \[0, 3\): for example -1"),
    (lambda: region(Z, T + 7, per_image=True), ValueError, "target holds 160 labels .* for example 7"),
    (lambda: both(Z, T + 7), ValueError, "target holds 160 labels .* for example 7"),
    (lambda: region(Z[:, :1], T), ValueError, "input must have two classes or more, .* activation 'sigmoid'"),
    (lambda: both(Z[:, :1], T), ValueError, "input must have two classes or more"),
    (lambda: region(Z[:, :0], T), ValueError, "input must have at least one class"),
    (lambda: region(Z[..., :0], T), ValueError, "is empty while target"),
    (lambda: region(Z, T, form="iou"), ValueError, r"form must be one of \('dice', 'tversky', 'jaccard'\), got 'iou'"),
    (lambda: region(Z, T, activation="relu"), ValueError, "activation must be one of"),
    (lambda: region(Z, T, average="macro"), ValueError, "average must be one of"),
    (lambda: region(Z, T, alpha=-0.1), ValueError, "alpha must be finite and >= 0, got -0.1"),
    (lambda: region(Z, T, beta=float("inf")), ValueError, "beta must be finite and >= 0, got inf"),
    (lambda: region(Z, T, smooth=-1), ValueError, "smooth must be finite and >= 0, got -1"),
    (lambda: region(Z, T, exponent=0), ValueError, "exponent must be > 0, got 0"),
    (lambda: region(Z, T, exponent=-1), ValueError, "exponent must be finite and >= 0, got -1"),
    (lambda: region(Z, T, label_smoothing=1.5), ValueError, r"label_smoothing must be finite and in \[0, 1\], got 1.5"),
    (lambda: region(Z, T, weight=torch.ones(2)), ValueError, "weight must have one entry per class, 3, got 2"),
    (lambda: region(Z, T, weight=torch.ones(3).requires_grad_()), ValueError, "weight requires grad"),
    (lambda: region(Z, T, ignore_index="no"), ValueError, "ignore_index must be an int, None"),
    (lambda: region(Z, T, all_reduce=5), TypeError, "all_reduce must be a function of a Tensor, got int"),
    (lambda: region(Z, T, all_reduce=lambda sums: None), TypeError, r"all_reduce must return a Tensor \[12\].* got NoneType"),
    (lambda: region(Z, T, per_image=True, all_reduce=abs), ValueError, "all_reduce .* per_image=True"),
    (lambda: region(Z, T, per_image=1), TypeError, "per_image must be a bool, got int"),
    (lambda: region(Z, T, align_corners=None), TypeError, "align_corners must be a bool, got NoneType"),
    (lambda: region(Z, T, log="yes"), TypeError, "log must be a bool, got str"),
    (lambda: region(Z, T, backend="gpu"), ValueError, "backend must be one of"),
    (lambda: both(Z, SOFT), ValueError, r"target must be labels for a loss of pixels, got .*argmax\(1\)"),
    (lambda: both(Z, T, lambda_ce=-1), ValueError, "lambda_ce must be finite and >= 0, got -1"),
    (lambda: both(Z, T, lambda_dice=-1), ValueError, "lambda_dice must be finite and >= 0, got -1"),
    (lambda: both(Z, T, label_smoothing=2), ValueError, "label_smoothing must be finite and in"),
    (lambda: mk.focal_dice(Z, T, gamma=-1), ValueError, "gamma must be finite and >= 0, got -1"),
    (lambda: mk.focal_dice(Z, T, lambda_focal=-1), ValueError, "lambda_focal must be finite and >= 0, got -1"),
])  # fmt: skip
def test_bad_input(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()


def test_bad_targets_that_may_not_be_looked_at_give_nan(backend: str, device: str, monkeypatch) -> None:
    monkeypatch.setattr("metricseg_kernels.core.checks.validates", lambda _: False)
    z, labels, soft = (t.to(device) for t in (Z, T.clone(), SOFT.clone()))
    labels[0, 0, 0], soft[0, 0, 0, 0] = 5, -1.0
    for activation in ("softmax", "sigmoid"):
        for average in ("classes", "present"):
            for target in (labels, soft):
                assert region(z, target, activation=activation, average=average, backend=backend).isnan()
    assert both(z, labels, backend=backend).isnan() and mk.focal_dice(z, labels, backend=backend).isnan()
