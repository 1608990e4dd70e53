"""Augmentation by torchvision's v2 transforms; the one that it lacks, a random rescaling of the picture itself, is
here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from metricseg.data.base import IGNORE

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class RandomScale(v2.Transform):
    """Resize by a factor drawn uniformly from `scale`, keeping the aspect ratio.

    Args:
        scale: (smallest, largest) factor.
        short_side: the side that factor 1 gives the shorter edge, in pixels; None: as in the file.
    """

    def __init__(self, scale: tuple[float, float], short_side: int | None = None) -> None:
        super().__init__()
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(f"scale is {scale}; it takes 0 < smallest <= largest")
        self.scale, self.short_side = scale, short_side

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the new (height, width) once for picture and label map."""
        height, width = v2.functional.get_size(flat_inputs[0])
        low, high = self.scale
        factor = low + (high - low) * torch.rand(()).item()
        if self.short_side is not None:
            factor *= self.short_side / min(height, width)
        return {"size": [max(1, round(height * factor)), max(1, round(width * factor))]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Bilinear with anti-aliasing for the picture, nearest for the label map."""
        return self._call_kernel(v2.functional.resize, inpt, params["size"], antialias=True)


def normalize(mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> v2.Transform:
    """uint8 picture to float32, (x / 255 - mean) / std; label maps pass unchanged."""
    return v2.Compose(
        [v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True), v2.Normalize(list(mean), list(std))]
    )


def train_transform(
    crop: tuple[int, int],
    *,
    scale: tuple[float, float] = (0.5, 2.0),
    short_side: int | None = None,
    flip: float = 0.5,
    jitter: float = 0.0,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    ignored: int = IGNORE,
) -> v2.Transform:
    """Random scale, crop, flip and color jitter, then `normalize`.

    Args:
        crop: (height, width) of what comes out. Where the scaled picture is smaller it is padded with the mean
            color, `ignored` in the labels.
        scale, short_side: see `RandomScale`.
        flip: probability of a horizontal flip.
        jitter: strength of the change in brightness, contrast and saturation, 0 for none; hue changes a tenth as much.
    """
    fill = {tv_tensors.Image: [round(255 * m) for m in mean], tv_tensors.Mask: ignored}
    steps: list[v2.Transform] = [
        RandomScale(scale, short_side),
        v2.RandomCrop(crop, pad_if_needed=True, fill=fill),
        v2.RandomHorizontalFlip(flip),
    ]
    if jitter:
        steps.append(v2.ColorJitter(jitter, jitter, jitter, jitter / 10))
    return v2.Compose([*steps, normalize(mean, std)])


def eval_transform(
    *, short_side: int | None = None, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> v2.Transform:
    """The whole picture, normalized; with `short_side`, resized to it first (the label map keeps its own size: see
    `metricseg.data`)."""
    steps: list[v2.Transform] = [] if short_side is None else [ResizePicture(short_side)]
    return v2.Compose([*steps, normalize(mean, std)])


class ResizePicture(v2.Transform):
    """Resize the picture alone to a given shorter side, so that predictions are scored at the label map's own size."""

    def __init__(self, short_side: int) -> None:
        super().__init__()
        self.short_side = short_side

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Bilinear with anti-aliasing; anything but a picture passes unchanged."""
        if not isinstance(inpt, tv_tensors.Image):
            return inpt
        return v2.functional.resize(inpt, [self.short_side], antialias=True)
