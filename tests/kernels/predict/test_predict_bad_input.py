"""Errors of predict_labels and confusion_matrix: they name the argument, what it got and what it takes."""

from __future__ import annotations

import pytest
import torch

import metricseg_kernels as mk

Z, SIZE = torch.zeros(2, 3, 4, 5), (8, 10)
TARGET = torch.zeros(2, 8, 10, dtype=torch.int64)
predict, confusion = mk.predict_labels, mk.confusion_matrix


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda: predict([], SIZE), ValueError, "logits must be 1 to 32 maps, got 0"),
    (lambda: predict([Z] * 33, SIZE), ValueError, "logits must be 1 to 32 maps, got 33"),
    (lambda: predict(3.0, SIZE), TypeError, r"logits must be a Tensor .*, or a sequence of them, got float"),
    (lambda: predict([Z, 1], SIZE), TypeError, r"logits\[1\] must be a Tensor \[B, K, h, w\] or \[B, K, d, h, w\], got int"),
    (lambda: predict(Z[0], SIZE), ValueError, r"logits must be \[B, K, h, w\] or \[B, K, d, h, w\], got shape \(3, 4, 5\)"),
    (lambda: predict(Z.long(), SIZE), TypeError, "logits must have dtype float64, float32, bfloat16, float16, got int64"),
    (lambda: predict([Z, Z[:1]], SIZE), ValueError, r"logits\[1\] \(1, 3, 4, 5\) and logits\[0\] .* differ in batch size"),
    (lambda: predict([Z, Z[:, :2]], SIZE), ValueError, "differ in batch size or classes"),
    (lambda: predict([Z, Z.double()], SIZE), TypeError, r"logits\[1\] must have the dtype of logits\[0\], torch.float32"),
    (lambda: predict(Z[..., :0], SIZE), ValueError, r"logits must have h, w >= 1, got shape \(2, 3, 4, 0\)"),
    (lambda: predict(Z[:, :1], SIZE), ValueError, "logits must have two classes or more, .* torch.cat"),
    (lambda: predict(Z[:, :0], SIZE), ValueError, "logits must have 2 to 65536 classes, got 0"),
    (lambda: predict(Z, (8,)), ValueError, r"size must be \(H, W\) for logits .*, got \(8,\)"),
    (lambda: predict(Z, 8), ValueError, r"size must be \(H, W\) for logits .*, got 8"),
    (lambda: predict(Z, (0, 8)), ValueError, r"size\[0\] must be in \[1, 2147483647\], got 0"),
    (lambda: predict(Z, (8, 2.5)), TypeError, r"size\[1\] must be an int, got float"),
    (lambda: predict(Z, SIZE, flipped=[True, False]), ValueError, "flipped must have one entry for each of 1 maps, got 2"),
    (lambda: predict(Z, SIZE, flipped=[1]), TypeError, r"flipped must be a bool, or one for each map, got \[1\]"),
    (lambda: predict([Z, Z], SIZE, weights=[1.0]), ValueError, "weights must have one entry for each of 2 maps, got 1"),
    (lambda: predict([Z, Z], SIZE, weights=[0, 0]), ValueError, r"weights must have a positive sum, got \[0, 0\]"),
    (lambda: predict([Z, Z], SIZE, weights=[1, -1]), ValueError, r"weights\[1\] must be finite and >= 0, got -1"),
    (lambda: predict([Z, Z], SIZE, weights=[1, float("nan")]), ValueError, r"weights\[1\] must be finite"),
    (lambda: predict(Z, SIZE, weights=2.0), TypeError, "weights must be a sequence of numbers, one for each map, got float"),
    (lambda: predict(Z, SIZE, align_corners=1), TypeError, "align_corners must be a bool, got int"),
    (lambda: predict(Z, SIZE, out_dtype=torch.float32), TypeError, "out_dtype must be one of uint8, int16, int32, int64"),
    (lambda: predict(torch.zeros(1, 300, 1, 1), SIZE, out_dtype=torch.uint8), ValueError,
     "out_dtype must hold the classes up to 299, got torch.uint8"),
    (lambda: predict(torch.zeros(1, 40000, 1, 1), SIZE, out_dtype=torch.int16), ValueError,
     "out_dtype must hold the classes up to 39999, got torch.int16"),
    (lambda: predict(Z, SIZE, backend="gpu"), ValueError, "backend"),
    (lambda: confusion(Z, TARGET.float()), TypeError, "target must have dtype uint8, int32, int64, got float32"),
    (lambda: confusion(Z, TARGET[:1]), ValueError, r"target \(1, 8, 10\) and logits \(2, 3, 4, 5\) differ in batch size"),
    (lambda: confusion(Z, TARGET + 3), ValueError, r"target holds 160 labels that are neither ignore_index \(255\)"),
    (lambda: confusion(Z, TARGET - 1, ignore_index=None), ValueError, r"not in \[0, 3\): for example -1"),
    (lambda: confusion(Z, TARGET, out=torch.zeros(3, 3)), TypeError, "out must have dtype int64, got float32"),
    (lambda: confusion(Z, TARGET, out=torch.zeros(4, 4, dtype=torch.int64)), ValueError,
     r"out must be \[K, K\] with K = 3, got shape \(4, 4\)"),
    (lambda: confusion(Z, TARGET, ignore_index="no"), ValueError, "ignore_index"),
])  # fmt: skip
def test_bad_input(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()


def test_out_is_left_as_it_was() -> None:
    out = torch.full((3, 3), 5)
    with pytest.raises(ValueError, match="target holds 1 labels"):
        bad = TARGET.clone()
        bad[1, 7, 9] = 9
        confusion(Z, bad, out=out)
    assert (out == 5).all()


def test_default_dtype_of_labels() -> None:
    for classes, dtype in ((2, torch.uint8), (256, torch.uint8), (257, torch.int16), (32769, torch.int32)):
        assert predict(torch.zeros(1, classes, 1, 1), (1, 1)).dtype == dtype
