"""Losses for segmentation by metric learning, as fused kernels."""

from .focal import Stats, cross_entropy, focal_loss, ohem_cross_entropy, sigmoid_focal_loss
from .version import __version__

__all__ = ["Stats", "__version__", "cross_entropy", "focal_loss", "ohem_cross_entropy", "sigmoid_focal_loss"]
