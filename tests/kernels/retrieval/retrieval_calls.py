"""Calls of every op of the retrieval family: fixed ones, and random ones for `fuzz`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from fuzz import Call, Draw

import metricseg_kernels as mk

R = torch.Generator().manual_seed(0)
QUERIES, BANK = torch.randn(9, 6, generator=R), torch.randn(31, 6, generator=R)
BANK_LABELS = torch.randint(0, 4, (31,), generator=R)

# (function, keyword arguments that are no tensors, tensor arguments)
OPS: dict[str, Any] = {
    "topk": (mk.topk_similarity, {"k": 5}, {
        "queries": QUERIES, "bank": BANK, "valid": torch.rand(31, generator=R) < 0.8}),
    "vote": (mk.knn_vote, {"k": 7}, {"queries": QUERIES, "bank": BANK, "bank_labels": BANK_LABELS}),
}  # fmt: skip


def draw_call(draw: Draw) -> Call:
    depth, rows = draw.size(20, 0), draw.size(90, 0)
    # in fp64: among nearly equal similarities rounding decides
    tensors = {"queries": draw.values(draw.size(20, 0), depth).double(), "bank": draw.values(rows, depth).double()}
    options = {"k": draw.size(20)}
    if draw.one_of(False, True):
        ignore_index = draw.one_of(None, 255, 0, -1)
        tensors["bank_labels"] = draw.labels(draw.size(9), ignore_index, rows)
        return Call(mk.knn_vote, tensors, {**options, "ignore_index": ignore_index}, ())
    if draw.one_of(False, True):
        tensors["valid"] = torch.rand(rows, generator=draw.rng) < 0.7
    return Call(mk.topk_similarity, tensors, options, ())


def large_calls() -> Iterator[tuple[str, Call]]:
    """Several tiles of queries and of the bank, none full, for `bits`."""
    rng = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        tensors = {"queries": torch.randn(1100, 32, generator=rng).to(dtype),
                   "bank": torch.randn(3001, 32, generator=rng).to(dtype)}  # fmt: skip
        yield f"topk_similarity {dtype}", Call(mk.topk_similarity, tensors, {"k": 15}, ())


def topk_step(queries: int, rows: int) -> Callable[[], object]:
    """A call, for a meter of memory in another process."""
    tensors = torch.randn(queries, 32), torch.randn(rows, 32)
    return lambda: mk.topk_similarity(*tensors, 15)


SIZED: dict[str, Any] = {  # calls on inputs of any size, for tests/kernels/test_dynamic_sizes.py
    "topk_similarity": lambda x, b: mk.topk_similarity(x.rows.detach(), x.bank.detach(), 3, backend=b),
    "knn_vote": lambda x, b: mk.knn_vote(x.rows.detach(), x.bank.detach(), x.bank_labels, k=3, backend=b),
}  # fmt: skip
