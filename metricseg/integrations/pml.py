"""pytorch-metric-learning, 2.x: the losses of embeddings as subclasses of its own, for `DistributedLossWrapper`.

`CrossBatchMemory`, `SelfSupervisedLoss` and miners need no adapter: they take the losses of `metricseg.losses`.
"""

from __future__ import annotations

from metricseg import losses
from metricseg.integrations.low_resolution import need

theirs = need("pytorch_metric_learning.losses", "pytorch-metric-learning")


class SupConLoss(losses.SupConLoss, theirs.SupConLoss):  # type: ignore[misc, name-defined]
    """`metricseg.losses.SupConLoss`, computed there, which is also a loss of pytorch-metric-learning by type."""


class NTXentLoss(losses.NTXentLoss, theirs.NTXentLoss):  # type: ignore[misc, name-defined]
    """`metricseg.losses.NTXentLoss`, computed there, which is also a loss of pytorch-metric-learning by type."""


class ContrastiveLoss(losses.ContrastiveLoss, theirs.ContrastiveLoss):  # type: ignore[misc, name-defined]
    """`metricseg.losses.ContrastiveLoss`, computed there, which is also a loss of pytorch-metric-learning by type."""
