"""Against the real libraries, where the formulas agree; and the shapes and labels that nobody thought of."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import metricseg_kernels as mk

FAMILY = "focal"

LOGITS = torch.randn(2, 6, 9, 13, generator=torch.Generator().manual_seed(0))
TARGET = torch.randint(0, 6, (2, 36, 52), generator=torch.Generator().manual_seed(1))
TARGET[:, :5] = 255


def upsampled(x: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, size=TARGET.shape[-2:], mode="bilinear", align_corners=False)


def same(ours, theirs) -> None:
    a, b = LOGITS.clone().requires_grad_(), LOGITS.clone().requires_grad_()
    our_loss, their_loss = ours(a), theirs(upsampled(b))
    torch.testing.assert_close(our_loss, their_loss, rtol=3e-6, atol=1e-7)
    our_loss.backward()
    their_loss.backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-8)


def test_segmentation_models_pytorch_focal() -> None:
    """Its multi-class focal loss averages one-vs-rest losses over the classes, each a mean over the valid pixels."""
    losses = pytest.importorskip("segmentation_models_pytorch.losses")
    for gamma in (0.0, 2.0):
        theirs = losses.FocalLoss("multiclass", gamma=gamma, ignore_index=255)
        same(
            lambda x, g=gamma: mk.sigmoid_focal_loss(x, TARGET, gamma=g, alpha=-1.0),
            lambda z, f=theirs: f(z, TARGET),
        )


def test_segmentation_models_pytorch_soft_cross_entropy() -> None:
    """Its label smoothing spreads e over all K classes, as torch's does, and divides by all pixels."""
    losses = pytest.importorskip("segmentation_models_pytorch.losses")
    theirs = losses.SoftCrossEntropyLoss(smooth_factor=0.0, ignore_index=255)
    same(lambda x: mk.cross_entropy(x, TARGET, avg_factor=float(TARGET.numel())), lambda z: theirs(z, TARGET))


def test_torch_cross_entropy_with_class_weights_and_255() -> None:
    """Class weights together with label 255 (mmsegmentation#3574): one answer, torch's, and no device assert."""
    weight = torch.rand(6) + 0.1
    same(
        lambda x: mk.cross_entropy(x, TARGET, weight=weight, label_smoothing=0.1),
        lambda z: F.cross_entropy(z, TARGET, weight, ignore_index=255, label_smoothing=0.1),
    )


def test_binary_focal_is_the_two_class_form() -> None:
    """softmax over (0, x) is sigmoid(x): the softmax and the sigmoid family meet (mmcv#2893)."""
    x = torch.randn(1, 1, 8, 8, dtype=torch.float64)
    target = torch.randint(0, 2, (1, 8, 8))
    two = torch.cat([torch.zeros_like(x), x], 1)
    softmax = mk.focal_loss(two, target, gamma=2.0, reduction="none")
    sigmoid = mk.sigmoid_focal_loss(x, target[:, None].double(), gamma=2.0, alpha=-1.0, reduction="none")[:, 0]
    torch.testing.assert_close(softmax, sigmoid)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    classes=st.integers(2, 40),
    cells=st.tuples(st.integers(1, 9), st.integers(1, 40)),
    size=st.tuples(st.integers(1, 30), st.integers(1, 90)),
    align=st.booleans(),
    gamma=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    smoothing=st.sampled_from([0.0, 0.1]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    label_dtype=st.sampled_from([torch.uint8, torch.int32, torch.int64]),
    last=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_any_shape_agrees_with_the_reference(
    classes, cells, size, align, gamma, smoothing, dtype, label_dtype, last, seed
) -> None:
    rng = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(1, classes, *cells, generator=rng, dtype=dtype)
    if last:
        logits = logits.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, classes + 1, (1, *size), generator=rng)
    target = torch.where(labels == classes, 255, labels).to(label_dtype)
    results = []
    for backend in (None, "reference"):
        x = logits.clone().requires_grad_()
        loss = mk.focal_loss(x, target, gamma=gamma, label_smoothing=smoothing, align_corners=align, backend=backend)
        loss.backward()
        results.append((loss.detach(), x.grad))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=2e-5, atol=1e-6)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-3, atol=2e-6)
