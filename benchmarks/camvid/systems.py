"""The networks of the comparisons behind one small interface."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from metricseg.data import IGNORE
from metricseg.losses import build_loss
from metricseg.models import build_model

CLASSES = 11


@dataclass
class System:
    """A network, how its loss is computed from a batch, how it predicts logits at the picture's size, and the state of
    the loss."""

    model: nn.Module
    backbone: list[nn.Parameter]
    rest: list[nn.Parameter]
    loss: Callable[[Tensor, Tensor], Tensor]
    predict: Callable[[Tensor], Tensor]
    device: str = "cpu"
    criterion: nn.Module = field(default_factory=nn.Identity)


def smp_system(weights: Path, device: str) -> System:
    """segmentation_models_pytorch's DeepLabV3Plus in fp32: logits upsampled to the labels, then F.cross_entropy."""
    import segmentation_models_pytorch as smp

    model = smp.DeepLabV3Plus(
        "tu-tf_efficientnet_lite0", encoder_weights=None, encoder_output_stride=16, classes=CLASSES
    )
    missing = model.encoder.model.load_state_dict(load_file(weights), strict=False).missing_keys
    if missing:
        raise ValueError(f"{weights} lacks {missing}")
    model.to(device)

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(model(images), labels.long(), ignore_index=IGNORE)

    def predict(images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        return model(F.pad(images, (0, -width % 16, 0, -height % 16)))[..., :height, :width]

    inner = list(model.encoder.parameters())
    rest = [p for p in model.parameters() if all(p is not q for q in inner)]
    return System(model, inner, rest, loss, predict, device)


def metricseg_system(config: dict[str, Any], terms: dict[str, Any], weights: Path, device: str) -> System:
    """A network of metricseg in channels-last under bf16 autocast, with the sum of the terms as its loss."""
    backbone = {"backbone": "tf_efficientnet_lite0", "weights": weights}
    model = build_model({**config, **backbone, "num_classes": CLASSES})
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    criterion = build_loss({"name": "terms", **terms}).to(device)

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            outputs = model.outputs(images.contiguous(memory_format=torch.channels_last), criterion.needs, labels)
        return torch.stack(list(criterion(outputs, labels).values())).sum()

    inner, rest = (group["params"] for group in model.parameter_groups(1e-3, 3e-4))
    return System(model, inner, rest, loss, model.predict, device, criterion)
