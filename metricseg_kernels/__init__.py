"""Losses for segmentation by metric learning, as fused kernels."""

from .contrast import ContrastStats, margin_contrast_loss, pixel_contrast_loss
from .focal import Stats, cross_entropy, focal_loss, ohem_cross_entropy, sigmoid_focal_loss
from .version import __version__

__all__ = [
    "ContrastStats",
    "Stats",
    "__version__",
    "cross_entropy",
    "focal_loss",
    "margin_contrast_loss",
    "ohem_cross_entropy",
    "pixel_contrast_loss",
    "sigmoid_focal_loss",
]
