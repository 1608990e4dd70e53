"""Base of the losses of pairs: the rows to compare with, on one rank or on all, and a warning if there are none."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

import metricseg_kernels as kernels
from metricseg.losses.base import Loss
from metricseg.utils import distributed
from metricseg.utils.labels import checks_values


class PairLoss(Loss):
    """A loss of rows against rows of its own rank (`gather` None), or of all ranks ("all")."""

    def __init__(self, gather: str | None, backend: str | None) -> None:
        super().__init__()
        if gather not in (None, "all"):
            raise ValueError(f'gather is {gather!r}; it takes "all" or None')
        self.gather, self.backend, self.silent = gather, backend, False
        self.same_items = self.nothing_chosen = False  # of the last batch, for the warning

    @property
    def gathers(self) -> bool:
        """Whether there are other ranks to compare with."""
        return self.gather == "all" and distributed.ranks() > 1

    def against(
        self,
        rows: Tensor,
        labels: Tensor,
        others: Tensor | None = None,
        other_labels: Tensor | None = None,
        same: bool = True,
    ) -> dict[str, Any]:
        """The contrast set of `rows` as arguments for a kernel: the others, or the rows themselves; of all ranks, if
        they are gathered. `same`: row i and other i are one item, which is no pair."""
        self.same_items = others is not None and same
        self.nothing_chosen = not self.silent and checks_values(labels) and not bool((labels >= 0).any())
        if others is None or other_labels is None:
            if not self.gathers:
                return {}
            others, other_labels = rows, labels
        if self.gathers:
            others, other_labels = distributed.gather_rows(others), distributed.gather_rows(other_labels)
        arguments: dict[str, Any] = {"contrast": others, "contrast_labels": other_labels}
        if same:
            numbers = torch.arange(len(others), device=rows.device)
            first = distributed.rank() * len(rows) if self.gathers else 0
            arguments.update(anchor_ids=numbers[first : first + len(rows)], contrast_ids=numbers)
        return arguments

    def totals(self, *values: Tensor) -> list[Tensor]:
        """Each value, summed over the ranks if they are gathered."""
        return [distributed.sum_over_ranks(v) if self.gathers else v for v in values]

    def rows_of(self, features: Tensor, index: Tensor, normalize: bool = True) -> Tensor:
        """Chosen pixels of a feature map; by the reference, with its double backward, if the loss uses it."""
        backend = "reference" if self.backend == "reference" else None
        return kernels.gather_pixels(features, index, normalize=normalize, backend=backend)

    def margin_form(self, rows: Tensor, labels: Tensor, against: dict[str, Any], **form: Any) -> Tensor:
        """The loss of `metricseg_kernels.margin_contrast_loss`, with the sums and counts of all ranks."""
        _, stats = kernels.margin_contrast_loss(
            rows, labels, **against, **form, return_stats=True, backend=self.backend
        )
        pull, push, pulled, pushed = self.totals(*stats)
        self.warn_if_none(pulled)
        return pull / pulled.clamp(min=1) + push / pushed.clamp(min=1)

    def warn_if_none(self, pulled: Tensor) -> None:
        """Warn once if `pulled`, the number of positive pairs or of anchors that have one, is 0."""
        if not self.silent and checks_values(pulled) and not pulled:
            self.silent = True
            warnings.warn(
                f"{type(self).__name__} pulls nothing together in this batch: {self.why_none()}",
                stacklevel=6,
            )

    def why_none(self) -> str:
        """The reason for a batch without positive pairs, as far as it is known."""
        if self.same_items:
            return (
                "ref_labels is the tensor labels itself, so embedding i and reference i count as one item and are no "
                "pair. If they are two items, e.g. two views, pass ref_labels=labels.clone()"
            )
        return "do any two rows have the same label?"
