"""Errors of the lovasz family: they name the argument, what it got and what it takes."""

from __future__ import annotations

import pytest
import torch

import metricseg_kernels as mk

FAMILY = "lovasz"
Z, T = torch.zeros(2, 3, 4, 5), torch.zeros(2, 8, 10, dtype=torch.int64)
lovasz = mk.lovasz_loss


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda: lovasz(3.0, T), TypeError, r"input must be a Tensor \[B, K, h, w\], got float"),
    (lambda: lovasz(Z[0], T), ValueError, r"input must be \[B, K, h, w\], got shape \(3, 4, 5\)"),
    (lambda: lovasz(Z.long(), T), TypeError, "input must have dtype float64, float32, bfloat16, float16, got int64"),
    (lambda: lovasz(Z, T.float()), TypeError, r"target must have dtype uint8, .* got float32; write target.long\(\)"),
    (lambda: lovasz(Z, T[:1]), ValueError, r"target \(1, 8, 10\) and input \(2, 3, 4, 5\) differ in batch size"),
    (lambda: lovasz(Z, torch.rand(2, 3, 8, 10)), ValueError, r"target must be class indices .*argmax\(1\)"),
    (lambda: lovasz(Z, torch.zeros(2, 8, 10, 3).long()), ValueError, r"target must be class indices .*argmax\(-1\)"),
    (lambda: lovasz(Z, T + 3), ValueError, r"target holds 160 labels that are neither ignore_index \(255\) nor in \[0, 3\)"),
    (lambda: lovasz(Z, T - 1, ignore_index=None), ValueError, r"not in \[0, 3\): for example -1"),
    (lambda: lovasz(Z, T + 7, per_image=True), ValueError, "target holds 160 labels .* for example 7"),
    (lambda: lovasz(Z[:, :1], T), ValueError, "input must have two classes or more"),
    (lambda: lovasz(Z[..., :0], T), ValueError, "is empty while target"),
    (lambda: lovasz(Z, T, bins=1), ValueError, r"bins must be in \[2, 4096\], got 1"),
    (lambda: lovasz(Z, T, bins=5000), ValueError, r"bins must be in \[2, 4096\], got 5000"),
    (lambda: lovasz(Z, T, bins=16.0), TypeError, "bins must be an int, got float"),
    (lambda: lovasz(Z, T, average="macro"), ValueError, "average must be one of"),
    (lambda: lovasz(Z, T, weight=torch.ones(2)), ValueError, "weight must have one entry per class, 3, got 2"),
    (lambda: lovasz(Z, T, ignore_index="no"), ValueError, "ignore_index must be an int, None"),
    (lambda: lovasz(Z, T, all_reduce=5), TypeError, "all_reduce must be a function of a Tensor, got int"),
    (lambda: lovasz(Z, T, bins=4, all_reduce=lambda sums: None), TypeError, r"all_reduce must return a Tensor \[52\].* got NoneType"),
    (lambda: lovasz(Z, T, per_image=True, all_reduce=abs), ValueError, "all_reduce .* per_image=True"),
    (lambda: lovasz(Z, T, per_image=1), TypeError, "per_image must be a bool, got int"),
    (lambda: lovasz(Z, T, align_corners=None), TypeError, "align_corners must be a bool, got NoneType"),
    (lambda: lovasz(Z, T, backend="gpu"), ValueError, "backend must be one of"),
])  # fmt: skip
def test_bad_input(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()


def test_there_is_no_cuda_kernel() -> None:
    with pytest.raises(RuntimeError, match="backend 'cuda' can't run here: lovasz has no cuda kernels"):
        lovasz(Z, T, backend="cuda")


def test_bad_labels_that_may_not_be_looked_at_give_nan(backend: str, device: str, monkeypatch) -> None:
    monkeypatch.setattr("metricseg_kernels.core.checks.validates", lambda _: False)
    z, labels = Z.to(device), T.clone().to(device)
    labels[0, 0, 0] = 5
    for per_image in (False, True):
        assert lovasz(z, labels, per_image=per_image, backend=backend).isnan()
