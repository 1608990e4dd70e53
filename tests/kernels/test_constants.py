"""Numbers and flags of every family: anything else raises an error that names the argument."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import metricseg_kernels as mk
from metricseg import losses
from metricseg_kernels.core import checks

Z, T = torch.zeros(1, 3, 2, 2), torch.zeros(1, 4, 4, dtype=torch.int64)
ROWS, IDS = torch.eye(4), torch.arange(4)

NUMBERS = {
    "gamma": lambda v: mk.focal_loss(Z, T, gamma=v),
    "label_smoothing": lambda v: mk.cross_entropy(Z, T, label_smoothing=v),
    "alpha": lambda v: mk.sigmoid_focal_loss(Z, T, alpha=v),
    "thresh": lambda v: mk.ohem_cross_entropy(Z, T, thresh=v),
    "top_k_percent": lambda v: mk.ohem_cross_entropy(Z, T, top_k_percent=v),
    "temperature": lambda v: mk.pixel_contrast_loss(ROWS, IDS // 2, temperature=v),
    "base_temperature": lambda v: mk.pixel_contrast_loss(ROWS, IDS // 2, base_temperature=v),
    "margin": lambda v: mk.margin_contrast_loss(ROWS, IDS // 2, margin=v),
    "positive_margin": lambda v: mk.margin_contrast_loss(ROWS, IDS // 2, positive_margin=v),
    "concentration": lambda v: mk.prototype_nca_loss(ROWS, IDS // 2, IDS, ROWS, IDS // 2, concentration=v),
    "scale": lambda v: mk.center_similarity(Z, torch.eye(3), scale=v),
    "eps": lambda v: mk.gather_pixels(Z, IDS, eps=v),
    "smooth": lambda v: mk.region_loss(Z, T, smooth=v),
    "beta": lambda v: mk.region_loss(Z, T, form="tversky", beta=v),
    "exponent": lambda v: mk.region_loss(Z, T, exponent=v),
    "lambda_dice": lambda v: mk.cross_entropy_dice(Z, T, lambda_dice=v),
    "lambda_focal": lambda v: mk.focal_dice(Z, T, lambda_focal=v),
    "temperature of distillation": lambda v: mk.distillation_loss(Z, Z, T, temperature=v),
    "weights[0]": lambda v: mk.predict_labels([Z, Z], (4, 4), weights=[v, 1.0]),
    "temperature of DistillationLoss": lambda v: losses.DistillationLoss(temperature=v),
    "gamma of FocalLoss": lambda v: losses.FocalLoss(gamma=v),
    "temperature of PixelContrastLoss": lambda v: losses.PixelContrastLoss(temperature=v),
    "margin of MarginContrastLoss": lambda v: losses.MarginContrastLoss(margin=v),
}
FLAGS = {
    "align_corners of focal_loss": lambda v: mk.focal_loss(Z, T, align_corners=v),
    "return_stats of focal_loss": lambda v: mk.focal_loss(Z, T, return_stats=v),
    "align_corners of sigmoid_focal_loss": lambda v: mk.sigmoid_focal_loss(Z, T, align_corners=v),
    "align_corners of ohem_cross_entropy": lambda v: mk.ohem_cross_entropy(Z, T, align_corners=v),
    "return_stats of pixel_contrast_loss": lambda v: mk.pixel_contrast_loss(ROWS, IDS, return_stats=v),
    "return_stats of margin_contrast_loss": lambda v: mk.margin_contrast_loss(ROWS, IDS, return_stats=v),
    "return_present": lambda v: mk.class_centers(Z, T[:, :2, :2], num_classes=3, return_present=v),
    "normalize of gather_pixels": lambda v: mk.gather_pixels(Z, IDS, normalize=v),
    "align_corners of spherical_kmeans": lambda v: mk.spherical_kmeans(Z, grid=(1, 1), align_corners=v),
    "normalize of segment_mean": lambda v: mk.segment_mean(ROWS, IDS, 4, normalize=v),
    "return_confidence": lambda v: mk.predict_labels(Z, (4, 4), return_confidence=v),
    "return_entropy": lambda v: mk.predict_labels(Z, (4, 4), return_entropy=v),
    "align_corners of confusion_matrix": lambda v: mk.confusion_matrix(Z, T, align_corners=v),
    "align_corners of refine_upsample": lambda v: mk.refine_upsample(Z, torch.zeros(1, 2, 4, 4), align_corners=v),
    "log": lambda v: mk.region_loss(Z, T, log=v),
    "align_corners of lovasz_loss": lambda v: mk.lovasz_loss(Z, T, align_corners=v),
    "align_corners of distillation_loss": lambda v: mk.distillation_loss(Z, Z, T, align_corners=v),
}


def refused(name: str, call, value, kind: str) -> None:
    name = name.split(" of ")[0].replace("[", r"\[").replace("]", r"\]")
    with pytest.raises(TypeError, match=rf"{name} must be a {kind}, got {type(value).__name__}"):
        call(value)


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers(name: str) -> None:
    """YAML reads 1e-5 as text; no kernel has a gradient to a tensor that takes the place of a constant."""
    for value in ("1e-5", [0.5], True, torch.tensor(0.5, requires_grad=True), torch.ones(2), 1j):
        refused(name, NUMBERS[name], value, "number")
    NUMBERS[name](np.float32(0.5))


@pytest.mark.parametrize("name", FLAGS)
def test_flags(name: str) -> None:
    for value in ("no", None, 2):
        refused(name, FLAGS[name], value, "bool")


def test_a_tensor_has_no_gradient_there() -> None:
    with pytest.raises(TypeError, match="temperature must be a number, got Parameter; it is a constant, without a gra"):
        checks.number("temperature", torch.nn.Parameter(torch.tensor(0.1)), 0.0)
