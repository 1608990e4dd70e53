"""The data of one training or prediction, for Lightning."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from metricseg.data import (
    DATASETS,
    Augmented,
    EpochSampler,
    build_dataset,
    class_names,
    eval_transform,
    train_transform,
)
from metricseg.data.base import IGNORE, OnError, find_pictures, need, read_image
from metricseg.data.regions import NO_REGION, Oversegmented, Regions
from metricseg.data.stream import ResumableLoader, WholePictures
from metricseg.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from metricseg.losses import Terms


class Pictures(Dataset[tuple[Tensor | None, tuple[int, int], str]]):
    """The pictures of a folder, or one picture file: (normalized float32 [3, h, w], its size (H, W) on disk, its
    path).

    If a picture can't be used, `on_error` "raise" raises BadSample; "skip" warns, naming it, and the item's image is
    None.
    """

    def __init__(self, path: str | Path, transform: v2.Transform, on_error: OnError = "raise") -> None:
        path = need(Path(path), "predict takes a picture, or a folder of .jpg or .png pictures.")
        self.files = find_pictures(path) if path.is_dir() else [path]
        self.transform, self.on_error = transform, on_error
        if not self.files:
            raise FileNotFoundError(f"{path} holds no .jpg or .png picture")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor | None, tuple[int, int], str]:
        path = self.files[index]
        try:
            image = read_image(path)
            return self.transform(image), (image.shape[-2], image.shape[-1]), str(path)
        except Exception as error:
            if self.on_error != "skip":
                raise
            warnings.warn(f"skipped {path}: {error}", stacklevel=2)
            return None, (0, 0), str(path)


def only(items: list[Any]) -> Any:
    """The one item of a batch of one; a function that other processes can import."""
    return items[0]


class SegmentationData(L.LightningDataModule):
    """Training crops, whole validation pictures, and pictures to predict.

    Args:
        dataset: name of the data set, or its name and arguments, e.g. {"name": "camvid", "root": "data/camvid"}; for
            your own see `metricseg.data`. `on_error: skip` goes on past files that can't be read, in `predict` too.
        train_split, val_split: its splits.
        crop: (height, width) of a training sample.
        scale, short_side, flip, jitter: augmentation, see `train_transform`. `short_side` holds for evaluation too.
        mean, std: of the normalization, for pictures in [0, 1].
        batch_size: training samples per step and process.
        eval_batch_size: validation pictures per step; more than 1 only if all have one size.
        workers: loader processes; 0 loads in the training process.
        seed: of order and augmentation.
        pictures: folder or file for `predict`.
        regions: train with the regions of an oversegmentation in the place of labels, for a loss without labels: the
            arguments of `metricseg.data.regions.Regions`, e.g. {"method": "felzenszwalb"}. `fit` computes what the
            cache lacks before the first step. Validation and banks have labels.

    Raises ValueError for an argument out of range or an unknown data set.
    """

    def __init__(
        self,
        dataset: dict[str, Any] | str,
        train_split: str = "train",
        val_split: str = "val",
        crop: tuple[int, int] = (512, 512),
        scale: tuple[float, float] = (0.5, 2.0),
        short_side: int | None = None,
        flip: float = 0.5,
        jitter: float = 0.0,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        batch_size: int = 8,
        eval_batch_size: int = 1,
        workers: int = 0,
        seed: int = 0,
        pictures: str | None = None,
        regions: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        counts = (("batch_size", batch_size, 1), ("eval_batch_size", eval_batch_size, 1), ("workers", workers, 0))
        for name, value, least in counts:
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} is {value!r}; it takes an integer >= {least}")
        self.dataset, self.train_split, self.val_split = dataset, train_split, val_split
        self.batch_size, self.eval_batch_size, self.workers, self.seed = batch_size, eval_batch_size, workers, seed
        self.pictures = pictures
        try:
            self.regions = None if regions is None else Regions(**regions)
        except TypeError as error:
            raise ValueError(f"regions is {regions!r}; it takes a mapping of the arguments of Regions") from error
        ignored = IGNORE if regions is None else NO_REGION
        self.augment = train_transform(
            crop, scale=scale, short_side=short_side, flip=flip, jitter=jitter, mean=mean, std=std, ignored=ignored
        )
        self.prepare = eval_transform(short_side=short_side, mean=mean, std=std)
        self.classes, self.palette = class_names(dataset)
        self.num_classes = len(self.classes)
        if self.num_classes == 1:
            warnings.warn(
                f"the data set has one class, {self.classes[0]!r}: the network can predict no other, and mIoU is 1. "
                "Label the other pixels as a class of their own, e.g. background, instead of ignoring them",
                stacklevel=2,
            )
        self.train_loader: ResumableLoader | None = None
        self.resumed: dict[str, int] = {}

    def options(self, batch_size: int) -> dict[str, Any]:
        """Options that all loaders share."""
        return {"batch_size": batch_size, "num_workers": self.workers, "pin_memory": torch.cuda.is_available()}

    def state_dict(self) -> dict[str, int]:
        """Lightning's hook: the position in the training stream, for checkpoints in the middle of an epoch."""
        return self.train_loader.state_dict() if self.train_loader else {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Lightning's hook, before the loader is built."""
        self.resumed = dict(state_dict)

    def check_batch_norm(self, network: nn.Module) -> None:
        """Raise ValueError if batch norm of `network` would get one sample."""
        if self.batch_size == 1 and any(isinstance(m, nn.BatchNorm2d) and m.training for m in network.modules()):
            raise ValueError(
                "batch_size is 1; batch norm takes at least 2 training samples per process, or, on several GPUs, "
                "--trainer.sync_batchnorm true"
            )

    def check_supervision(self) -> None:
        """Raise ValueError if the loss takes labels and the data give regions, or the other way round."""
        loss = getattr(self.trainer and self.trainer.lightning_module, "loss", None)
        if not isinstance(loss, nn.Module):
            return
        losses: dict[str, Any] = dict(loss.losses) if isinstance(loss, Terms) else {}
        parts = [losses.get(name) for name in loss.plans] if isinstance(loss, Terms) else [loss]
        kinds = {getattr(part, "supervision", "labels") for part in parts}
        if kinds != {"labels" if self.regions is None else "segments"}:
            raise ValueError(
                f"the training data give {'labels' if self.regions is None else 'regions'} and the loss takes "
                f"{' and '.join(sorted(kinds))}; data.regions and losses with supervision: segments go together"
            )

    def training_set(self) -> Any:
        """The data set to train with; regions in the place of labels if there are any."""
        data = build_dataset(self.dataset, self.train_split)
        return data if self.regions is None else Oversegmented(data, self.regions)

    def prepare_data(self) -> None:
        """Lightning's hook, on one process of each machine: compute the regions that the cache lacks, for `fit`."""
        if self.regions is not None and self.trainer and self.trainer.state.fn == "fit":
            self.check_supervision()
            self.training_set().prepare(self.workers)

    def rank_and_world(self) -> tuple[int, int]:
        """This process's rank and the number of processes."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled, augmented crops: (float32 [B, 3, h, w], labels uint8 or regions int32 [B, h, w]); a last batch that
        is not full is dropped."""
        data = Augmented(self.training_set(), self.augment, self.seed)
        sampler = EpochSampler(len(data), self.seed, *self.rank_and_world())
        self.check_supervision()
        if self.trainer and self.trainer.lightning_module:
            self.check_batch_norm(self.trainer.lightning_module)
        if len(sampler) < self.batch_size:
            raise ValueError(f"{len(data)} training pictures don't fill one batch of {self.batch_size}")
        self.train_loader = ResumableLoader(data, **self.options(self.batch_size), sampler=sampler, drop_last=True)
        if self.resumed:
            self.train_loader.load_state_dict(self.resumed)
            self.resumed = {}
        return self.train_loader

    def val_dataloader(self) -> DataLoader[Any]:
        """Whole pictures and label maps, in order."""
        data = WholePictures(build_dataset(self.dataset, self.val_split), self.prepare)
        return DataLoader(data, **self.options(self.eval_batch_size))

    def bank_pictures(self, count: int = 0) -> tuple[WholePictures, list[int], list[str]]:
        """Whole training pictures for a bank of prototypes, not augmented: (samples, the numbers of `count` of them,
        evenly spaced, or of all if it is 0, their names)."""
        data = build_dataset(self.dataset, self.train_split)
        total = len(data)
        chosen = [k * total // count for k in range(count)] if 0 < count < total else list(range(total))
        files = getattr(data, "images", None)
        names = [str(files[k]) if isinstance(files, Sequence) else f"{self.train_split} {k}" for k in chosen]
        return WholePictures(data, self.prepare), chosen, names

    def bank_dataloader(self, data: WholePictures, chosen: Sequence[int]) -> DataLoader[Any]:
        """Batches of chosen pictures of `bank_pictures`, in order."""
        return DataLoader(data, **self.options(self.eval_batch_size), sampler=list(chosen))

    def predict_dataloader(self) -> DataLoader[Any]:
        """The pictures of `pictures`, one at a time; each process has its own share."""
        if self.pictures is None:
            raise ValueError("predict needs --data.pictures: a picture, or a folder of .jpg or .png pictures")
        on_error = DATASETS.resolve(self.dataset)[2].get("on_error", "raise")
        data, (rank, world) = Pictures(self.pictures, self.prepare, on_error), self.rank_and_world()
        return DataLoader(data, **self.options(1), sampler=range(rank, len(data), world), collate_fn=only)
