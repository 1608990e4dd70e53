"""Base of the picture data sets: pairs of files to tensors, and errors that name the bad file."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

IGNORE = 255
OnError = Literal["raise", "skip"]
Sample = tuple[Tensor, Tensor]


class BadSample(ValueError):
    """A picture or label map that can't be used; the message names the file and the reason."""


def need(path: Path, source: str) -> Path:
    """`path`, or a FileNotFoundError that names it and says where the data comes from (`source`)."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing. {source}")
    return path


def find_pictures(folder: Path) -> list[Path]:
    """The .png, .jpg and .jpeg files of a folder, sorted; endings in any case. Hidden files (".name") are left out."""
    endings = (".png", ".jpg", ".jpeg")
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in endings and not p.name.startswith("."))


def open_image(path: Path) -> Image.Image:
    """The decoded picture at `path`, rotated by its EXIF orientation; BadSample for any error of the decoder."""
    try:
        with Image.open(path) as image:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return image
    except Exception as error:
        raise BadSample(f"{path} can't be read: {error}") from error


def header(path: Path) -> tuple[tuple[int, int], int]:
    """Size (H, W) of the picture at `path`, rotated by its EXIF orientation, and that orientation (1: as stored)."""
    with Image.open(path) as image:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        width, height = image.size
    return (width, height) if orientation in (5, 6, 7, 8) else (height, width), orientation


def read_image(path: Path) -> tv_tensors.Image:
    """RGB picture as uint8 [3, H, W]; 16-bit gray is scaled to 8 bits."""
    image = open_image(path)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):  # convert would clip at 255
        image = Image.fromarray(((np.asarray(image, dtype=np.uint32) + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F", "LAB"):
        raise BadSample(f"{path} holds {image.mode} pixels; a picture is gray or color, of 8 or 16 bits a channel")
    return tv_tensors.Image(F.pil_to_tensor(image.convert("RGB")))


def lookup(mapping: dict[int, int]) -> np.ndarray:
    """Table [256] from stored label to training label; -1 if not in `mapping`, except that 255 stays 255 by default."""
    table = np.full(256, -1, dtype=np.int16)
    table[IGNORE] = IGNORE
    for stored, label in mapping.items():
        table[stored] = label
    return table


def read_labels(path: Path, table: np.ndarray) -> tv_tensors.Mask:
    """Label map as uint8 [H, W], its stored values passed through `table` (see `lookup`); white of 1 bit is 255."""
    image = open_image(path)
    if image.mode not in ("L", "P", "1"):
        raise BadSample(f"{path} holds {image.mode} pixels; a label map has one 8-bit class index per pixel")
    stored = np.asarray(image.convert("L") if image.mode == "1" else image)
    labels = table[stored]
    if labels.min(initial=0) < 0:
        known = np.flatnonzero(table[:IGNORE] >= 0)
        takes = [f"{known.min()} to {known.max()}"] if known.size else []
        takes += [str(IGNORE)] if table[IGNORE] >= 0 else []
        bad = int(stored[labels < 0][0])
        raise BadSample(f"{path} holds label {bad}; the files of this data set hold {' and '.join(takes)}")
    return tv_tensors.Mask(torch.from_numpy(labels.astype(np.uint8)))


def ignored_sample(size: tuple[int, int]) -> Sample:
    """A black picture of `size` = (H, W) whose every pixel is ignored."""
    image, labels = torch.zeros(3, *size, dtype=torch.uint8), torch.full(size, IGNORE, dtype=torch.uint8)
    return tv_tensors.Image(image), tv_tensors.Mask(labels)


class Segmentation(Dataset[Sample]):
    """Pictures with label maps. An item is (image uint8 [3, H, W], labels uint8 [H, W]); 255 is ignored.

    Args:
        images: the picture files.
        labels: the label files, in the same order.
        on_error: "raise" stops at a bad file with BadSample. "skip" warns, naming it, and returns a sample whose every
            pixel is ignored, so that it adds nothing to a loss or to a metric and batches keep their size. It has the
            size of the bad picture, or of the first good one if that size is not known.
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
        path = self.images[index]  # an index out of range is no bad sample
        try:
            return self.read(index)
        except Exception as error:
            if self.on_error == "raise":
                raise
            warnings.warn(f"skipped sample {index} ({path}): {error}", stacklevel=2)
            return ignored_sample(self.plausible_size(index))

    def plausible_size(self, bad: int) -> tuple[int, int]:
        """(H, W) of the first sample whose files agree on it, from the bad one on; 64 x 64 if there is none."""
        for index in (bad, *range(len(self))):
            with contextlib.suppress(Exception):
                size, _ = header(self.images[index])
                if size == header(self.labels[index])[0]:
                    return size
        return 64, 64

    def read(self, index: int) -> Sample:
        """The sample at `index`; BadSample if one of its files is bad or their sizes differ."""
        image, labels = read_image(self.images[index]), read_labels(self.labels[index], self.table)
        if image.shape[-2:] != labels.shape[-2:]:
            text = []
            for path, pixels in ((self.labels[index], labels), (self.images[index], image)):
                orientation = header(path)[1]
                turned = f" when turned by its EXIF orientation ({orientation})" if orientation != 1 else ""
                text.append(f"{path} is {pixels.shape[-1]} x {pixels.shape[-2]}{turned}")
            raise BadSample(" but its picture ".join(text))
        return image, labels


def label_files(folder: Path, stems: Iterable[str], source: str) -> list[Path]:
    """The .png file of each stem in a folder, the ending in any case; a FileNotFoundError names the first missing."""
    found = {p.stem: p for p in find_pictures(folder) if p.suffix.lower() == ".png"}
    return [found.get(stem) or need(folder / f"{stem}.png", source) for stem in stems]


def pair_folders(images: Path, labels: Path, source: str) -> tuple[list[Path], list[Path]]:
    """The pictures of a folder, sorted, each with the label map of the same stem.

    Raises FileNotFoundError, naming the path, if a folder is absent, holds no picture, or a picture has no label map.
    """
    need(images, source)
    need(labels, source)
    pictures = find_pictures(images)
    if not pictures:
        raise FileNotFoundError(f"{images} holds no .png or .jpg picture. {source}")
    return pictures, label_files(labels, [p.stem for p in pictures], source)
