"""Pixels against class centers: `CCSNet`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor

from metricseg.layers import CCSLayer
from metricseg.models.base import MODELS
from metricseg.models.deeplab import DeepLabV3Plus


@MODELS.register("ccsnet")
class CCSNet(DeepLabV3Plus):
    """The system of Wu et al. 2023: a DeepLabv3+ whose classifier is a `CCSLayer`, so that the logits of a pixel
    are its similarity to the class centers of its own image.

    Outputs: "logits" [B, K, H/4, W/4]; "guidance" [B, K, H/4, W/4], the logits that the centers are made with, and
    "centers" [B, K, C], static ones [K, C], without guidance; "push" and "pull", losses of the centers, 0-d, made with
    the labels.

    Its loss (`metricseg.losses.Terms`, configurations `ccsnet_*`): cross-entropy on the logits; 0.4 times cross-entropy
    and 0.2 times Dice on the guidance; 1.0 times push and 0.3 times pull.

    The paper's text is not public beyond its abstract; `CCSLayer` says what is from it and what is reconstructed, and
    so is the DeepLabv3+ around it.

    Args:
        num_classes: K.
        centers, adapter, scale, margin: see `CCSLayer`.
        options: see `DeepLabV3Plus`.

    Source: Wu et al. 2023 (class center similarity); Chen et al. 2018 (DeepLabv3+).
    """

    def __init__(
        self,
        num_classes: int,
        centers: str = "adaptive",
        adapter: str = "grouped",
        scale: float = 15.0,
        margin: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(num_classes, **options)
        self.classifier = CCSLayer(
            self.classifier.in_channels, num_classes, centers=centers, adapter=adapter, scale=scale, margin=margin
        )
        self.offers = self.classifier.offers

    def outputs(self, images: Tensor, names: Collection[str], labels: Tensor | None = None) -> dict[str, Tensor]:
        """[B, 3, H, W] -> the outputs asked for, see the class."""
        return self.classifier.compute(self.features(images)[0], names, labels)
