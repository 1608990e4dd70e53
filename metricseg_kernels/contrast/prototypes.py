"""SegSort's loss: pixels against prototypes, the mean directions of segments."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import checks
from ..core.backends import choose
from . import forms, op, reference
from .arguments import (
    Sets,
    check_alike,
    check_positive,
    check_row_integers,
    reference_sides,
    resolve_ignored,
    run_form,
)

REDUCTIONS = ("mean", "sum", "none")
ABSENT = -1  # label of rows that take no part, in sets.py too


def prototype_nca_loss(
    embeddings: Tensor,
    labels: Tensor | None,
    segment_ids: Tensor,
    prototypes: Tensor,
    prototype_labels: Tensor | None,
    *,
    concentration: float = 10.0,
    ignore_index: int | None = 255,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    r"""Neighborhood component loss of pixels against prototypes (SegSort).

    With s_ij = concentration <v_i, mu_j>, Pos_i the prototypes of the label of pixel i but that of its own segment, or
    that one if there is no other, and Neg_i the prototypes of other labels:

        l_i = -log( sum_{Pos_i} exp s_ij / (sum_{Pos_i} exp s_ij + sum_{Neg_i} exp s_ij) )
            = softplus(LSE_{Neg_i} - LSE_{Pos_i})

    Without labels, the unsupervised form: a softmax over all prototypes with that of the own segment as target. "mean"
    is over the pixels with a positive; a pixel without a negative contributes 0. No pixel with a positive: 0, with a
    zero gradient.

    Args:
        embeddings: [N, D], usually of unit norm; float64, float32, bfloat16 or float16.
        labels: [N] uint8, int32 or int64, any values; None, with prototype_labels, for the unsupervised form.
        segment_ids: [N] integers, the row of `prototypes` that each pixel belongs to. A pixel whose id is negative
            takes no part; one of P or more belongs to none of them.
        prototypes: [P, D] of the embeddings' dtype, usually of unit norm: those of the segments at hand
            (`segment_mean`), then those of a memory (detached). They receive a gradient if they require one.
        prototype_labels: [P]. A prototype whose label is negative (an unused one of `split_by_label`) takes no part.
        concentration: > 0, the inverse temperature.
        ignore_index: label of pixels and prototypes that take no part; None for no label.
        reduction: "mean", "sum", or "none" for [N].
        backend: "reference", "cpu", "triton", "cuda", or None for the first that can run.

    Returns:
        The loss in float32 (float64 for float64 input).

    Raises:
        TypeError, ValueError: an argument of wrong type, dtype, shape, device or range, named with its value.
        RuntimeError: a backend asked for by name can't run here; double backward without backend="reference".

    Source: Hwang et al., SegSort: Segmentation by Discriminative Sorting of Segments, ICCV 2019.
    """
    checks.tensor("embeddings", embeddings, 2, checks.FLOATS, "[N, D]")
    check_alike("prototypes", prototypes, "[P, D]", "embeddings", embeddings)
    check_row_integers("segment_ids", segment_ids, "embeddings", embeddings)
    if labels is not None and prototype_labels is not None:
        check_row_integers("labels", labels, "embeddings", embeddings)
        check_row_integers("prototype_labels", prototype_labels, "prototypes", prototypes)
    elif labels is not None or prototype_labels is not None:
        given, absent = ("labels", "prototype_labels") if labels is not None else ("prototype_labels", "labels")
        raise ValueError(f"{given} is given without {absent}; the unsupervised form takes neither")
    check_positive("concentration", concentration)
    checks.choice("reduction", reduction, REDUCTIONS)
    ignored = resolve_ignored(ignore_index, None)
    form = forms.Nca(1 / concentration)
    name = choose("contrast", embeddings.device, embeddings.dtype, backend)
    sets = _sets(embeddings, labels, segment_ids, prototypes, prototype_labels, ignored, name)
    if name == "reference":
        x, y, which = reference_sides(sets, ABSENT)
        loss, counts = reference.nca_contrast(x, y, which, form.temperature)
        if reduction != "none":
            loss = loss.sum()
        return loss / counts.sum().clamp(min=1) if reduction == "mean" else loss
    terms, counts = run_form(sets, ABSENT, form, reduction != "none", name)
    return op.mean(terms, counts, None, True, name)[0] if reduction == "mean" else terms.squeeze(-1)


def _sets(
    embeddings: Tensor,
    labels: Tensor | None,
    segment_ids: Tensor,
    prototypes: Tensor,
    prototype_labels: Tensor | None,
    ignored: int,
    backend: str,
) -> Sets:
    """Both sides, with ABSENT for rows that take no part, and equal ids where a pixel leaves a prototype out."""
    if labels is None or prototype_labels is None:
        places = torch.arange(len(prototypes), device=prototypes.device)
        return Sets(embeddings, segment_ids.long().clamp(min=ABSENT), prototypes, places, None, None)
    x, y, ids, places = op.prototype_sets(labels, segment_ids, prototype_labels, ignored, backend)
    return Sets(embeddings, x, prototypes, y, ids, places)
