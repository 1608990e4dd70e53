"""The contrast family's formulas and their gradients, one pair at a time, from lists of Python numbers."""

from __future__ import annotations

import math

import torch
from contrast_cases import Case, Sets
from torch import Tensor


def kinds(sets: Sets, ignore_index: int) -> list[list[str]]:
    """For each anchor and contrast row: "positive", "negative", or "" (self, or absent)."""
    alone = sets.contrast is None
    ours = sets.anchor_labels.tolist()
    theirs = ours if alone else sets.contrast_labels.tolist()
    our_ids = list(range(len(ours))) if sets.anchor_ids is None else sets.anchor_ids.tolist()
    their_ids = our_ids if alone else [None] * len(theirs) if sets.anchor_ids is None else sets.contrast_ids.tolist()

    def kind(i: int, j: int) -> str:
        if ignore_index in (ours[i], theirs[j]):
            return ""
        if ours[i] != theirs[j]:
            return "negative"
        return "" if our_ids[i] == their_ids[j] else "positive"

    return [[kind(i, j) for j in range(len(theirs))] for i in range(len(ours))]


def logsumexp(values: list[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(v - top) for v in values))


def sigmoid(v: float) -> float:
    return 1 / (1 + math.exp(-v)) if v >= 0 else math.exp(v) / (1 + math.exp(v))


def literal_pixel_contrast(case: Case, sets: Sets, form: str) -> tuple[list[float], int, Tensor, Tensor]:
    """(loss per anchor, weight of the anchors with a positive, d sum / d anchors, d sum / d contrast rows)."""
    x, alone = sets.anchors, sets.contrast is None
    y = x if alone else sets.contrast
    t = case.temperature
    c = 1.0 if case.base_temperature is None else t / case.base_temperature
    a, w = (
        [1.0] * len(rows) if weights is None else weights.tolist()
        for rows, weights in ((x, sets.anchor_weights), (y, sets.contrast_weights))
    )
    grad_x, grad_y, losses, counted = torch.zeros_like(x), torch.zeros_like(y), [], 0.0
    for i, row in enumerate(kinds(sets, case.ignore_index)):
        s = [float(x[i] @ y[j]) / t for j in range(len(row))]
        positives = [j for j, kind in enumerate(row) if kind == "positive" and w[j] > 0]
        negatives = [j for j, kind in enumerate(row) if kind == "negative" and w[j] > 0]
        counted += a[i] if positives else 0.0
        step = a[i] * c / sum(w[p] for p in positives) if positives else 0.0
        weights = dict.fromkeys(range(len(row)), 0.0)  # dl_i / ds_ij
        loss = 0.0
        if form == "negatives" and positives and negatives:
            others = [s[j] + math.log(w[j]) for j in negatives]
            n = logsumexp(others)
            for p in positives:
                # -log( exp s_ip / (exp s_ip + sum_neg w_n exp s_in) )
                loss -= step * w[p] * (s[p] - logsumexp([s[p], *others]))
                weights[p] -= step * w[p] * sigmoid(n - s[p])
            total = sum(w[p] * sigmoid(n - s[p]) for p in positives)
            for j in negatives:
                weights[j] += step * total * w[j] * math.exp(s[j] - n)
        if form == "all" and positives:
            n = logsumexp([s[j] + math.log(w[j]) for j in positives + negatives])
            for p in positives:
                loss -= step * w[p] * (s[p] - n)
                weights[p] -= step * w[p]
            for j in positives + negatives:
                weights[j] += a[i] * c * w[j] * math.exp(s[j] - n)
        losses.append(loss)
        for j, weight in weights.items():
            grad_x[i] += weight / t * y[j]
            grad_y[j] += weight / t * x[i]
    return losses, counted, *((grad_x + grad_y, grad_y) if alone else (grad_x, grad_y))


def literal_margin_contrast(case: Case, sets: Sets) -> tuple[float, Tensor, Tensor]:
    """(loss, d loss / d anchors, d loss / d contrast rows)."""
    x, alone = sets.anchors, sets.contrast is None
    y = x if alone else sets.contrast
    loss, grad_x, grad_y = 0.0, torch.zeros_like(x), torch.zeros_like(y)
    pairs = [(i, j, kind) for i, row in enumerate(kinds(sets, case.ignore_index)) for j, kind in enumerate(row)]
    for wanted, sign in (("positive", 1.0), ("negative", -1.0)):
        terms, count = [], 0
        for i, j, kind in pairs:
            if kind == wanted:
                d = float((x[i] - y[j]).norm())
                beyond = max(d - case.positive_margin if sign > 0 else case.margin - d, 0.0)
                terms.append((i, j, d, beyond))
                count += 1 if case.average == "pairs" else beyond > 0
        for i, j, d, beyond in terms:
            loss += beyond**case.power / count if count else 0.0
            if beyond > 0 and d > 0:
                pull = sign * case.power * beyond ** (case.power - 1) * (x[i] - y[j]) / d / count
                grad_x[i] += pull
                grad_y[j] -= pull
    return loss, *((grad_x + grad_y, grad_y) if alone else (grad_x, grad_y))
