"""What all picture data sets share: pairs of files in, tensors of one form out, and plain words about bad files."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

IGNORE = 255
OnError = Literal["raise", "skip"]
Sample = tuple[Tensor, Tensor]


class BadSample(ValueError):
    """A picture or label map that can't be used; the message names the file and what is wrong with it."""


def need(path: Path, source: str) -> Path:
    """`path`, or a FileNotFoundError that names it and says where the data comes from (`source`)."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing. {source}")
    return path


def open_image(path: Path) -> Image.Image:
    """The decoded picture at `path`; BadSample if the file is absent, truncated, or no picture at all."""
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (OSError, SyntaxError, ValueError) as error:
        raise BadSample(f"{path} can't be read: {error}") from error


def read_image(path: Path) -> tv_tensors.Image:
    """RGB picture as uint8 [3, H, W]."""
    return tv_tensors.Image(F.pil_to_tensor(open_image(path).convert("RGB")))


def lookup(mapping: dict[int, int]) -> np.ndarray:
    """Table [256] from stored label to training label; a stored label outside `mapping` (255 stays 255) becomes -1."""
    table = np.full(256, -1, dtype=np.int16)
    table[IGNORE] = IGNORE
    for stored, label in mapping.items():
        table[stored] = label
    return table


def read_labels(path: Path, table: np.ndarray) -> tv_tensors.Mask:
    """Label map as uint8 [H, W], its stored values passed through `table` (see `lookup`)."""
    image = open_image(path)
    if image.mode not in ("L", "P", "1"):
        raise BadSample(f"{path} holds {image.mode} pixels; a label map has one 8-bit class index per pixel")
    stored = np.asarray(image, dtype=np.uint8)
    labels = table[stored]
    if labels.min(initial=0) < 0:
        raise BadSample(f"{path} holds label {int(stored[labels < 0][0])}, which is none of the data set's classes")
    return tv_tensors.Mask(torch.from_numpy(labels.astype(np.uint8)))


class Segmentation(Dataset[Sample]):
    """Pictures with label maps. An item is (image uint8 [3, H, W], labels uint8 [H, W]); 255 is ignored.

    Args:
        images: the picture files.
        labels: the label files, in the same order.
        on_error: "raise" stops at a bad file with BadSample. "skip" warns, naming it, and hands out a sample whose
            every pixel is ignored, so that it adds nothing to a loss or to a metric and batches keep their size.
    """

    classes: Sequence[str] = ()
    palette: Sequence[tuple[int, int, int]] = ()
    table: np.ndarray = lookup({})

    def __init__(self, images: Sequence[Path], labels: Sequence[Path], on_error: OnError = "raise") -> None:
        if on_error not in ("raise", "skip"):
            raise ValueError(f'on_error is {on_error!r}; it takes "raise" or "skip"')
        if len(images) != len(labels):
            raise ValueError(f"{len(images)} pictures but {len(labels)} label maps")
        self.images, self.labels, self.on_error = list(images), list(labels), on_error

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        try:
            return self.read(index)
        except BadSample as error:
            if self.on_error == "raise":
                raise
            warnings.warn(f"skipped: {error}", stacklevel=2)
            return tv_tensors.Image(torch.zeros(3, 64, 64, dtype=torch.uint8)), tv_tensors.Mask(
                torch.full((64, 64), IGNORE, dtype=torch.uint8)
            )

    def read(self, index: int) -> Sample:
        """The sample at `index`; BadSample if one of its files is bad or their sizes differ."""
        image, labels = read_image(self.images[index]), read_labels(self.labels[index], self.table)
        if image.shape[-2:] != labels.shape[-2:]:
            raise BadSample(
                f"{self.labels[index]} is {labels.shape[-1]} x {labels.shape[-2]} but its picture "
                f"{self.images[index]} is {image.shape[-1]} x {image.shape[-2]}"
            )
        return image, labels


def pair_folders(images: Path, labels: Path, source: str, suffix: str = ".png") -> tuple[list[Path], list[Path]]:
    """The pictures of a folder, sorted, each with the label map of the same stem.

    Raises FileNotFoundError, naming the path, if a folder is absent, holds no picture, or a picture has no label map.
    """
    need(images, source)
    need(labels, source)
    pictures = sorted(p for p in images.iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if not pictures:
        raise FileNotFoundError(f"{images} holds no .png or .jpg picture. {source}")
    return pictures, [need(labels / (p.stem + suffix), source) for p in pictures]
