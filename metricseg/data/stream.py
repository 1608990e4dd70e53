"""A training stream whose every sample is a pure function of (seed, epoch, index), so that a killed run resumes with
the same samples."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler


def seeded(*key: int) -> int:
    """A 63-bit seed from a tuple of integers, the same in every process and on every platform."""
    return random.Random(repr(key)).getrandbits(63)


class Augmented(Dataset[Any]):
    """`transform` over `data`, for positions epoch * len(data) + index, as `EpochSampler` gives them.

    Random numbers come from a generator seeded with (seed, epoch, index); torch's own generator is left as it was.
    """

    def __init__(self, data: Dataset[Any], transform: Any, seed: int = 0) -> None:
        self.data, self.transform, self.seed = data, transform, seed

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]

    def __getitem__(self, position: int) -> Any:
        epoch, index = divmod(position, len(self))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seeded(self.seed, epoch, index))
            return self.transform(*self.data[index])


class EpochSampler(Sampler[int]):
    """Every sample once per epoch, in an order drawn from (seed, epoch), as positions for `Augmented`.

    Under torch.distributed each of `replicas` ranks takes every `replicas`-th position. Lightning calls `set_epoch`.
    The next iteration leaves out the first `start` positions.
    """

    def __init__(self, length: int, seed: int = 0, rank: int = 0, replicas: int = 1) -> None:
        self.length, self.seed, self.rank, self.replicas, self.epoch = length, seed, rank, replicas, 0
        self.start = 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration draws."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length // self.replicas

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(seeded(self.seed, self.epoch, -1))
        order = torch.randperm(self.length, generator=generator).tolist()
        mine = order[self.rank : len(self) * self.replicas : self.replicas]
        return iter([self.epoch * self.length + index for index in mine[self.start :]])


class ResumableLoader(DataLoader[Any]):
    """A loader over an `EpochSampler` that resumes in the middle of an epoch.

    After `load_state_dict`, the next iteration gives the rest of the saved epoch's batches, if it is of that epoch.
    With another sampler, e.g. the one of Lightning's `overfit_batches`, it is a plain loader.
    """

    sampler: EpochSampler
    batch_size: int
    given = 0  # batches of this epoch
    resumed: tuple[int, int] | None = None  # epoch, batches

    @property
    def epoch(self) -> int:
        """The sampler's epoch; -1 for a sampler without."""
        return getattr(self.sampler, "epoch", -1)

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many of its batches were given."""
        return {"epoch": self.epoch, "batches": self.given}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Take up a position for the next iteration."""
        self.resumed = (state_dict["epoch"], state_dict["batches"])

    def __iter__(self) -> Iterator[Any]:
        resumed, self.resumed = self.resumed, None
        self.given = resumed[1] if resumed and resumed[0] == self.epoch else 0
        self.sampler.start = self.given * self.batch_size
        for batch in super().__iter__():
            self.given += 1
            yield batch
