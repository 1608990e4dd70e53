"""Losses of embeddings [N, D] under labels [N] with pytorch-metric-learning's names, calls, defaults and results.

They differ from that library in these cases: the matrix of all pairs never exists, an embedding
of norm 0 has a zero gradient, a probability that underflows still has its loss and its gradient, and a single pair
counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor

import metricseg_kernels as kernels
from metricseg.losses.base import LOSSES
from metricseg.losses.pairs import PairLoss
from metricseg.utils import distributed

if TYPE_CHECKING:
    from typing_extensions import Unpack


class EmbeddingOptions(TypedDict, total=False):
    """The keyword arguments of every `EmbeddingLoss`."""

    gather: str | None
    backend: str | None


class EmbeddingLoss(PairLoss):
    """Base of the losses of embeddings: the call, and unit norm.

    Args:
        gather: "all" compares with the embeddings of all ranks, None with this rank's own.
            Without a process group both are the same. Every rank must have the same N (and M).
        backend: "reference", "cpu", "triton", "cuda"; None for the first that can run.
    """

    def __init__(self, *, gather: str | None = None, backend: str | None = None) -> None:
        super().__init__(gather, backend)

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: Any = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """The loss, 0-d, of every embedding against every other, or against every reference.

        Args:
            embeddings: [N, D], brought to unit norm.
            labels: [N], any integers.
            indices_tuple: must be None: the losses take all pairs.
            ref_emb, ref_labels: [M, D] and [M]. Where `ref_labels` is the very tensor `labels`, embedding i and
                reference i are one item and no pair.

        Raises TypeError or ValueError for an argument of wrong type, dtype, shape or device, named with its value.
        """
        if indices_tuple is not None:
            raise ValueError("indices_tuple is given; this loss takes all pairs and no miner's choice: pass None")
        if (ref_emb is None) != (ref_labels is None):
            raise ValueError("ref_emb and ref_labels go together; one of them is None")
        rows, classes = self.read("embeddings", embeddings, "labels", labels)
        if ref_emb is None or ref_labels is None:
            return self.compute(rows, classes, self.against(rows, classes))
        others = self.read("ref_emb", ref_emb, "ref_labels", ref_labels)
        return self.compute(rows, classes, self.against(rows, classes, *others, same=ref_labels is labels))

    def read(self, name: str, value: Tensor, labels_name: str, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(rows of unit norm [N, D], labels [N] int64); raises if they don't belong together."""
        for what, tensor, dims in ((name, value, 2), (labels_name, labels, 1)):
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{what} must be a Tensor, got {type(tensor).__name__}")
            if tensor.ndim != dims:
                raise ValueError(f"{what} must be {'[N, D]' if dims == 2 else '[N]'}, got shape {tuple(tensor.shape)}")
        if labels.is_floating_point() or labels.is_complex():
            raise TypeError(f"{labels_name} must be integers, got {labels.dtype}")
        if len(labels) != len(value):
            raise ValueError(f"{labels_name} must have one entry per row of {name}, {len(value)}, got {len(labels)}")
        if labels.device != value.device:
            raise ValueError(
                f"{labels_name} is on {labels.device}, {name} on {value.device}; both must be on one device"
            )
        index = torch.arange(len(value), device=value.device)
        return self.rows_of(value[:, :, None, None], index), labels.long()

    def compute(self, rows: Tensor, labels: Tensor, against: dict[str, Any]) -> Tensor:
        """The loss of rows of unit norm, against the arguments of `PairLoss.against`."""
        raise NotImplementedError


@LOSSES.register("supcon")
class SupConLoss(EmbeddingLoss):
    """Supervised contrastive loss: with s_ij = cos(x_i, y_j) / temperature,

        l_i = -mean_p ( s_ip - LSE_{j not i} s_ij ),  averaged over the l_i above 0; 0 if no pair is negative.

    Args:
        temperature: > 0.
        options: see `EmbeddingLoss`.

    Source: Khosla et al., Supervised Contrastive Learning, NeurIPS 2020; pytorch-metric-learning's SupConLoss with its
    default distance and reducer.
    """

    def __init__(self, temperature: float = 0.1, **options: Unpack[EmbeddingOptions]) -> None:
        super().__init__(**options)
        self.temperature = temperature

    def compute(self, rows: Tensor, labels: Tensor, against: dict[str, Any]) -> Tensor:
        """See `metricseg_kernels.pixel_contrast_loss`."""
        losses, stats = kernels.pixel_contrast_loss(
            rows, labels, **against, temperature=self.temperature, denominator="all", ignore_index=None,
            reduction="none", return_stats=True, backend=self.backend,
        )  # fmt: skip
        total, count, positives = self.totals(losses.sum(), (losses > 0).sum(), stats.positives.double().sum())
        self.warn_if_none(positives)
        itself = not against or "anchor_ids" in against
        pairs = len(rows) * (len(against.get("contrast", rows)) - itself) * (distributed.ranks() if self.gathers else 1)
        return torch.where(positives < pairs, total / count.clamp(min=1), 0.0)


@LOSSES.register("ntxent")
class NTXentLoss(EmbeddingLoss):
    """InfoNCE with labels: with s_ij = cos(x_i, y_j) / temperature,

        the mean over all positive pairs (i, p) of  -log( exp s_ip / (exp s_ip + sum over negatives exp s_in) ).

    Args:
        temperature: > 0.
        options: see `EmbeddingLoss`.

    Source: Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, ICML 2020;
    pytorch-metric-learning's NTXentLoss with its default distance and reducer.
    """

    def __init__(self, temperature: float = 0.07, **options: Unpack[EmbeddingOptions]) -> None:
        super().__init__(**options)
        self.temperature = temperature

    def compute(self, rows: Tensor, labels: Tensor, against: dict[str, Any]) -> Tensor:
        """See `metricseg_kernels.pixel_contrast_loss`, whose loss of an anchor is the mean over its positives."""
        losses, stats = kernels.pixel_contrast_loss(
            rows, labels, **against, temperature=self.temperature, ignore_index=None, reduction="none",
            return_stats=True, backend=self.backend,
        )  # fmt: skip
        total, count = self.totals((losses * stats.positives).sum(), stats.positives.double().sum())
        self.warn_if_none(count)
        return total / count.clamp(min=1).to(total.dtype)


@LOSSES.register("contrastive")
class ContrastiveLoss(EmbeddingLoss):
    """With d the distance of two rows of unit norm: the mean over positive pairs of relu(d - pos_margin), plus the mean
    over negative pairs of relu(neg_margin - d); both over the pairs whose term is above 0.

    Args:
        pos_margin: >= 0.
        neg_margin: > 0.
        options: see `EmbeddingLoss`.

    Source: Hadsell et al., Dimensionality Reduction by Learning an Invariant Mapping, CVPR 2006, without the squares;
    pytorch-metric-learning's ContrastiveLoss with its default distance and reducer.
    """

    def __init__(self, pos_margin: float = 0.0, neg_margin: float = 1.0, **options: Unpack[EmbeddingOptions]) -> None:
        super().__init__(**options)
        self.pos_margin, self.neg_margin = pos_margin, neg_margin

    def compute(self, rows: Tensor, labels: Tensor, against: dict[str, Any]) -> Tensor:
        """See `metricseg_kernels.margin_contrast_loss`."""
        return self.margin_form(
            rows, labels, against, margin=self.neg_margin, positive_margin=self.pos_margin, power=1, average="nonzero",
            ignore_index=None,
        )  # fmt: skip
