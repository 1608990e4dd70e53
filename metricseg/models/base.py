"""Base of every segmentation system, for training, evaluation and prediction."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn

from metricseg.models.layers import resize
from metricseg.utils.registry import Registry

MODELS: Registry[Segmenter] = Registry("model")


class Segmenter(nn.Module):
    """A network whose outputs stand at its own feature resolution, for losses that interpolate inside their kernel.

    A subclass sets `backbone`, whose parameters may get a learning rate of their own, and `num_classes`; `offers` if it
    has outputs beside the logits, for training; and `predicts_from` if another output than the logits is what training
    must have a loss on.
    """

    backbone: nn.Module
    num_classes: int
    offers: tuple[str, ...] = ("logits",)
    predicts_from: str = "logits"

    def outputs(self, images: Tensor, names: Collection[str], labels: Tensor | None = None) -> dict[str, Tensor]:
        """[B, 3, H, W] -> the outputs asked for; `names` are some of `offers`. No other output is computed.

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


class ModuleSegmenter(Segmenter):
    """Any `nn.Module` as a `Segmenter`, e.g. a model of segmentation_models_pytorch or torchvision.

    Its forward takes images [B, 3, H, W] and returns logits [B, K, h, w], or a mapping with them as "out". The
    parameters of its attribute `backbone` or `encoder`, if there is one, get the backbone's learning rate.

    Args:
        module: the network.
        num_classes: K; None: not checked.
    """

    def __init__(self, module: nn.Module, num_classes: int | None = None) -> None:
        super().__init__()
        self.module = module
        if num_classes is not None:
            self.num_classes = num_classes

    @property
    def backbone(self) -> nn.Module:  # type: ignore[override]
        """The part with a learning rate of its own; empty if there is none."""
        parts = (getattr(self.module, name, None) for name in ("backbone", "encoder"))
        return next((part for part in parts if isinstance(part, nn.Module)), nn.Identity())

    def outputs(self, images: Tensor, names: Collection[str], labels: Tensor | None = None) -> dict[str, Tensor]:
        """[B, 3, H, W] -> {"logits": [B, K, h, w]}; ValueError if the network returns something else."""
        found = self.module(images)
        logits = found.get("out") if isinstance(found, Mapping) else found
        name, wanted = type(self.module).__name__, getattr(self, "num_classes", None)
        if not isinstance(logits, Tensor) or logits.ndim != 4 or len(logits) != len(images):
            got = list(logits.shape) if isinstance(logits, Tensor) else type(found).__name__
            raise ValueError(f'{name} returns {got}; it takes logits [B, K, h, w], or a mapping with them as "out"')
        if wanted is not None and logits.shape[1] != wanted:
            raise ValueError(f"{name} returns logits of {logits.shape[1]} classes; the data set has {wanted}")
        return {"logits": logits}
