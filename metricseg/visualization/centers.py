"""Pictures of class centers: their similarity to each other, and that of pixels to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metricseg.data.base import IGNORE
from metricseg.visualization.pictures import Palette
from metricseg.visualization.validation import Shown, ValidationPictures, panels, plt, save

MAPS = 4  # classes whose similarity maps are drawn
NAMED = 30  # classes, at most, whose names stand beside a matrix


class CenterPictures(ValidationPictures):
    """Draw, after a validation, the class centers of its first pictures, if the network has them.

    Writes `<folder>/<name>_matrix.png`, the K x K cosine similarity of the centers before training and now, and
    `<folder>/<name>_maps.png`, for each picture its labels, its prediction and the logits of a few classes: scale times
    the cosine of each pixel to the class's center. `<name>` is `epoch_<number>` while training and `validate`
    otherwise. The state before training comes from Lightning's sanity check (`--trainer.num_sanity_val_steps`). It is
    kept in checkpoints, and not drawn without that check.

    Args:
        pictures: number of pictures; 0 for none.
        folder: of the files; `<run's folder>/centers` unless given.
    """

    needs = ("logits", "centers")
    place = "centers"

    def __init__(self, pictures: int = 4, folder: str | None = None) -> None:
        super().__init__(pictures, folder)
        self.before: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Tensor]:
        """Lightning's hook."""
        return self.before

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Lightning's hook."""
        self.before = dict(state_dict)

    def start(self) -> None:
        """Keep the matrix, if none is kept."""
        self.before = self.before or {f"before training, {count(self.shown)}": center_similarities(self.shown)}

    def draw(self, folder: Path, name: str, palette: Palette, classes: tuple[str, ...]) -> None:
        """Write both files."""
        now = f"{name.replace('_', ' ')}, {count(self.shown)}"
        draw_matrices({**self.before, now: center_similarities(self.shown)}, classes, folder / f"{name}_matrix.png")
        draw_maps(self.shown, palette, classes, folder / f"{name}_maps.png")


def count(shown: Sequence[Shown]) -> str:
    """The number of pictures, in words."""
    return f"{len(shown)} picture{'s' if len(shown) != 1 else ''}"


def center_similarities(shown: Sequence[Shown]) -> Tensor:
    """[K, K] cosine similarity of the class centers, each entry the mean over the pictures with labels of both classes;
    NaN if there is none. Each picture is (image, labels [H, W], prediction, logits, centers [K, C])."""
    cosines, together = [], []
    for _, labels, _, _, centers in shown:
        w = F.normalize(centers, dim=1)
        seen = torch.zeros(IGNORE + 1, dtype=torch.bool).index_fill(
            0, labels.as_subclass(Tensor).long().flatten(), True
        )
        seen = seen[: len(w)]
        cosines.append(w @ w.T)
        together.append(seen[:, None] & seen)
    both = torch.stack(together)
    return torch.where(both, torch.stack(cosines), 0.0).sum(0) / both.sum(0)  # 0 / 0 is NaN


def draw_matrices(matrices: Mapping[str, Tensor], classes: Sequence[str], path: Path) -> None:
    """The matrices [K, K] by title, four in a line, each with the mean of its entries off the diagonal."""
    columns = min(4, len(matrices))
    lines = -(-len(matrices) // columns)
    size = (1.2 + 3.6 * columns, 1 + 4 * lines)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    ticks, names = (range(len(classes)), classes) if len(classes) <= NAMED else ([], [])
    for axis in axes.flat:
        axis.set_axis_off()
    for index, (title, matrix) in enumerate(matrices.items()):
        axis = axes.flat[index]
        axis.set_axis_on()
        image = axis.imshow(matrix.numpy(), vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest")
        off = matrix[~torch.eye(len(matrix), dtype=torch.bool)].nanmean()
        axis.set_title(f"{title}\nmean off the diagonal {off:.2f}", fontsize=10)
        axis.set_facecolor("#dddddd")
        below = index + columns >= len(matrices)
        axis.set_xticks(ticks if below else [], names if below else [], rotation=90, fontsize=8)
        axis.set_yticks(ticks if index % columns == 0 else [], names if index % columns == 0 else [], fontsize=8)
    figure.colorbar(image, ax=axes.ravel().tolist(), shrink=0.8, label="cosine of two class centers")
    save(figure, path)


def draw_maps(shown: Sequence[Shown], palette: Palette, classes: Sequence[str], path: Path) -> None:
    """Picture, labels, prediction, and the logits of some classes: from the one with most labeled pixels to the one
    with fewest, in even steps."""
    pixels = sum(
        torch.bincount(labels.as_subclass(Tensor).long().flatten(), minlength=IGNORE + 1) for _, labels, *_ in shown
    )
    counts = pixels[: len(classes)]
    ranked = counts.argsort(descending=True, stable=True)[: int((counts > 0).sum())].tolist()
    steps = np.linspace(0, len(ranked) - 1, min(MAPS, len(ranked))).round().astype(int)
    chosen = [ranked[step] for step in steps]
    figure, axes = panels(shown, palette, [f"similarity to {classes[k]}" for k in chosen])
    maps = torch.cat([logits[chosen].flatten() for *_, logits, _ in shown])
    low, high = (float(maps.min()), float(maps.max())) if len(maps) else (0.0, 1.0)
    for line, (*_, logits, _) in zip(axes, shown, strict=True):
        for axis, k in zip(line, chosen, strict=True):
            image = axis.imshow(logits[k].numpy(), vmin=low, vmax=high, cmap="viridis", interpolation="nearest")
    if chosen:
        figure.colorbar(image, ax=axes.ravel().tolist(), shrink=0.7, label="scale x cosine")
    save(figure, path)
