"""A ring of the prototypes of earlier batches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

UNUSED = -1  # label of rows that were never filled


class PrototypeMemory(nn.Module):
    """The prototypes of the last `batches` batches with their labels: fixed capacity, no gradient, in the state dict.

    A batch replaces the oldest one. Rows that were never filled have the label -1. All shapes are fixed, so on CUDA
    there is no synchronization. Each rank of torch.distributed has a ring of its own; a checkpoint has that of rank 0.
    `DistributedDataParallel` would overwrite it with the ring of rank 0 at every step: `own_buffers` prevents that.

    Args:
        batches: that the ring holds; 0 for none.
        capacity: rows of a batch.
        dim: D.

    Raises ValueError for an argument out of range.
    """

    prototypes: Tensor  # [batches, capacity, D]
    labels: Tensor  # [batches, capacity] int64
    pushed: Tensor  # 0-d int64, batches that the ring was ever given

    def __init__(self, batches: int, capacity: int, dim: int) -> None:
        super().__init__()
        for name, value, least in (("batches", batches, 0), ("capacity", capacity, 1), ("dim", dim, 1)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")
        self.batches, self.capacity, self.dim = batches, capacity, dim
        self.register_buffer("prototypes", torch.zeros(batches, capacity, dim))
        self.register_buffer("labels", torch.full((batches, capacity), UNUSED))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))

    def rows(self) -> tuple[Tensor, Tensor]:
        """(prototypes [batches capacity, D], labels [batches capacity], -1 if unused), views of the ring."""
        return self.prototypes.flatten(0, 1), self.labels.flatten()

    @torch.no_grad()
    def push(self, prototypes: Tensor, labels: Tensor) -> None:
        """Replace the oldest batch by `prototypes` [capacity, D] with `labels` [capacity], -1 for unused rows."""
        if self.batches:
            place = (self.pushed % self.batches)[None]
            self.prototypes.index_copy_(0, place, prototypes[None].to(self.prototypes.dtype))
            self.labels.index_copy_(0, place, labels[None])
            self.pushed += 1

    @torch.no_grad()
    def reset(self) -> None:
        """Forget all batches."""
        self.prototypes.zero_()
        self.labels.fill_(UNUSED)
        self.pushed.zero_()

    def extra_repr(self) -> str:
        """Arguments that print shows."""
        return f"batches={self.batches}, capacity={self.capacity}, dim={self.dim}"


def own_buffers(module: nn.Module) -> list[str]:
    """Names of the buffers of `module` that differ between ranks, for `DistributedDataParallel` to leave alone."""
    return [
        f"{prefix}.{name}" if prefix else name
        for prefix, part in module.named_modules()
        if isinstance(part, PrototypeMemory)
        for name, _ in part.named_buffers(recurse=False)
    ]
