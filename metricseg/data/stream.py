"""A training stream whose every sample is a pure function of (seed, epoch, index), so that a killed run resumes with
the same samples."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision import tv_tensors

from metricseg.data.base import BadSample, Sample, ignored_sample


def seeded(*key: int) -> int:
    """A 63-bit seed from a tuple of integers, the same in every process and on every platform."""
    return random.Random(repr(key)).getrandbits(63)


def sample_name(data: Any, index: int) -> str:
    """The picture's path, if the data set keeps `images`, else the index: what an error calls a sample."""
    images = getattr(data, "images", None)
    return f"sample {index} ({images[index]})" if isinstance(images, Sequence) else f"sample {index}"


def check_sample(sample: Any) -> Sample:
    """(image, labels) as torchvision's transforms tell them apart; TypeError or ValueError if they are no sample."""
    image, labels = sample
    for value, ndim in ((image, 3), (labels, 2)):
        if not isinstance(value, Tensor) or value.ndim != ndim:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"a sample is a pair of tensors, image [3, H, W] and labels [H, W]; got {got}")
    if len(image) != 3 or image.shape[1:] != labels.shape:
        raise ValueError(f"image is {list(image.shape)} and labels are {list(labels.shape)}: not [3, H, W] and [H, W]")
    if labels.is_floating_point():
        raise TypeError(f"labels are {labels.dtype}; they take integers")
    return tv_tensors.Image(image), tv_tensors.Mask(labels)


class Augmented(Dataset[Any]):
    """`transform` over `data`, for positions epoch * len(data) + index, as `EpochSampler` gives them.

    Random numbers come from a generator seeded with (seed, epoch, index); torch's own generator is left as it was. An
    error names the sample. If the data set's `on_error` is "skip", it is a warning, and every pixel is ignored.
    """

    def __init__(self, data: Dataset[Any], transform: Any, seed: int = 0) -> None:
        self.data, self.transform, self.seed = data, transform, seed

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]

    def __getitem__(self, position: int) -> Any:
        epoch, index = divmod(position, len(self))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seeded(self.seed, epoch, index))
            sample, size = self.data[index], (64, 64)
            try:
                image, labels = check_sample(sample)
                size = (labels.shape[0], labels.shape[1])
                return self.transform(image, labels)
            except Exception as error:
                words = f"{sample_name(self.data, index)}: {error}"
                if getattr(self.data, "on_error", "raise") != "skip":
                    raise BadSample(words) from error
                warnings.warn(f"skipped {words}", stacklevel=2)
            ignored = getattr(self.data, "ignored_sample", ignored_sample)
            try:
                return self.transform(*ignored(size))
            except Exception:  # the size itself may be at fault
                return self.transform(*ignored((64, 64)))


class WholePictures(Augmented):
    """`Augmented` for batches of whole pictures, which need one size."""

    def __getitems__(self, positions: list[int]) -> list[Any]:
        """The samples of a batch; BadSample names two of different sizes."""
        samples = [self[position] for position in positions]
        sizes = [[tuple(part.shape[-2:]) for part in sample] for sample in samples]
        for position, size in zip(positions, sizes, strict=True):
            if size != sizes[0]:
                (_, a), (_, b) = sizes[0], size
                raise BadSample(
                    f"{sample_name(self.data, positions[0])} is {a[1]} x {a[0]} but {sample_name(self.data, position)} "
                    f"is {b[1]} x {b[0]}; pictures of different sizes take --data.eval_batch_size 1"
                )
        return samples


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
