"""Search in an index of FAISS, or in one with the same interface, in the place of a bank in memory.

FAISS is not imported. The index is searched where it is, with queries on the CPU.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from ..core import checks

INNER_PRODUCT = 0  # faiss.METRIC_INNER_PRODUCT
METRICS = {INNER_PRODUCT: "METRIC_INNER_PRODUCT", 1: "METRIC_L2"}


class Index(Protocol):
    """An index of `ntotal` rows of dimension `d`, by inner product."""

    d: int
    ntotal: int
    metric_type: int

    def search(self, x: Any, k: int) -> tuple[Any, Any]:
        """(values [Q, k] float32, descending, rows [Q, k] int64, -1 for none) of x [Q, d] float32, NumPy arrays."""


def check(bank: object) -> None:
    """Raise TypeError or ValueError if `bank` is no index, or one of another metric."""
    if not all(hasattr(bank, name) for name in ("search", "ntotal", "d", "metric_type")):
        raise TypeError(f"bank must be a Tensor [M, D] or an index of FAISS, got {type(bank).__name__}")
    metric = bank.metric_type  # type: ignore[attr-defined]
    if metric != INNER_PRODUCT:
        raise ValueError(
            f"bank must be an index with {METRICS[INNER_PRODUCT]}, got {METRICS.get(metric, f'metric_type {metric}')}"
        )


def topk(queries: Tensor, bank: Index, k: int) -> tuple[Tensor, Tensor]:
    """(values [Q, k], indices [Q, k] int64) on the queries' device; -inf and -1 where nothing was found.

    Raises ValueError for another D, or an index that numbers its rows otherwise than from 0 to M - 1.
    """
    if bank.d != queries.shape[1]:
        raise ValueError(f"bank must have the D of queries, {queries.shape[1]}, got {bank.d}")
    found = bank.search(queries.detach().float().cpu().contiguous().numpy(), k)
    values, indices = (torch.from_numpy(array) for array in found)
    if indices.numel() and int(indices.max()) >= bank.ntotal:
        raise ValueError(f"bank must number its {bank.ntotal} rows from 0, got row {int(indices.max())}")
    values = torch.where(indices < 0, -torch.inf, values).to(checks.accumulator(queries.dtype))
    return values.to(queries.device), indices.to(queries.device)
