"""What every segmentation system offers to training, evaluation and prediction."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor, nn

from metricseg.models.layers import resize
from metricseg.registry import Registry

MODELS: Registry[Segmenter] = Registry("model")


class Segmenter(nn.Module):
    """A network whose outputs stand at its own feature resolution, for losses that interpolate inside their kernel.

    A subclass sets `backbone`, whose parameters may get a learning rate of their own, and `num_classes`; and `offers`
    where it has outputs beside the logits, for training.
    """

    backbone: nn.Module
    num_classes: int
    offers: tuple[str, ...] = ("logits",)

    def outputs(self, images: Tensor, names: Collection[str], labels: Tensor | None = None) -> dict[str, Tensor]:
        """[B, 3, H, W] -> the outputs asked for; `names` are some of `offers`. What nobody asks for is not computed.

        Most are maps [B, C, h, w]; one that is itself a loss is 0-d. `labels` [B, H, W] are for outputs that are made
        with them.
        """
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> logits [B, K, h, w]."""
        return self.outputs(images, ("logits",))["logits"]

    def predict(self, images: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """[B, 3, H, W] -> logits [B, K, *size]; `size` is (H, W) unless given. For inference: training needs no
        full-size logits."""
        logits = self(images)
        return resize(logits.float(), size or images.shape[-2:])

    def parameter_groups(self, lr: float, backbone_lr: float) -> list[dict[str, Any]]:
        """Two optimizer groups: the backbone's parameters at `backbone_lr`, all others at `lr`."""
        inner = list(self.backbone.parameters())
        known = {id(p) for p in inner}
        rest = [p for p in self.parameters() if id(p) not in known]
        return [{"params": inner, "lr": backbone_lr, "name": "backbone"}, {"params": rest, "lr": lr, "name": "head"}]
