"""Errors of the distill family: they name the argument, what it got and what it takes."""

from __future__ import annotations

import pytest
import torch

import metricseg_kernels as mk

FAMILY = "distill"
Z, Y, T = torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 2, 3), torch.zeros(2, 8, 10, dtype=torch.int64)
loss = mk.distillation_loss


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda: loss(3.0, Y, T), TypeError, r"student must be a Tensor \[B, K, h, w\], got float"),
    (lambda: loss(Z, None, T), TypeError, r"teacher must be a Tensor \[B, K, h2, w2\], got NoneType"),
    (lambda: loss(Z[0], Y, T), ValueError, r"student must be \[B, K, h, w\], got shape \(3, 4, 5\)"),
    (lambda: loss(Z, Y[0], T), ValueError, r"teacher must be \[B, K, h2, w2\], got shape \(3, 2, 3\)"),
    (lambda: loss(Z.long(), Y, T), TypeError, "student must have dtype float64, float32, bfloat16, float16, got int64"),
    (lambda: loss(Z, Y.long(), T), TypeError, "teacher must have dtype float64, .* got int64"),
    (lambda: loss(Z.double(), Y, T), TypeError, "teacher has dtype float32, student float64; float64 goes with float64"),
    (lambda: loss(Z, Y.double(), T), TypeError, "teacher has dtype float64, student float32"),
    (lambda: loss(Z, Y.to("meta"), T), ValueError, "teacher is on meta, student on cpu"),
    (lambda: loss(Z, Y, T.to("meta")), ValueError, "target is on meta, student on cpu"),
    (lambda: loss(Z, Y[:, :2], T), ValueError, r"teacher \(2, 2, 2, 3\) and student \(2, 3, 4, 5\) differ in batch size"),
    (lambda: loss(Z, Y[:1], T), ValueError, r"teacher \(1, 3, 2, 3\) and student \(2, 3, 4, 5\) differ in batch size"),
    (lambda: loss(Z, Y, T[:1]), ValueError, r"target \(1, 8, 10\) and student \(2, 3, 4, 5\) differ in batch size"),
    (lambda: loss(Z, Y, T.float()), TypeError, "target must have dtype uint8, int32, int64, got float32"),
    (lambda: loss(Z, Y, T[0]), ValueError, r"target must be \[B, H, W\], got shape \(8, 10\)"),
    (lambda: loss(Z, Y, T[:, None].expand(2, 3, 8, 10)), ValueError, r"target must be class indices \[B, H, W\]"),
    (lambda: loss(Z, Y, None), TypeError, r"target must be labels \[B, H, W\] or a size \(H, W\), got None"),
    (lambda: loss(Z, Y, (2, 8, 10)), TypeError, r"target must be labels .* got \(2, 8, 10\)"),
    (lambda: loss(Z, Y, (8, 10.0)), TypeError, "a size in target must be an int, got float"),
    (lambda: loss(Z, Y, (8, -1)), ValueError, r"a size in target must be in \[0, 2147483647\], got -1"),
    (lambda: loss(Z[:, :0], Y[:, :0], T), ValueError, "student must have at least one class"),
    (lambda: loss(Z[..., :0], Y, T), ValueError, r"student \(2, 3, 4, 0\) is empty while target \(2, 8, 10\) is not"),
    (lambda: loss(Z[..., :0], Y, (8, 10)), ValueError, r"student \(2, 3, 4, 0\) is empty while the target, \(8, 10\)"),
    (lambda: loss(Z, Y[:, :, :0], T), ValueError, r"teacher \(2, 3, 0, 3\) is empty while the target, \(8, 10\), is not"),
    (lambda: loss(Z, Y, T, temperature=0), ValueError, "temperature must be > 0, got 0"),
    (lambda: loss(Z, Y, T, temperature=-1), ValueError, "temperature must be finite and >= 0, got -1"),
    (lambda: loss(Z, Y, T, temperature=float("inf")), ValueError, "temperature must be finite and >= 0, got inf"),
    (lambda: loss(Z, Y, T, temperature=float("nan")), ValueError, "temperature must be finite and >= 0, got nan"),
    (lambda: loss(Z, Y, T, kind="mse"), ValueError, r"kind must be one of \('kl', 'reverse_kl', 'js'\), got 'mse'"),
    (lambda: loss(Z, Y, T, reduction="batchmean"), ValueError, r"reduction must be one of .* got 'batchmean'"),
    (lambda: loss(Z, Y, T, ignore_index="no"), ValueError, "ignore_index must be an int, None"),
    (lambda: loss(Z, Y, T, align_corners=None), TypeError, "align_corners must be a bool, got NoneType"),
    (lambda: loss(Z, Y, T, backend="gpu"), ValueError, "backend must be one of"),
    (lambda: loss(Z, Y, T, backend="cuda"), RuntimeError, "backend 'cuda' can't run here"),
])  # fmt: skip
def test_bad_input(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()
