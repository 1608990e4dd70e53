"""Losses of pixels against pixels: every pair of rows of two sets, or of one set with itself.

The matrix of all pairs never exists, forward or backward: memory grows with A + M.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, TypedDict, overload

import torch
from torch import Tensor

from ..core import checks
from ..core.backends import choose
from . import forms, op, reference
from .arguments import Sets, check_positive, check_sets, reference_sides, resolve_ignored, run_form

REDUCTIONS = ("mean", "sum", "none")

if TYPE_CHECKING:
    from typing_extensions import Unpack


class PairOptions(TypedDict, total=False):
    """Keyword arguments that both losses have, for their overloads."""

    ignore_index: int | None
    anchor_ids: Tensor | None
    contrast_ids: Tensor | None
    backend: str | None
    ignore_label: int | None


class PixelContrastOptions(PairOptions, total=False):
    """Keyword arguments of `pixel_contrast_loss`."""

    temperature: float
    base_temperature: float | None
    denominator: str
    reduction: str
    anchor_weights: Tensor | None
    contrast_weights: Tensor | None


class MarginContrastOptions(PairOptions, total=False):
    """Keyword arguments of `margin_contrast_loss`."""

    margin: float
    positive_margin: float
    power: int
    average: str


class ContrastStats(NamedTuple):
    """By-products of `pixel_contrast_loss`.

    positives: [A], how many positives each anchor has, or the sum of their contrast_weights. anchors: 0-d, how many
    anchors have one, or the sum of their anchor_weights: what "mean" divides by.
    """

    positives: Tensor
    anchors: Tensor


class MarginStats(NamedTuple):
    """By-products of `margin_contrast_loss`, each 0-d: loss = pull / max(pulled, 1) + push / max(pushed, 1).

    pull, push: the sums over positive and negative pairs, with gradient. pulled, pushed: what each mean divides by.
    """

    pull: Tensor
    push: Tensor
    pulled: Tensor
    pushed: Tensor


@overload
def pixel_contrast_loss(
    anchors: Tensor,
    anchor_labels: Tensor,
    contrast: Tensor | None = ...,
    contrast_labels: Tensor | None = ...,
    *,
    return_stats: Literal[False] = ...,
    **options: Unpack[PixelContrastOptions],
) -> Tensor: ...


@overload
def pixel_contrast_loss(
    anchors: Tensor,
    anchor_labels: Tensor,
    contrast: Tensor | None = ...,
    contrast_labels: Tensor | None = ...,
    *,
    return_stats: Literal[True],
    **options: Unpack[PixelContrastOptions],
) -> tuple[Tensor, ContrastStats]: ...


def pixel_contrast_loss(
    anchors: Tensor,
    anchor_labels: Tensor,
    contrast: Tensor | None = None,
    contrast_labels: Tensor | None = None,
    *,
    temperature: float = 0.1,
    base_temperature: float | None = None,
    denominator: str = "negatives",
    ignore_index: int | None = -1,
    anchor_ids: Tensor | None = None,
    contrast_ids: Tensor | None = None,
    anchor_weights: Tensor | None = None,
    contrast_weights: Tensor | None = None,
    reduction: str = "mean",
    return_stats: bool = False,
    backend: str | None = None,
    ignore_label: int | None = None,
) -> Tensor | tuple[Tensor, ContrastStats]:
    r"""Supervised contrastive loss (InfoNCE with many positives) of every anchor against every contrast row.

    A pair is *positive* if the labels are equal, unless the row is the anchor itself; *negative* if they differ;
    absent if either label is `ignore_index`. With s_ij = <x_i, y_j> / temperature, c = temperature /
    base_temperature, P_i the positives of anchor i and n_i = LSE over its negatives of s_ij:

        denominator="negatives":  l_i = c / |P_i| sum_{p in P_i} softplus(n_i - s_ip)
                                      = -c / |P_i| sum_p log( exp s_ip / (exp s_ip + sum_neg exp s_in) )
        denominator="all":        l_i = -c / |P_i| sum_{p in P_i} (s_ip - LSE_{j not self} s_ij)

    Anchors without a positive contribute 0, as do, under "negatives", anchors without a negative; "mean" is over the
    anchors that have a positive. None at all: 0, with a zero gradient.

    With weights a_i of the anchors and w_j of the contrast rows, as if row j occurred w_j times:

        denominator="negatives":  l_i = a_i c / W_i sum_{p in P_i} w_p softplus(n_i - s_ip),  W_i = sum_{p in P_i} w_p
                                      = -a_i c / W_i sum_p w_p log( exp s_ip / (exp s_ip + sum_neg w_n exp s_in) )
        denominator="all":        l_i = -a_i c / W_i sum_{p in P_i} w_p (s_ip - LSE_{j not self} (s_ij + log w_j))

    and n_i = LSE over negatives of (s_ij + log w_j); "mean" divides by the sum of a_i over the anchors with a positive.
    A contrast row of weight 0 is absent. An anchor whose positives all weigh 0 has none.

    Args:
        anchors: [A, D] embeddings, usually of unit norm; float64, float32, bfloat16 or float16. Sums are in float32
            (float64 for float64); float32 products follow torch.get_float32_matmul_precision().
        anchor_labels: [A] uint8, int32 or int64, any values.
        contrast: [M, D] rows to compare with, of the anchors' dtype; None for the anchors themselves. It receives a
            gradient if it requires one.
        contrast_labels: [M], with `contrast`.
        temperature: > 0. base_temperature: > 0, or None for c = 1.
        denominator: "negatives" (ContrastiveSeg) or "all" (SupCon, L_out).
        ignore_index: label of rows that take no part; None for no label.
        anchor_ids, contrast_ids: [A], [M] integers; a pair of equal labels is the anchor itself if the ids are equal
            too. Without ids it is the diagonal of a set with itself, and no pair of two sets.
        anchor_weights, contrast_weights: [A] and [M] (without contrast [A]: of the anchors as columns), finite and
            >= 0, float32 (or float64 for float64 input), without gradient. Their values are checked where labels are:
            on the CPU, and on CUDA with METRICSEG_VALIDATE=1.
        reduction: "mean", "sum", or "none" for [A].
        return_stats: also return `ContrastStats`.
        backend: "reference", "cpu", "triton", "cuda", or None for the first that can run.
        ignore_label: deprecated name of `ignore_index`, until 0.2.0.

    Returns:
        The loss in float32 (float64 for float64 input); with return_stats, (loss, ContrastStats).

    Raises:
        TypeError, ValueError: an argument of wrong type, dtype, shape, device or range, named with its value.
        RuntimeError: a backend asked for by name can't run here; double backward without backend="reference".

    Source: Wang et al., Exploring Cross-Image Pixel Contrast for Semantic Segmentation, ICCV 2021 ("negatives");
    Khosla et al., Supervised Contrastive Learning, NeurIPS 2020 ("all").
    """
    sets = Sets(
        anchors, anchor_labels, contrast, contrast_labels, anchor_ids, contrast_ids, anchor_weights, contrast_weights
    )
    check_sets(sets)
    check_positive("temperature", temperature)
    if base_temperature is not None:
        check_positive("base_temperature", base_temperature)
    checks.choice("denominator", denominator, ("negatives", "all"))
    checks.choice("reduction", reduction, REDUCTIONS)
    checks.boolean("return_stats", return_stats)
    ignored = resolve_ignored(ignore_index, ignore_label)
    scale = 1.0 if base_temperature is None else temperature / base_temperature
    name = choose("contrast", anchors.device, anchors.dtype, backend)
    if name == "reference":
        x, y, which = reference_sides(sets, ignored)
        loss, positives = reference.pixel_contrast(x, y, which, temperature, scale, denominator, contrast_weights)
        if anchor_weights is not None:
            loss = loss * anchor_weights
        if reduction != "none":
            loss = loss.sum()
        if reduction == "mean":
            divisor = _stats(positives, anchor_weights, loss.dtype).anchors
            loss = loss / torch.where(divisor > 0, divisor, 1)
    else:
        form = forms.FORMS[denominator](temperature, scale)
        terms, counts = run_form(sets, ignored, form, reduction != "none", name)
        positives = counts.squeeze(1)
        mean = reduction == "mean"
        loss = op.mean(terms, counts, anchor_weights, True, name)[0] if mean else terms.squeeze(-1)
    return (loss, _stats(positives, anchor_weights, loss.dtype)) if return_stats else loss


def _stats(positives: Tensor, weights: Tensor | None, dtype: torch.dtype) -> ContrastStats:
    counted = positives > 0
    anchors = counted if weights is None else torch.where(counted, weights.to(dtype), 0.0)
    return ContrastStats(positives, anchors.sum())


@overload
def margin_contrast_loss(
    anchors: Tensor,
    anchor_labels: Tensor,
    contrast: Tensor | None = ...,
    contrast_labels: Tensor | None = ...,
    *,
    return_stats: Literal[False] = ...,
    **options: Unpack[MarginContrastOptions],
) -> Tensor: ...


@overload
def margin_contrast_loss(
    anchors: Tensor,
    anchor_labels: Tensor,
    contrast: Tensor | None = ...,
    contrast_labels: Tensor | None = ...,
    *,
    return_stats: Literal[True],
    **options: Unpack[MarginContrastOptions],
) -> tuple[Tensor, MarginStats]: ...


def margin_contrast_loss(
    anchors: Tensor,
    anchor_labels: Tensor,
    contrast: Tensor | None = None,
    contrast_labels: Tensor | None = None,
    *,
    margin: float = 1.0,
    positive_margin: float = 0.0,
    power: int = 2,
    average: str = "pairs",
    ignore_index: int | None = -1,
    anchor_ids: Tensor | None = None,
    contrast_ids: Tensor | None = None,
    return_stats: bool = False,
    backend: str | None = None,
    ignore_label: int | None = None,
) -> Tensor | tuple[Tensor, MarginStats]:
    r"""Euclidean contrastive loss: pulls rows of one label together, pushes those of different labels apart.

    With d_ij = |x_i - y_j|, over all pairs of an anchor and a contrast row but those of an anchor with itself:

        loss = mean_positive relu(d - positive_margin)^power + mean_negative relu(margin - d)^power

    d^2 is taken from |x|^2 + |y|^2 - 2 <x, y>, and as 0 if it may be rounding alone; the gradient at d = 0
    is 0.

    Args:
        margin: > 0, distance from which negatives add nothing.
        positive_margin: >= 0, distance below which positives add nothing.
        power: 1 or 2.
        average: what each mean divides by: "pairs", all positive (negative) pairs, or "nonzero", those whose term is
            above 0. No such pair: 0.
        return_stats: also return `MarginStats`.
        anchors, anchor_labels, contrast, contrast_labels, ignore_index, anchor_ids, contrast_ids, backend,
            ignore_label, returns, raises: see `pixel_contrast_loss`.

    Source: Hadsell et al., Dimensionality Reduction by Learning an Invariant Mapping, CVPR 2006 (power 2); Jia et al.
    2025 for pixels; "nonzero" with power 1 is pytorch-metric-learning's ContrastiveLoss.
    """
    sets = Sets(anchors, anchor_labels, contrast, contrast_labels, anchor_ids, contrast_ids)
    check_sets(sets)
    check_positive("margin", margin)
    checks.number("positive_margin", positive_margin, 0.0)
    if power not in (1, 2):
        raise ValueError(f"power must be 1 or 2, got {power}")
    checks.choice("average", average, ("pairs", "nonzero"))
    checks.boolean("return_stats", return_stats)
    ignored = resolve_ignored(ignore_index, ignore_label)
    name = choose("contrast", anchors.device, anchors.dtype, backend)
    if name == "reference":
        x, y, which = reference_sides(sets, ignored)
        pull, push, pulled, pushed = reference.margin_contrast(
            x, y, which, margin, positive_margin, power, average == "nonzero"
        )
        loss = pull / pulled.clamp(min=1) + push / pushed.clamp(min=1)
    else:
        form = forms.Margin(margin, positive_margin, power, average == "nonzero")
        terms, counts = run_form(sets, ignored, form, True, name)
        loss, totals = op.mean(terms, counts, None, False, name)
        (pull, push), (pulled, pushed) = terms, totals.to(terms.dtype) if return_stats else totals
    return (loss, MarginStats(pull, push, pulled, pushed)) if return_stats else loss
