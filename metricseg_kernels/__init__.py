"""Losses for segmentation by metric learning, as fused kernels."""

from .anchors import Anchors, gather_pixels, sample_anchors
from .centers import center_pull, center_push, center_similarity, class_centers
from .contrast import ContrastStats, MarginStats, margin_contrast_loss, pixel_contrast_loss
from .contrast.prototypes import prototype_nca_loss
from .distill import distillation_loss
from .focal import Stats, cross_entropy, focal_loss, ohem_cross_entropy, sigmoid_focal_loss
from .lovasz import lovasz_loss
from .predict import confusion_matrix, predict_labels
from .refine import refine_upsample
from .region import cross_entropy_dice, focal_dice, region_loss
from .retrieval import knn_vote, topk_similarity
from .segments import Segments, segment_mean, spherical_kmeans, split_by_label
from .version import __version__

__all__ = [
    "Anchors",
    "ContrastStats",
    "MarginStats",
    "Segments",
    "Stats",
    "__version__",
    "center_pull",
    "center_push",
    "center_similarity",
    "class_centers",
    "confusion_matrix",
    "cross_entropy",
    "cross_entropy_dice",
    "distillation_loss",
    "focal_dice",
    "focal_loss",
    "gather_pixels",
    "knn_vote",
    "lovasz_loss",
    "margin_contrast_loss",
    "ohem_cross_entropy",
    "pixel_contrast_loss",
    "predict_labels",
    "prototype_nca_loss",
    "refine_upsample",
    "region_loss",
    "sample_anchors",
    "segment_mean",
    "sigmoid_focal_loss",
    "spherical_kmeans",
    "split_by_label",
    "topk_similarity",
]
