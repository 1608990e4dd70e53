"""torchvision: `low_resolution(model)` leaves out the upsampling of DeepLabV3, FCN and LR-ASPP, and
`torchvision_loss(criterion)` takes their dictionary of outputs.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from metricseg.integrations.low_resolution import WithAuxiliary, follow, need, skip_upsampling

segmentation = need("torchvision.models.segmentation", "torchvision")
MODELS = (segmentation.DeepLabV3, segmentation.FCN, segmentation.LRASPP)


def low_resolution(model: nn.Module, criterion: nn.Module | None = None) -> nn.Module:
    """Let a segmentation model of torchvision return small logits in training, and full-size ones in eval mode.

    In training "out" and "aux" are the outputs of the classifiers, [B, K, h, w]. The model is changed in place.

    Args:
        model: a DeepLabV3, an FCN or an LRASPP, not yet wrapped or compiled.
        criterion: the loss; its `align_corners` becomes the host's, False, which is also the default.

    Returns:
        `model`.

    Raises TypeError for another model, or a criterion without a loss of metricseg on logits.
    """
    if not isinstance(model, MODELS):
        raise TypeError(f"model is a {type(model).__name__}; it takes torchvision's DeepLabV3, FCN or LRASPP")
    if criterion is not None:
        follow(criterion, False)
    heads = {"out": model.classifier}
    if getattr(model, "aux_classifier", None) is not None:
        heads["aux"] = model.aux_classifier
    skip_upsampling(model, heads, replaced)
    return model


def replaced(output: dict[str, Tensor], kept: dict[str, Tensor]) -> dict[str, Tensor]:
    output.update(kept)
    return output


class TorchvisionLoss(WithAuxiliary):
    """See `torchvision_loss`."""

    def forward(self, outputs: Mapping[str, Tensor], target: Tensor) -> Tensor:
        if not isinstance(outputs, Mapping) or "out" not in outputs:
            got = f"the keys {list(outputs)}" if isinstance(outputs, Mapping) else f"a {type(outputs).__name__}"
            raise TypeError(f'outputs has {got}; it takes a dictionary with "out" and perhaps "aux", a model\'s output')
        return super().forward(outputs["out"], outputs.get("aux"), target)


def torchvision_loss(criterion: nn.Module, aux_weight: float = 0.5) -> TorchvisionLoss:
    """A loss of torchvision's outputs {"out": logits, "aux": logits}: criterion(out) + aux_weight * criterion(aux).

    With CrossEntropyLoss() this equals the criterion of torchvision's references, cross-entropy with ignore_index=255.
    Without "aux" in the outputs, as in LR-ASPP, it is criterion(out).
    """
    return TorchvisionLoss(criterion, aux_weight)
