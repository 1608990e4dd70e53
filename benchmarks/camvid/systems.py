"""The two networks of the comparison of two networks behind one small interface."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from metricseg.data import IGNORE

CLASSES = 11


@dataclass
class System:
    """A network, how its loss is computed from a batch, and how it predicts logits at the picture's size."""

    model: nn.Module
    backbone: list[nn.Parameter]
    rest: list[nn.Parameter]
    loss: Callable[[Tensor, Tensor], Tensor]
    predict: Callable[[Tensor], Tensor]
    device: str = "cpu"


def smp_system(weights: Path) -> System:
    """segmentation_models_pytorch as it comes: logits upsampled to the labels, then F.cross_entropy."""
    import segmentation_models_pytorch as smp

    model = smp.DeepLabV3Plus(
        "tu-tf_efficientnet_lite0", encoder_weights=None, encoder_output_stride=16, classes=CLASSES
    )
    missing = model.encoder.model.load_state_dict(load_file(weights), strict=False).missing_keys
    if missing:
        raise ValueError(f"{weights} lacks {missing}")

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(model(images), labels.long(), ignore_index=IGNORE)

    def predict(images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        return model(F.pad(images, (0, -width % 16, 0, -height % 16)))[..., :height, :width]

    inner = list(model.encoder.parameters())
    return System(model, inner, [p for p in model.parameters() if all(p is not q for q in inner)], loss, predict)


def metricseg_system(weights: Path) -> System:
    """Ours: channels-last, bf16 autocast, logits at stride 4, and focal loss at label resolution inside the kernel.

    Two separable convolutions in the decoder where smp has one; ASPP rates 6, 12, 18 where smp has 12, 24, 36.
    """
    from metricseg.losses import build_loss
    from metricseg.models import build_model

    model = build_model(
        {
            "name": "deeplabv3plus",
            "num_classes": CLASSES,
            "backbone": "tf_efficientnet_lite0",
            "weights": weights,
            "decoder_depth": 2,
        }
    ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    criterion = build_loss({"name": "focal", "gamma": 2.0})

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(images.contiguous(memory_format=torch.channels_last))
        return criterion(logits, labels)

    backbone, rest = (group["params"] for group in model.parameter_groups(1e-3, 3e-4))
    return System(model, backbone, rest, loss, model.predict)


SYSTEMS: dict[str, Callable[[Path], System]] = {"smp": smp_system, "metricseg": metricseg_system}
