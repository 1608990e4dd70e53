"""Loss modules over `metricseg_kernels`, each built by name from a configuration. Needs torch and numpy alone.

Those of logits [B, K, h, w] against labels [B, H, W] follow what training code bases expect of a loss:

- plain PyTorch and Lightning: `loss(logits, labels)`.
- mmsegmentation: `loss_weight`, `loss_name`, and a forward that takes `weight`, `avg_factor`, `reduction_override`,
  `ignore_index`.
- segmentation_models_pytorch: `loss(y_pred, y_true)` with class-index targets.

`metricseg.integrations` makes the models of such code bases return low-resolution logits.

`DistillationLoss` takes `loss(student_logits, teacher_logits, labels)`.

Those of pixel embeddings [B, D, h, w] take ContrastiveSeg's call, `loss(embeddings, labels, predictions)`, except
SegSort's, `loss(embeddings, labels)`. Those of embeddings [N, D] take pytorch-metric-learning's,
`loss(embeddings, labels, None, ref_emb, ref_labels)`.
"""

from metricseg.losses.base import LOSSES, build_loss
from metricseg.losses.classification import (
    CrossEntropyLoss,
    FocalLoss,
    OhemCrossEntropyLoss,
    PixelLoss,
    SigmoidFocalLoss,
)
from metricseg.losses.composite import Terms
from metricseg.losses.distillation import DistillationLoss
from metricseg.losses.embedding import ContrastiveLoss, NTXentLoss, SupConLoss
from metricseg.losses.pixel_contrast import MarginContrastLoss, PixelContrastLoss
from metricseg.losses.pixel_memory import PixelMemory
from metricseg.losses.prototype_memory import PrototypeMemory
from metricseg.losses.region import DiceCELoss, DiceLoss, JaccardLoss, LovaszLoss, TverskyLoss
from metricseg.losses.segsort import SegSortLoss

__all__ = [
    "LOSSES",
    "ContrastiveLoss",
    "CrossEntropyLoss",
    "DiceCELoss",
    "DiceLoss",
    "DistillationLoss",
    "FocalLoss",
    "JaccardLoss",
    "LovaszLoss",
    "MarginContrastLoss",
    "NTXentLoss",
    "OhemCrossEntropyLoss",
    "PixelContrastLoss",
    "PixelLoss",
    "PixelMemory",
    "PrototypeMemory",
    "SegSortLoss",
    "SigmoidFocalLoss",
    "SupConLoss",
    "Terms",
    "TverskyLoss",
    "build_loss",
]
