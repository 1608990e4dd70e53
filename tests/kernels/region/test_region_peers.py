"""The region family against other libraries, where the formulas agree, in fp64 with gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import metricseg_kernels as mk

FAMILY = "region"

R = torch.Generator().manual_seed(0)
LOGITS = 2 * torch.randn(2, 6, 9, 13, generator=R, dtype=torch.float64)
TARGET = torch.randint(0, 6, (2, 36, 52), generator=R)
MASKS = (torch.rand(2, 6, 36, 52, generator=R) < 0.3).double()


def same(ours, theirs) -> None:
    """Loss and gradient of low-resolution logits, and of those that F.interpolate makes of them."""
    a, b = LOGITS.clone().requires_grad_(), LOGITS.clone().requires_grad_()
    our_loss, their_loss = ours(a), theirs(F.interpolate(b, size=TARGET.shape[-2:], mode="bilinear"))
    torch.testing.assert_close(our_loss, their_loss, rtol=1e-12, atol=1e-14)
    our_loss.backward()
    their_loss.backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("batch", [False, True])
def test_monai(batch: bool) -> None:
    losses = pytest.importorskip("monai.losses")
    options = {"to_onehot_y": True, "softmax": True, "batch": batch, "smooth_nr": 0.5, "smooth_dr": 0.5}
    ours = {"smooth": 0.5, "per_image": not batch}
    target = TARGET[:, None]
    same(lambda x: mk.region_loss(x, TARGET, **ours), lambda z: losses.DiceLoss(**options)(z, target))
    same(
        lambda x: mk.region_loss(x, TARGET, form="jaccard", **ours | {"smooth": 0.25}),
        lambda z: losses.DiceLoss(jaccard=True, **options)(z, target),
    )
    same(
        lambda x: mk.region_loss(x, TARGET, form="tversky", alpha=0.3, beta=0.8, **ours),
        lambda z: losses.TverskyLoss(alpha=0.3, beta=0.8, **options)(z, target),
    )
    same(
        lambda x: mk.cross_entropy_dice(x, TARGET, lambda_ce=0.7, lambda_dice=1.5, label_smoothing=0.1, **ours),
        lambda z: losses.DiceCELoss(lambda_ce=0.7, lambda_dice=1.5, label_smoothing=0.1, **options)(z, target),
    )
    overlapping = {"sigmoid": True, "batch": batch, "smooth_nr": 0.5, "smooth_dr": 0.5}
    same(
        lambda x: mk.region_loss(x, MASKS, activation="sigmoid", **ours),
        lambda z: losses.DiceLoss(**overlapping)(z, MASKS),
    )


def test_monai_weights() -> None:
    """MONAI divides the weighted losses by K, not by the sum of weights."""
    losses = pytest.importorskip("monai.losses")
    weight = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.5, 0.1], dtype=torch.float64)
    theirs = losses.DiceLoss(to_onehot_y=True, softmax=True, batch=True, weight=weight, smooth_nr=1.0, smooth_dr=1.0)
    share = weight.sum() / 6
    same(lambda x: share * mk.region_loss(x, TARGET, weight=weight), lambda z: theirs(z, TARGET[:, None]))


@pytest.mark.parametrize("log", [False, True])
def test_segmentation_models_pytorch(log: bool) -> None:
    losses = pytest.importorskip("segmentation_models_pytorch.losses")
    same(
        lambda x: mk.region_loss(x, TARGET, smooth=0.0, log=log),
        lambda z: losses.DiceLoss("multiclass", log_loss=log)(z, TARGET),
    )
    same(
        lambda x: mk.region_loss(x, TARGET, form="jaccard", smooth=0.5, log=log),
        lambda z: losses.JaccardLoss("multiclass", smooth=0.5, log_loss=log)(z, TARGET),
    )
    same(
        lambda x: mk.region_loss(x, TARGET, form="tversky", alpha=0.3, beta=0.8, smooth=0.5, log=log),
        lambda z: losses.TverskyLoss("multiclass", alpha=0.3, beta=0.8, smooth=0.5, log_loss=log)(z, TARGET),
    )
    same(
        lambda x: mk.region_loss(x, MASKS, smooth=0.0, log=log, activation="sigmoid"),
        lambda z: losses.DiceLoss("multilabel", log_loss=log)(z, MASKS),
    )


def test_segmentation_models_pytorch_with_ignored_pixels_and_an_absent_class() -> None:
    """It counts an absent class as 0, and divides by all classes."""
    losses = pytest.importorskip("segmentation_models_pytorch.losses")
    target = torch.where(TARGET == 5, 255, TARGET)
    for form, theirs in (("dice", losses.DiceLoss), ("tversky", losses.TverskyLoss)):
        same(
            lambda x, f=form: 5 / 6 * mk.region_loss(x, target, form=f, smooth=0.0, average="present"),
            lambda z, t=theirs: t("multiclass", ignore_index=255)(z, target),
        )


def test_torchmetrics() -> None:
    """Scores of hard predictions: logits so far apart that probabilities are 0 and 1."""
    functional = pytest.importorskip("torchmetrics.functional")
    predicted = torch.randint(0, 6, TARGET.shape, generator=torch.Generator().manual_seed(1))
    hard = 1e4 * F.one_hot(predicted, 6).movedim(-1, 1).double()
    jaccard = functional.jaccard_index(predicted, TARGET, "multiclass", num_classes=6)
    found = 1 - mk.region_loss(hard, TARGET, form="jaccard", smooth=0.0)
    torch.testing.assert_close(found.float(), jaccard)
    f1 = functional.f1_score(predicted, TARGET, "multiclass", num_classes=6, average="macro", multidim_average="global")
    torch.testing.assert_close(1 - mk.region_loss(hard, TARGET, smooth=0.0).float(), f1)
    dice_score = pytest.importorskip("torchmetrics.functional.segmentation").dice_score
    score = dice_score(predicted, TARGET, num_classes=6, average="macro", input_format="index")
    found = torch.stack([1 - mk.region_loss(hard[[b]], TARGET[[b]], smooth=0.0) for b in range(2)])
    torch.testing.assert_close(found.float().mean(), score.mean())
