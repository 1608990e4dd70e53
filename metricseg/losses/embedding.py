"""Losses of embeddings [N, D] under labels [N] with pytorch-metric-learning's names, calls, defaults and results.

They differ from that library in these cases: the matrix of all pairs never exists unless a miner chose the pairs, an
embedding of norm 0 has a zero gradient, a probability that underflows still has its loss and its gradient, and a single
pair counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor

import metricseg_kernels as kernels
from metricseg.losses import listed_pairs
from metricseg.losses.base import LOSSES
from metricseg.losses.listed_pairs import Occurrences
from metricseg.losses.pairs import PairLoss
from metricseg.utils import distributed

if TYPE_CHECKING:
    from typing_extensions import Unpack


class EmbeddingOptions(TypedDict, total=False):
    """The keyword arguments of every `EmbeddingLoss`."""

    gather: str | None
    backend: str | None
    distance: None
    reducer: None


class EmbeddingLoss(PairLoss):
    """Base of the losses of embeddings: the call, and unit norm.

    Args:
        gather: "all" compares with the embeddings of all ranks, None with this rank's own.
            Without a process group both are the same. Every rank must have the same N (and M).
        backend: "reference", "cpu", "triton", "cuda"; None for the first that can run.
        distance, reducer: pytorch-metric-learning's; must be None. The class names the ones that are built in.
    """

    BUILT_IN = "CosineSimilarity() and AvgNonZeroReducer()"

    def __init__(
        self, *, gather: str | None = None, backend: str | None = None, distance: None = None, reducer: None = None
    ) -> None:
        super().__init__(gather, backend)
        for name, value in (("distance", distance), ("reducer", reducer)):
            if value is not None:
                raise TypeError(
                    f"{name} is {type(value).__name__}(...); {type(self).__name__} has {self.BUILT_IN} in its kernel: "
                    f"leave {name} out, or take pytorch_metric_learning.losses.{type(self).__name__}"
                )
        self.listed = False  # whether the last batch came with a list of pairs, for the warning

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: Any = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """The loss, 0-d, of every embedding against every other, or against every reference.

        Args:
            embeddings: [N, D], brought to unit norm.
            labels: [N], any integers, on any device. May be None with `indices_tuple`.
            indices_tuple: None for all pairs, or the pairs to take: pytorch-metric-learning's (a1, p, a2, n) or
                (a, p, n). All pairs except each row's own go to the kernel, as from CrossBatchMemory; others take a
                matrix [N, M], as the miners do.
            ref_emb, ref_labels: [M, D] and [M]. Where `ref_labels` is the very tensor `labels`, embedding i and
                reference i are one item and no pair.

        Raises TypeError or ValueError for an argument of wrong type, dtype, shape or device, named with its value.
        """
        self.listed = indices_tuple is not None
        if (ref_emb is None) != (ref_labels is None) and not (self.listed and ref_labels is None):
            raise ValueError("ref_emb and ref_labels go together; one of them is None")
        if self.listed:
            return self.forward_listed(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        rows, classes = self.read("embeddings", embeddings, "labels", labels)
        if ref_emb is None or ref_labels is None:
            return self.compute(rows, classes, self.against(rows, classes))
        others = self.read("ref_emb", ref_emb, "ref_labels", ref_labels)
        return self.compute(rows, classes, self.against(rows, classes, *others, same=ref_labels is labels))

    def forward_listed(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: Any,
        ref_emb: Tensor | None,
        ref_labels: Tensor | None,
    ) -> Tensor:
        """`forward` of the pairs in `indices_tuple`."""
        if self.gather is not None:
            raise ValueError(
                f"indices_tuple lists pairs of this rank, and gather is {self.gather!r}; give one of them. "
                "DistributedLossWrapper gathers itself"
            )
        if ref_emb is None:
            ref_emb, ref_labels = embeddings, labels
        known = labels is not None and ref_labels is not None
        rows, classes = self.read("embeddings", embeddings, "labels", labels, needs_labels=False)
        others, other_classes = self.read("ref_emb", ref_emb, "ref_labels", ref_labels, needs_labels=False)
        check_alike(rows, others)
        pairs = listed_pairs.read_pairs(indices_tuple, len(rows), len(others), rows.device)
        own = listed_pairs.own_columns(pairs, classes, other_classes) if known else None
        if own is None:
            times = listed_pairs.occurrences(pairs, len(rows), len(others), listed_pairs.full(rows[:0]).dtype)
            return self.compute_listed(rows, others, times)
        numbers = torch.arange(len(others), device=rows.device)
        ids = {"anchor_ids": own, "contrast_ids": numbers}
        return self.compute(rows, classes, {"contrast": others, "contrast_labels": other_classes, **ids})

    def read(
        self, name: str, value: Tensor, labels_name: str, labels: Tensor | None, needs_labels: bool = True
    ) -> tuple[Tensor, Tensor]:
        """(rows of unit norm [N, D], labels [N] int64); raises if they don't belong together."""
        if labels is None and not needs_labels and isinstance(value, Tensor):
            labels = torch.zeros(value.shape[:1], dtype=torch.int64, device=value.device)
        for what, tensor, dims in ((name, value, 2), (labels_name, labels, 1)):
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{what} must be a Tensor, got {type(tensor).__name__}")
            if tensor.ndim != dims:
                raise ValueError(f"{what} must be {'[N, D]' if dims == 2 else '[N]'}, got shape {tuple(tensor.shape)}")
        if labels.is_floating_point() or labels.is_complex():
            raise TypeError(f"{labels_name} must be integers, got {labels.dtype}")
        if len(labels) != len(value):
            raise ValueError(f"{labels_name} must have one entry per row of {name}, {len(value)}, got {len(labels)}")
        index = torch.arange(len(value), device=value.device)
        return self.rows_of(value[:, :, None, None], index), labels.to(value.device, torch.int64)

    def compute(self, rows: Tensor, labels: Tensor, against: dict[str, Any]) -> Tensor:
        """The loss of rows of unit norm, against the arguments of `PairLoss.against`."""
        raise NotImplementedError

    def compute_listed(self, rows: Tensor, others: Tensor, times: Occurrences) -> Tensor:
        """The loss of rows [N, D] and others [M, D] of unit norm, of the listed pairs."""
        raise NotImplementedError

    def why_none(self) -> str:
        return "does indices_tuple list a positive pair?" if self.listed else super().why_none()


def check_alike(rows: Tensor, others: Tensor) -> None:
    """Raise unless embeddings and references have one dtype, device and D."""
    for what in ("dtype", "device"):
        if getattr(rows, what) != getattr(others, what):
            raise TypeError(f"ref_emb has {what} {getattr(others, what)}, embeddings {getattr(rows, what)}")
    if rows.shape[1] != others.shape[1]:
        raise ValueError(f"ref_emb must have the D of embeddings, {rows.shape[1]}, got {others.shape[1]}")


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
        ids = against.get("anchor_ids")
        itself = (ids >= 0).sum() if ids is not None else 0 if against else len(rows)
        pairs = len(rows) * len(against.get("contrast", rows)) - itself
        pairs = pairs * (distributed.ranks() if self.gathers else 1)
        return torch.where(positives < pairs, total / count.clamp(min=1), 0.0)

    def compute_listed(self, rows: Tensor, others: Tensor, times: Occurrences) -> Tensor:
        """See `listed_pairs.supcon`."""
        losses, positives = listed_pairs.supcon(listed_pairs.similarity(rows, others) / self.temperature, times)
        self.warn_if_none(positives.sum())
        return losses.sum() / (losses > 0).sum().clamp(min=1)


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

    BUILT_IN = "CosineSimilarity() and MeanReducer()"

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

    def compute_listed(self, rows: Tensor, others: Tensor, times: Occurrences) -> Tensor:
        """See `listed_pairs.ntxent`."""
        total, count = listed_pairs.ntxent(listed_pairs.similarity(rows, others) / self.temperature, times)
        self.warn_if_none(count)
        return total / count.clamp(min=1)


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

    BUILT_IN = "LpDistance() and AvgNonZeroReducer()"

    def __init__(self, pos_margin: float = 0.0, neg_margin: float = 1.0, **options: Unpack[EmbeddingOptions]) -> None:
        super().__init__(**options)
        self.pos_margin, self.neg_margin = pos_margin, neg_margin

    def compute(self, rows: Tensor, labels: Tensor, against: dict[str, Any]) -> Tensor:
        """See `metricseg_kernels.margin_contrast_loss`."""
        return self.margin_form(
            rows, labels, against, margin=self.neg_margin, positive_margin=self.pos_margin, power=1, average="nonzero",
            ignore_index=None,
        )  # fmt: skip

    def compute_listed(self, rows: Tensor, others: Tensor, times: Occurrences) -> Tensor:
        """See `listed_pairs.margins`."""
        d = listed_pairs.distance(rows, others)
        pull, push, pulled, pushed = listed_pairs.margins(d, times, self.pos_margin, self.neg_margin)
        self.warn_if_none(pulled)
        return pull / pulled.clamp(min=1) + push / pushed.clamp(min=1)
