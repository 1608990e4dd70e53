"""segmentation_models_pytorch, 0.5 and later: `low_resolution(model)` leaves out the upsampling of the head.

Its heads upsample with align_corners=True; the losses take the same.
"""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor, nn

from metricseg.integrations.low_resolution import follow, need, skip_upsampling

smp = need("segmentation_models_pytorch", "segmentation-models-pytorch")


def low_resolution(model: nn.Module, criterion: nn.Module | None = None) -> nn.Module:
    """Let a model of segmentation_models_pytorch return small logits in training, and full-size ones in eval mode.

    In training the output is that of the head's convolution, [B, K, h, w] logits without upsampling and activation.
    Eval mode and `predict` are unchanged. The model is changed in place.

    Args:
        model: a `SegmentationModel`, not yet wrapped or compiled. With `aux_params` its output stays a pair.
        criterion: the loss; its `align_corners` becomes that of the head's upsampling, True. Without it a warning says
            to set it.

    Returns:
        `model`. If its head does not upsample, as in Unet, UnetPlusPlus, Linknet and MAnet, a warning says that there
        is nothing to gain, and nothing changes.

    Raises TypeError for another model, another head, or a criterion without a loss of metricseg on logits.
    """
    head = getattr(model, "segmentation_head", None)
    if not isinstance(model, smp.base.SegmentationModel) or head is None:
        raise TypeError(f"model is a {type(model).__name__}; it takes one of segmentation_models_pytorch, e.g. smp.FPN")
    found = upsampling(head)
    if found is None:
        warnings.warn(
            f"{type(model).__name__}'s head does not upsample, so there is nothing to gain, and low_resolution changes "
            "nothing. DeepLabV3, DeepLabV3Plus, DPT, FPN, PAN, PSPNet, Segformer and UPerNet upsample.",
            stacklevel=2,
        )
        return model
    convolution, align_corners = found
    if criterion is not None:
        follow(criterion, align_corners)
    elif align_corners:
        warnings.warn(
            f"{type(model).__name__}'s head upsamples with align_corners=True, and so must the loss: give it to "
            "low_resolution(model, criterion), or set align_corners=True",
            stacklevel=2,
        )
    skip_upsampling(head, {"logits": convolution}, only_logits)
    return model


def upsampling(head: nn.Module) -> tuple[nn.Module, bool] | None:
    """The part of a head before its upsampling, and its align_corners; None for a head without upsampling."""
    if isinstance(head, nn.Sequential) and len(head) == 3:  # SegmentationHead: convolution, upsampling, activation
        if isinstance(head[1], nn.Identity):
            return None
        if isinstance(head[1], nn.Upsample) and head[1].mode == "bilinear":
            return head[0], bool(head[1].align_corners)
    if hasattr(head, "upsampling_factor") and hasattr(head, "head"):  # DPTSegmentationHead, whose forward interpolates
        return head.head, True
    raise TypeError(
        f"model.segmentation_head is {head}; it takes smp's SegmentationHead with bilinear upsampling or none, or "
        "DPT's head"
    )


def only_logits(output: Any, kept: dict[str, Tensor]) -> Tensor:
    return kept["logits"]
