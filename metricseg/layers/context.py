"""Context for every stage of a backbone: attention over channels, then over space, of all stages together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FORMS = ("affinity", "gate")


class Affinity(nn.Module):
    """y = x + c softmax(x x^T / sqrt(N)) x over channels, then y + s softmax(q k^T / sqrt(d)) v over pixels.

    c and s are learned and start at 0. Both products are `scaled_dot_product_attention`.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.query, self.key = nn.Conv2d(channels, hidden, 1), nn.Conv2d(channels, hidden, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.channel_scale, self.space_scale = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        rows = x.flatten(2)  # [B, C, N]
        x = x + self.channel_scale * F.scaled_dot_product_attention(rows, rows, rows).view_as(x)
        query, key, value = (layer(x).flatten(2).mT for layer in (self.query, self.key, self.value))  # [B, N, d]
        return x + self.space_scale * F.scaled_dot_product_attention(query, key, value).mT.reshape(x.shape)


class Gate(nn.Module):
    """y = x sigmoid(MLP(mean over pixels of x)), then y sigmoid(conv7x7([mean; max over channels of y]))."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.channel = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, channels, 1)
        )
        self.space = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        x = x * self.channel(x.mean((2, 3), keepdim=True)).sigmoid()
        return x * self.space(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid()


class ContextualRefinement(nn.Module):
    """All stages of a backbone at one size, refined by attention over their channels and over space.

        x = [resize(ReLU(BN(conv1x1(stage_i))))]_i          channels / len(stages) of each
        y = attention(x)

    With channels about as many as pixels, attention over channels weighs as much as attention over space.

    Written from the abstract of the paper. From it: attention over channels and space of all four stages.
    Reconstructed: the reduction, the size, and the two forms.

    Args:
        stages: channels of each stage. channels: of the result, a multiple of the number of stages.
        form: "affinity", quadratic in channels and in pixels, or "gate", the light one.
        at: index of the stage whose size all take; -2 is stride 16 of four stages.
        hidden: channels of queries and keys, or within the gate; None for channels / 4.

    Raises ValueError for an argument out of range, named with its value.

    Source: Wang et al. 2024, arXiv:2412.08671 (contextual refinement module); Fu et al., Dual Attention Network for
    Scene Segmentation, CVPR 2019 ("affinity"); Woo et al., CBAM, ECCV 2018 ("gate").
    """

    def __init__(
        self, stages: Sequence[int], channels: int, *, form: str = "affinity", at: int = -2, hidden: int | None = None
    ) -> None:
        super().__init__()
        if not stages or any(not isinstance(n, int) or n < 1 for n in stages):
            raise ValueError(f"stages is {stages!r}; it takes the channels of each stage, integers >= 1")
        if not isinstance(channels, int) or channels < 1 or channels % len(stages):
            raise ValueError(f"channels is {channels!r}; it takes a multiple of the {len(stages)} stages")
        if form not in FORMS:
            raise ValueError(f"form is {form!r}; it takes one of {FORMS}")
        if not -len(stages) <= at < len(stages):
            raise ValueError(f"at is {at!r}; it takes the index of one of {len(stages)} stages")
        width, hidden = channels // len(stages), hidden or max(channels // 4, 1)
        self.at = at
        self.reduce = nn.ModuleList(
            nn.Sequential(nn.Conv2d(n, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
            for n in stages
        )
        self.attention = (Affinity if form == "affinity" else Gate)(channels, hidden)

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        """[B, C_i, H_i, W_i] each -> [B, channels, H, W] of the stage `at`."""
        size = stages[self.at].shape[2:]
        reduced = [layer(stage) for layer, stage in zip(self.reduce, stages, strict=True)]
        return self.attention(torch.cat([_resize(x, size) for x in reduced], 1))


def _resize(x: Tensor, size: torch.Size) -> Tensor:
    """The mean of what a smaller map's pixel covers, or bilinear for a larger map."""
    if x.shape[2] >= size[0] and x.shape[3] >= size[1]:
        return F.adaptive_avg_pool2d(x, size)
    return F.interpolate(x, size, mode="bilinear", align_corners=False)
