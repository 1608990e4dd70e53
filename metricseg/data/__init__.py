"""Data sets, augmentation and the resumable training stream. A sample is (image [3, H, W], labels uint8 [H, W]), 255
ignored."""

from metricseg.data.base import IGNORE, BadSample, Segmentation
from metricseg.data.folders import ADE20K, CamVid, Cityscapes, PascalVOC
from metricseg.data.stream import Augmented, EpochSampler
from metricseg.data.transforms import eval_transform, train_transform

__all__ = [
    "ADE20K", "IGNORE", "Augmented", "BadSample", "CamVid", "Cityscapes", "EpochSampler", "PascalVOC", "Segmentation",
    "eval_transform", "train_transform",
]  # fmt: skip
