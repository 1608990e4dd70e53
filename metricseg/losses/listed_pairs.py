"""Pairs that a caller lists, as pytorch-metric-learning's miners and wrappers do: (a1, p, a2, n) or (a, p, n).

If the list is every pair except each row's own, as from CrossBatchMemory, `own_columns` says which column that is, and
the kernels take it. Any other list becomes the number of times each pair occurs, [N, M]: miners form that matrix too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from metricseg.utils.labels import checks_values


class ListedPairs(NamedTuple):
    """Indices of rows and columns: positive pairs (a1, p), negative pairs (a2, n)."""

    a1: Tensor
    p: Tensor
    a2: Tensor
    n: Tensor


class Occurrences(NamedTuple):
    """[N, M], the number of times that each pair is listed as positive and as negative."""

    positive: Tensor
    negative: Tensor


def read_pairs(indices_tuple: Any, rows: int, columns: int, device: torch.device) -> ListedPairs:
    """The pairs of an `indices_tuple`; a triplet (a, p, n) is a positive pair (a, p) and a negative pair (a, n).

    Raises TypeError or ValueError for another tuple, and ValueError for an index out of range, where values are read.
    """
    names = ("a", "p", "n") if isinstance(indices_tuple, Sequence) and len(indices_tuple) == 3 else ListedPairs._fields
    takes = "it takes a miner's pairs (a1, p, a2, n) or triplets (a, p, n)"
    if not isinstance(indices_tuple, Sequence):
        raise TypeError(f"indices_tuple is a {type(indices_tuple).__name__}; {takes}")
    if len(indices_tuple) != len(names):
        raise ValueError(f"indices_tuple has {len(indices_tuple)} entries; {takes}")
    indices = []
    for name, index in zip(names, indices_tuple, strict=True):
        if not isinstance(index, Tensor) or index.ndim != 1 or (index.is_floating_point() and len(index)):
            got = f"{index.dtype} {tuple(index.shape)}" if isinstance(index, Tensor) else type(index).__name__
            raise TypeError(f"{name} of indices_tuple is {got}; it takes a vector of integers")
        index = index.to(device, torch.int64)
        limit = rows if name.startswith("a") else columns
        if len(index) and checks_values(index) and not 0 <= int(index.min()) <= int(index.max()) < limit:
            raise ValueError(
                f"{name} of indices_tuple has values from {int(index.min())} to {int(index.max())}; it takes indices "
                f"of {limit} rows"
            )
        indices.append(index)
    pairs = ListedPairs(*indices) if len(indices) == 4 else ListedPairs(*indices[:2], indices[0], indices[2])
    for one, other in ((0, 1), (2, 3)):
        if len(pairs[one]) != len(pairs[other]):
            raise ValueError(f"indices_tuple has {len(pairs[one])} anchors for {len(pairs[other])} rows of pairs")
    return pairs


def own_columns(pairs: ListedPairs, labels: Tensor, other_labels: Tensor) -> Tensor | None:
    """[N], the column of each row's own item, -1 for none, if the list is every pair except those; else None.

    It counts, so it takes memory for one list and no matrix. On CUDA it waits for the device.
    """
    a1, p, a2, n = pairs
    columns = len(other_labels)
    classes, places = torch.cat([labels, other_labels]).unique(return_inverse=True)
    of_row, of_column = places[: len(labels)], places[len(labels) :]
    alike = of_column.bincount(minlength=len(classes))[of_row]  # columns of each row's class
    missing = alike - a1.bincount(minlength=len(labels))
    complete = bool(((missing == 0) | (missing == 1)).all()) and len(a2) == int((columns - alike).sum())
    fits = bool((of_row[a1] == of_column[p]).all()) and bool((of_row[a2] != of_column[n]).all())
    if not (complete and fits and distinct(a1 * columns + p) and distinct(a2 * columns + n)):
        return None
    # all columns of the class minus the listed ones leaves the missing one
    numbers = torch.arange(columns, device=labels.device)
    sums = torch.zeros_like(classes).index_add_(0, of_column, numbers)[of_row]
    own = sums - torch.zeros_like(sums).index_add_(0, a1, p)
    return torch.where(missing == 1, own, -1)


def distinct(keys: Tensor) -> bool:
    """Whether no key occurs twice; torch.where lists pairs in order, which is quick to see."""
    return bool((keys[1:] > keys[:-1]).all()) or len(keys.unique()) == len(keys)


def occurrences(pairs: ListedPairs, rows: int, columns: int, dtype: torch.dtype) -> Occurrences:
    """Number of times that each pair is listed."""

    def counted(row: Tensor, column: Tensor) -> Tensor:
        return (row * columns + column).bincount(minlength=rows * columns).view(rows, columns).to(dtype)

    return Occurrences(counted(pairs.a1, pairs.p), counted(pairs.a2, pairs.n))


def similarity(rows: Tensor, others: Tensor) -> Tensor:
    """[N, M] cosines of rows of unit norm, in float32 or float64."""
    rows, others = full(rows), full(others)
    return rows @ others.T


def distance(rows: Tensor, others: Tensor) -> Tensor:
    """[N, M] Euclidean distances, in float32 or float64, exact near 0, where the gradient is 0."""
    return torch.cdist(full(rows), full(others), compute_mode="donot_use_mm_for_euclid_dist")


def full(rows: Tensor) -> Tensor:
    return rows if rows.dtype == torch.float64 else rows.float()


def supcon(s: Tensor, times: Occurrences) -> tuple[Tensor, Tensor]:
    """(loss of each row [N], number of its positives [N]); a pair counts once however often it is listed."""
    positive, negative = times.positive > 0, times.negative > 0
    if checks_values(s) and bool((positive & negative).any()):
        raise ValueError("indices_tuple lists a pair as positive and as negative; a pair is one of both")
    count = positive.sum(1)
    listed = positive | negative
    lse = torch.where(listed | ~listed.any(1, keepdim=True), s, -torch.inf).logsumexp(1, keepdim=True)
    # l_i = -mean_p (s_ip - LSE_j s_ij) over the listed pairs of the row
    losses = torch.where(positive, lse - s, 0.0).sum(1) / count.clamp(min=1)
    return torch.where((positive.any() & negative.any()), losses, 0.0), count


def ntxent(s: Tensor, times: Occurrences) -> tuple[Tensor, Tensor]:
    """(sum over the listed positive pairs, their number), both 0-d; a pair counts as often as it is listed."""
    positive, negative = times
    some = (negative > 0).any(1, keepdim=True)
    weighted = s + torch.where(negative > 0, negative, 1.0).log()
    n = torch.where((negative > 0) | ~some, weighted, -torch.inf).logsumexp(1, keepdim=True)
    # softplus(n_i - s_ip), n_i = LSE over the listed negatives of the row
    terms = torch.where(some & (positive > 0), F.softplus(n - s, threshold=80.0), 0.0)
    return (positive * terms).sum(), positive.sum()


def margins(
    d: Tensor, times: Occurrences, positive_margin: float, margin: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(pull, push, pulled, pushed), as `metricseg_kernels.MarginStats`, of the terms above 0."""
    pull, push = (d - positive_margin).relu(), (margin - d).relu()
    return (
        (times.positive * pull).sum(),
        (times.negative * push).sum(),
        (times.positive * (pull > 0)).sum(),
        (times.negative * (push > 0)).sum(),
    )
