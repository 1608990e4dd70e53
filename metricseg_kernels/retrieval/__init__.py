"""Retrieval of the nearest rows of a bank, and the vote of their labels. The matrix of similarities never exists."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import checks
from ..core.backends import choose
from ..core.labels import resolve_ignore_index
from . import index, op, reference

MOST = 1024  # neighbors


def topk_similarity(
    queries: Tensor, bank: Tensor | index.Index, k: int, *, valid: Tensor | None = None, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """The k rows of a bank with the largest <q_i, b_j>, for each query.

    Values descend; of equal ones the lower index comes first. Rows without a finite or +inf similarity are not
    retrieved. Results carry no gradient.

    A bank too large for memory can be an index of FAISS: an object with `search(x, k)`, `ntotal` = M, `d` = D and
    `metric_type`, which must be METRIC_INNER_PRODUCT. FAISS searches it on the CPU, or on its own GPU, in fp32. Equal
    values come in its order. An approximate index misses rows, and may find fewer than k.

    Args:
        queries: [Q, D] float64, float32, bfloat16 or float16; of unit norm for the cosine similarity.
        bank: [M, D] of the queries' dtype, or an index.
        k: how many, 1 to 1024.
        valid: [M] bool; the other rows are not retrieved. None for all, which an index takes alone.
        backend: "reference", "cpu", "triton", "cuda", or None for the first that can run, and for an index.

    Returns:
        (values [Q, k] in float32, or float64 for float64 input, indices [Q, k] int64). If fewer than k rows can be
        retrieved, the rest is -inf and -1.

    Raises:
        TypeError, ValueError: an argument of wrong type, dtype, shape, device or range, named with its value.
        RuntimeError: a backend asked for by name can't run here.
    """
    checks.tensor("queries", queries, 2, checks.FLOATS, "[Q, D]")
    if not isinstance(bank, Tensor):
        index.check(bank)
        checks.integer("k", k, 1, MOST)
        if valid is not None:
            raise ValueError("valid must be None for an index of FAISS: build it from the valid rows")
        if backend is not None:
            raise ValueError(f"backend must be None for an index of FAISS, which searches itself, got {backend!r}")
        search = torch.compiler.disable(index.topk) if torch.compiler.is_compiling() else index.topk
        return search(queries, bank, k)
    checks.tensor("bank", bank, 2, checks.FLOATS, "[M, D]")
    checks.same_device("bank", bank, "queries", queries)
    if bank.dtype != queries.dtype:
        raise TypeError(f"bank must have the dtype of queries, {queries.dtype}, got {bank.dtype}")
    if bank.shape[1] != queries.shape[1]:
        raise ValueError(f"bank must have the D of queries, {queries.shape[1]}, got {bank.shape[1]}")
    checks.integer("k", k, 1, MOST)
    if valid is not None:
        checks.tensor("valid", valid, 1, (torch.bool,), "[M]")
        checks.same_device("valid", valid, "bank", bank)
        if valid.shape[0] != bank.shape[0]:
            raise ValueError(f"valid must have one entry per row of bank, {bank.shape[0]}, got {valid.shape[0]}")
    queries, bank = queries.detach(), bank.detach()
    name = choose("retrieval", queries.device, queries.dtype, backend)
    if name == "reference":
        return reference.topk(queries, bank, valid, k)
    return op.topk(queries, bank, valid, k, name)


def knn_vote(
    queries: Tensor,
    bank: Tensor | index.Index,
    bank_labels: Tensor,
    *,
    k: int = 15,
    ignore_index: int | None = 255,
    backend: str | None = None,
) -> Tensor:
    """The label of each query by majority vote of its k nearest rows of a bank, by <q_i, b_j>.

    Of equally frequent labels that of the nearest neighbor wins. With an index of FAISS, those of the k nearest rows
    that have no vote leave fewer than k; a bank in memory gives the k nearest that have one.

    Args:
        queries, bank, k, backend, raises: see `topk_similarity`.
        bank_labels: [M] uint8, int32 or int64, of 0 or more, on the queries' device. Rows with a negative label have
            no vote.
        ignore_index: label of rows that have no vote; None for no label.

    Returns:
        labels [Q] int64; -1 for a query without a neighbor.

    Source: Hwang et al., SegSort: Segmentation by Discriminative Sorting of Segments, ICCV 2019.
    """
    checks.tensor("queries", queries, 2, checks.FLOATS, "[Q, D]")
    if isinstance(bank, Tensor):
        checks.tensor("bank", bank, 2, checks.FLOATS, "[M, D]")
    else:
        index.check(bank)
    rows = bank.shape[0] if isinstance(bank, Tensor) else bank.ntotal
    checks.tensor("bank_labels", bank_labels, 1, checks.LABELS, "[M]")
    checks.same_device("bank_labels", bank_labels, "queries", queries)
    if bank_labels.shape[0] != rows:
        raise ValueError(f"bank_labels must have one entry per row of bank, {rows}, got {bank_labels.shape[0]}")
    if isinstance(ignore_index, str):
        raise TypeError(f"ignore_index must be an int or None, got {ignore_index!r}")
    labels = bank_labels.long()
    valid = (labels != resolve_ignore_index(ignore_index, None)) & (labels >= 0)
    searched = valid if isinstance(bank, Tensor) else None
    _, indices = topk_similarity(queries, bank, k, valid=searched, backend=backend)
    labels = torch.cat([torch.where(valid, labels, -1), labels.new_full((1,), -1)])  # index -1: no neighbor
    return reference.vote(labels[indices])
