"""Launches of users of the retrieval family; axes are crossed in pairs. Products are exact in every dtype."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from launches import ARITHMETIC, Call, pairs

MAY_SPILL = ARITHMETIC["fp32"][3]
AXES: dict[str, tuple[Any, ...]] = {
    "k": (15, 1, 100),
    "dtype": tuple(ARITHMETIC),
    "depth": (32, 256, 100),
    "masked": (False, True),
    "rows": (100_000, 1000),  # in parts that are merged, or not
    "layout": ("rows", "columns"),
}


def calls() -> Iterator[Call]:
    for choice in pairs(AXES):
        precision = ARITHMETIC[choice["dtype"]][1]
        yield Call("-".join(map(str, choice.values())), partial(launch, **choice), precision, MAY_SPILL)
    for dtype in ("fp32", "bf16"):
        most = {"k": 1024, "dtype": dtype, "depth": 256, "masked": False, "rows": 100_000, "layout": "rows"}
        yield Call(f"most-{dtype}", partial(launch, **most), may_spill=MAY_SPILL)


def launch(k: int, dtype: str, depth: int, masked: bool, rows: int, layout: str) -> None:
    from metricseg_kernels.retrieval import op

    storage = ARITHMETIC[dtype][0]
    queries, bank = (
        torch.empty((n, depth) if layout == "rows" else (depth, n), dtype=storage, device="meta") for n in (512, rows)
    )
    if layout == "columns":
        queries, bank = queries.T, bank.T
    valid = torch.empty(rows, dtype=torch.bool, device="meta") if masked else None
    op._topk(queries, bank, valid, k, "triton")
