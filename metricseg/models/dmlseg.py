"""Deep metric learning beside segmentation: `DMLSeg`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor, nn

from metricseg.models.base import MODELS
from metricseg.models.deeplab import DeepLabV3Plus
from metricseg.models.layers import conv_norm_act, separable


@MODELS.register("dmlseg")
class DMLSeg(DeepLabV3Plus):
    """The system of Jia et al. 2025: a DeepLabv3+ whose decoder features also feed an embedding of every pixel, so that
    a metric loss pulls pixels of a class together and pushes classes apart.

    Outputs: "logits" [B, K, H/4, W/4]; "embedding" [B, D, H/4, W/4], of which only the direction counts: losses and
    pictures bring the pixels that they read to unit norm; "auxiliary" [B, K, H/s, W/s], logits of the encoder alone,
    s the output stride. Prediction needs the first only, and computes no other.

    Its loss (`metricseg.losses.Terms`, configurations `dmlseg_*`): class-weighted focal loss, gamma 2, on the logits;
    0.1 times the Euclidean margin contrast, margin 1, of sampled pixels, or InfoNCE in its place, on the embedding;
    0.4 times cross-entropy on the auxiliary logits.

    The paper's text is not public beyond its abstract. From it: encoder and decoder of DeepLabv3+, the class-weighted
    focal loss, and a Euclidean contrast loss on pixel embeddings. Reconstructed, after Wang et al. 2021
    (ContrastiveSeg) and Zhao et al. 2017 (PSPNet): the embedding head (1 x 1 convolution, batch norm, ReLU, 1 x 1
    convolution) and its D = 256, the sampling of pixels, the margin, the weight 0.1, and the auxiliary loss. Reported
    by the authors: mIoU 83.1 on Cityscapes and 47.6 on ADE20K; not reproduced here.

    Args:
        num_classes: K.
        embedding_channels: D.
        options: see `DeepLabV3Plus`.

    Source: Jia et al. 2025, deep metric learning for semantic segmentation; Chen et al. 2018 (DeepLabv3+).
    """

    offers = ("logits", "embedding", "auxiliary")

    def __init__(self, num_classes: int, embedding_channels: int = 256, **options: Any) -> None:
        super().__init__(num_classes, **options)
        width, deep = self.classifier.in_channels, self.backbone.deep_channels
        self.embedding = nn.Sequential(conv_norm_act(width, width), nn.Conv2d(width, embedding_channels, 1))
        self.auxiliary = nn.Sequential(separable(deep, width), nn.Conv2d(width, num_classes, 1))

    def outputs(self, images: Tensor, names: Collection[str], labels: Tensor | None = None) -> dict[str, Tensor]:
        """[B, 3, H, W] -> the outputs asked for, see the class."""
        decoded, deep = self.features(images)
        heads = {"logits": self.classifier, "embedding": self.embedding, "auxiliary": self.auxiliary}
        return {name: heads[name](deep if name == "auxiliary" else decoded) for name in names}
