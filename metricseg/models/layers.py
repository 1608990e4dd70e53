"""Convolution blocks of the decoder, and atrous spatial pyramid pooling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_norm_act(inputs: int, outputs: int) -> nn.Sequential:
    """1 x 1 convolution, batch norm, ReLU."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def separable(inputs: int, outputs: int, dilation: int = 1) -> nn.Sequential:
    """3 x 3 depthwise convolution, 1 x 1 convolution, batch norm, ReLU: about a ninth of a full 3 x 3's work."""
    depthwise = nn.Conv2d(inputs, inputs, 3, padding=dilation, dilation=dilation, groups=inputs, bias=False)
    return nn.Sequential(depthwise, *conv_norm_act(inputs, outputs))


class ImagePool(nn.Sequential):
    """The mean over the picture, 1 x 1 convolution, batch norm and ReLU, spread over the map again."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), *conv_norm_act(inputs, outputs))

    def forward(self, input: Tensor) -> Tensor:
        """[B, inputs, h, w] -> [B, outputs, h, w]."""
        return super().forward(input).expand(-1, -1, *input.shape[-2:])


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling with depthwise-separable convolutions (Chen et al. 2018, DeepLabv3+).

    A 1 x 1 branch, one 3 x 3 branch for each rate, and the mean over the picture; concatenated and reduced to
    `outputs` channels.

    Args:
        inputs, outputs: channels.
        rates: dilation of each 3 x 3 branch, in cells of the feature grid.
        dropout: probability of dropping an output value in training.
    """

    def __init__(self, inputs: int, outputs: int, rates: Sequence[int], dropout: float = 0.1) -> None:
        super().__init__()
        atrous = [separable(inputs, outputs, rate) for rate in rates]
        self.branches = nn.ModuleList([conv_norm_act(inputs, outputs), *atrous, ImagePool(inputs, outputs)])
        self.project = nn.Sequential(conv_norm_act(outputs * len(self.branches), outputs), nn.Dropout(dropout))

    def forward(self, input: Tensor) -> Tensor:
        """[B, inputs, h, w] -> [B, outputs, h, w]."""
        out: Tensor = self.project(torch.cat([branch(input) for branch in self.branches], 1))
        return out


def resize(input: Tensor, size: Sequence[int]) -> Tensor:
    """`input` [B, C, h, w] interpolated bilinearly to `size` = (H, W); corners not aligned."""
    return F.interpolate(input, list(size), mode="bilinear", align_corners=False)
