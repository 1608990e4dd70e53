"""Loss modules over `metricseg_kernels`, each built by name from a configuration. Needs torch and numpy alone.

They follow what training code bases expect of a loss:

- plain PyTorch and Lightning: `loss(logits, labels)`.
- mmsegmentation: `loss_weight`, `loss_name`, and a forward that takes `weight`, `avg_factor`, `reduction_override`,
  `ignore_index`.
- segmentation_models_pytorch: `loss(y_pred, y_true)` with class-index targets.
"""

from metricseg.losses.base import LOSSES, build_loss
from metricseg.losses.contrast import MarginContrastLoss, PixelContrastLoss
from metricseg.losses.metric import ContrastiveLoss, NTXentLoss, SupConLoss
from metricseg.losses.pixel import CrossEntropyLoss, FocalLoss, OhemCrossEntropyLoss, PixelLoss, SigmoidFocalLoss
from metricseg.losses.pixel_memory import PixelMemory
from metricseg.losses.terms import Terms

__all__ = [
    "LOSSES",
    "ContrastiveLoss",
    "CrossEntropyLoss",
    "FocalLoss",
    "MarginContrastLoss",
    "NTXentLoss",
    "OhemCrossEntropyLoss",
    "PixelContrastLoss",
    "PixelLoss",
    "PixelMemory",
    "SigmoidFocalLoss",
    "SupConLoss",
    "Terms",
    "build_loss",
]
