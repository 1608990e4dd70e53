"""Rows and sums over the ranks of torch.distributed's default group, with gradient.

A loss that is a function of all ranks' rows is made of two steps: `gather_rows` hands every rank the rows of all, and
`sum_over_ranks` adds what each rank computes for its own. Every rank then has the same loss L, and its backward gives
it the gradient of the sum of all ranks' losses, W L, with respect to its own parameters. DistributedDataParallel takes
the mean over the W ranks: dL/d(parameters), as one process with the whole batch has it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def ranks() -> int:
    """Number of processes; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number; 0 without a process group."""
    return dist.get_rank() if ranks() > 1 else 0


def gather_rows(rows: Tensor) -> Tensor:
    """[R, ...] of each rank to [W R, ...] on all, by rank. The gradient of a row is the sum over all ranks.

    R must be the same on every rank; on the CPU a difference raises ValueError.
    """
    if rows.device.type == "cpu":
        lengths = rows.new_empty(ranks(), dtype=torch.int64)
        dist.all_gather_into_tensor(lengths, torch.tensor([rows.shape[0]]))
        if bool((lengths != rows.shape[0]).any()):
            raise ValueError(f"every rank must bring equally many rows to be gathered, got {lengths.tolist()}")
    gathered: Tensor = _GatherRows.apply(rows)
    return gathered


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum of `value` over the ranks, on all of them. Its gradient is the sum of all ranks' gradients."""
    total: Tensor = _SumOverRanks.apply(value)
    return total


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        gathered = rows.new_empty((ranks() * rows.shape[0], *rows.shape[1:]))
        dist.all_gather_into_tensor(gathered, rows.contiguous())
        return gathered

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        own = grad.new_empty((grad.shape[0] // ranks(), *grad.shape[1:]))
        dist.reduce_scatter_tensor(own, grad.contiguous())
        return own


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone()
        dist.all_reduce(total)
        return total
