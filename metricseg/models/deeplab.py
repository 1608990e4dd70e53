"""A DeepLabv3+-type network."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metricseg.models.backbone import Backbone
from metricseg.models.base import MODELS, Segmenter
from metricseg.models.layers import ASPP, conv_norm_act, resize, separable


@MODELS.register("deeplabv3plus")
class DeepLabV3Plus(Segmenter):
    """Encoder with ASPP on the deepest features, decoder that joins them with 48 channels of stride-4 features.

    logits = conv1x1(separable3x3([up(ASPP(deep)); conv1x1(shallow)])), at stride 4. Chen et al. 2018,
    "Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation".

    Args:
        num_classes: K.
        backbone, output_stride, pretrained, weights, backbone_options: see `Backbone`.
        channels: width of ASPP's output.
        decoder_channels: width of the decoder at stride 4.
        skip_channels: width of the stride-4 features that enter it.
        decoder_depth: number of separable convolutions in it.
        rates: ASPP's dilations; by default (6, 12, 18) at output stride 16, twice that at 8, half of it at 32.
        dropout: after ASPP.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet50",
        output_stride: int = 16,
        pretrained: bool = False,
        weights: str | Path | None = None,
        backbone_options: Mapping[str, Any] | None = None,
        channels: int = 256,
        decoder_channels: int = 256,
        skip_channels: int = 48,
        decoder_depth: int = 1,
        rates: Sequence[int] | None = None,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.backbone = Backbone(backbone, output_stride, pretrained, weights, backbone_options)
        rates = rates or [96 * k // output_stride for k in (1, 2, 3)]
        self.aspp = ASPP(self.backbone.deep_channels, channels, rates, dropout)
        self.skip = conv_norm_act(self.backbone.shallow_channels, skip_channels)
        widths = [channels + skip_channels] + [decoder_channels] * decoder_depth
        self.decoder = nn.Sequential(*(separable(a, b) for a, b in pairwise(widths)))
        self.classifier = nn.Conv2d(widths[-1], num_classes, 1)

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] -> the decoder's features [B, C, H/4, W/4] and the encoder's deepest, at its output stride."""
        shallow, deep = self.backbone(images)
        skip = self.skip(shallow)
        fused = torch.cat([resize(self.aspp(deep), skip.shape[-2:]), skip], 1)
        return self.decoder(fused), deep

    def outputs(self, images: Tensor, names: Collection[str], labels: Tensor | None = None) -> dict[str, Tensor]:
        """[B, 3, H, W] -> {"logits": [B, K, H/4, W/4]}."""
        return {"logits": self.classifier(self.features(images)[0])}
