"""Pictures of refined upsampling: where each pixel reads, and what that changes in the prediction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.colors import hsv_to_rgb
from matplotlib.patches import Patch
from torch import Tensor

from metricseg.data.base import IGNORE
from metricseg.models.layers import resize
from metricseg.models.scrseg import OFFSETS
from metricseg.visualization.pictures import Palette
from metricseg.visualization.validation import Shown, ValidationPictures, panels, save
from metricseg_kernels import predict_labels

KINDS = {"right": (33, 102, 172), "wrong": (214, 47, 39), "neither": (247, 183, 51)}  # of a change, and their colors
SHORTEST = 0.1  # pixels, at the edge of a wheel: a network whose offsets are about 0 has pale pictures
WIDTH = 600  # pixels of a panel of changes: wider pictures are reduced


class OffsetPictures(ValidationPictures):
    """Draw, after a validation, the offsets of the first pictures, if the network refines its upsampling by them.

    Writes `<folder>/<name>_map.png`, for each picture its labels, its prediction, the offsets of each step of the
    decoder, and the pixels whose prediction is another one if all offsets are 0. The hue of an offset is its direction,
    from the pixel to where it reads, and the saturation its length, as the wheel below shows. A change is right if the
    prediction is the label, wrong if that without offsets was, else neither; unlabeled pixels don't count. `<name>` is
    `epoch_<number>` while training and `validate` otherwise.

    Args:
        pictures: number of pictures; 0 for none.
        folder: of the files; `<run's folder>/offsets` unless given.
    """

    needs = (*OFFSETS, "bilinear")
    place = "offsets"

    def draw(self, folder: Path, name: str, palette: Palette, classes: tuple[str, ...]) -> None:
        """Write the file."""
        draw(self.shown, palette, folder / f"{name}_map.png")


def direction_colors(offsets: Tensor, longest: float) -> np.ndarray:
    """Colors [h, w, 3] in [0, 1] of offsets [2, h, w], (dy, dx): white at 0, full at `longest` and beyond.

    Red is right, green up, cyan left and violet down.
    """
    dy, dx = offsets.numpy()
    hue = np.arctan2(-dy, dx) / (2 * np.pi) % 1
    return hsv_to_rgb(np.stack([hue, np.clip(np.hypot(dy, dx) / longest, 0, 1), np.ones_like(hue)], -1))


def changes(labels: Tensor, predicted: Tensor, bilinear: Tensor) -> Tensor:
    """[3, H, W] bool of labels and two predictions [H, W]: changed and now right, changed and now wrong, neither."""
    labels = labels.as_subclass(Tensor).long()
    changed = (predicted != bilinear) & (labels != IGNORE)
    right, wrong = changed & (predicted == labels), changed & (bilinear == labels)
    return torch.stack([right, wrong, changed & ~right & ~wrong])


def draw(shown: Sequence[Shown], palette: Palette, path: Path) -> None:
    """Draw (image [3, H, W], labels [H, W], prediction [H, W], offsets [2, h, w] of each step, logits [K, h, w] without
    offsets) of each picture."""
    strides = [int(name.rpartition("_")[2]) for name in OFFSETS]
    titles = [f"offsets, stride {2 * stride} to {stride}" for stride in strides]
    figure, axes = panels(shown, palette, [*titles, ""])
    figure.set_figheight(figure.get_figheight() + 0.7 + 0.12 * len(shown))  # wheels, and a title on every line
    for column, stride in enumerate(strides):
        maps = [picture[3 + column] for picture in shown]
        lengths = torch.cat([offsets.norm(dim=0).flatten() for offsets in maps])
        longest = max(float(np.quantile(lengths.numpy(), 0.99)), SHORTEST)
        for axis, offsets in zip(axes[:, column], maps, strict=True):
            axis.imshow(direction_colors(offsets, longest), interpolation="nearest")
        draw_wheel(axes[-1, column], f"{longest:.1f} px of stride {stride}\n= {longest * stride:.1f} px of the picture")
    for axis, (image, labels, predicted, *_, bilinear) in zip(axes[:, -1], shown, strict=True):
        kinds = changes(labels, predicted, predict_labels(bilinear[None], labels.shape[-2:])[0])
        counts = ", ".join(f"{int(kind.sum()):,} {name}" for kind, name in zip(kinds, KINDS, strict=True))
        axis.imshow(paint(image, kinds))
        share = int(kinds.sum()) / max(int((labels != IGNORE).sum()), 1)
        axis.set_title(f"{share:.1%} changed: {counts}", fontsize=7)
    handles = [Patch(color=np.array(color) / 255, label=name) for name, color in KINDS.items()]
    axes[-1, -1].legend(
        handles=handles, title="against bilinear upsampling", loc="upper center", bbox_to_anchor=(0.5, 0), ncols=3,
        frameon=False, fontsize=8, title_fontsize=8,
    )  # fmt: skip
    save(figure, path, dpi=140)


def draw_wheel(axis: Any, text: str) -> None:
    """Draw below `axis` the colors of all directions, with the length at the edge of the wheel."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, 101)] * 2, indexing="ij")
    inside = (x**2 + y**2 <= 1).numpy()[..., None]
    wheel = axis.inset_axes((0.0, -0.36, 0.33, 0.33))
    wheel.imshow(np.concatenate([direction_colors(torch.stack([y, x]), 1.0), inside], -1))
    wheel.set_axis_off()
    wheel.text(1.05, 0.5, f"hue: where a pixel reads\nedge: {text}", transform=wheel.transAxes, va="center", fontsize=8)


def paint(image: Tensor, kinds: Tensor) -> np.ndarray:
    """uint8 [h, w, 3]: the picture [3, H, W] pale and gray, with the changes [3, H, W] in the colors of their kinds. A
    wide picture is reduced, and a cell of it has the most frequent change in it, so that none disappears."""
    reduced = max(1, round(kinds.shape[-1] / WIDTH))
    shares = F.avg_pool2d(kinds[None].float(), reduced, ceil_mode=True)[0]  # [3, h, w]
    gray = resize(image.mean(0)[None, None], shares.shape[1:])[0, 0]
    gray = (gray - gray.amin()) / (gray.amax() - gray.amin()).clamp(min=1e-12)
    pale = (120 + 135 * gray)[..., None].expand(-1, -1, 3)
    colors = torch.tensor(list(KINDS.values()), dtype=torch.float32)[shares.argmax(0)]
    return torch.where(shares.any(0)[..., None], colors, pale).byte().numpy()
