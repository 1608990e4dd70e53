"""Pictures of an embedding: its principal components as colors, and its pixels as points by class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metricseg.data.base import IGNORE
from metricseg.visualization.pictures import Palette
from metricseg.visualization.validation import Shown, ValidationPictures, at_grid, panels, plt, save

POINTS_PER_CLASS = 300


def principal_components(rows: Tensor, count: int = 3) -> tuple[Tensor, Tensor]:
    """(mean [D], directions [D, count]) of `rows` [N, D]: the covariance's eigenvectors of greatest variance, in
    descending order, each with its largest entry positive."""
    mean = rows.mean(0)
    vectors = torch.linalg.eigh(torch.cov(rows.T)).eigenvectors.flip(1)[:, :count]  # [D, count]
    signs = vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    return mean, vectors * signs


class EmbeddingPictures(ValidationPictures):
    """Draw, after a validation, the embedding of its first pictures, if the network has one.

    Writes `<folder>/<name>_map.png`, for each picture its labels, its prediction and the first three principal
    components of the unit-norm embedding as red, green and blue; and `<folder>/<name>_scatter.png`, pixels by class in
    the plane of the first two. `<name>` is `epoch_<number>` while training and `validate` otherwise. The components are
    those of all labeled pixels shown.

    Args:
        pictures: number of pictures; 0 for none.
        folder: of the files; `<run's folder>/embedding` unless given.
    """

    needs = ("embedding",)
    place = "embedding"

    def draw(self, folder: Path, name: str, palette: Palette, classes: tuple[str, ...]) -> None:
        """Write both files."""
        draw(self.shown, palette, classes, folder / f"{name}_map.png", folder / f"{name}_scatter.png")


def draw(shown: Sequence[Shown], palette: Palette, classes: Sequence[str], map_path: Path, scatter_path: Path) -> None:
    """Draw both pictures of (image [3, H, W], labels [H, W], prediction [H, W], embedding [D, h, w]) each."""
    rows = F.normalize(torch.cat([embedding.flatten(1).T for *_, embedding in shown]))  # [N, D]
    kinds = torch.cat([at_grid(labels, e.shape[-2:]).flatten() for _, labels, _, e in shown])  # [N]
    labelled = kinds != IGNORE
    mean, directions = principal_components(rows[labelled] if int(labelled.sum()) > 1 else rows)
    points = (rows - mean) @ directions  # [N, 3]
    low, high = (points.quantile(q, 0) for q in (0.01, 0.99))
    scaled = ((points - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)

    figure, axes = panels(shown, palette, ["embedding, 3 components"])
    maps = scaled.split([embedding[0].numel() for *_, embedding in shown])
    for axis, (*_, embedding), colour in zip(axes[:, 0], shown, maps, strict=True):
        axis.imshow(colour.reshape(*embedding.shape[-2:], 3).numpy(), interpolation="nearest")
    save(figure, map_path)

    figure, axis = plt.subplots(figsize=(8, 6))
    for k, (name, colour) in enumerate(zip(classes, palette, strict=True)):
        chosen = (kinds == k).nonzero().flatten()
        chosen = chosen[:: max(1, len(chosen) // POINTS_PER_CLASS)]
        if len(chosen):
            axis.scatter(*points[chosen, :2].T.numpy(), s=5, color=np.array(colour) / 255, label=name, linewidths=0)
    axis.set(xlabel="first principal component", ylabel="second")
    axis.spines[["top", "right"]].set_visible(False)
    if 0 < len(axis.collections) <= 30:
        axis.legend(frameon=False, fontsize=8, markerscale=2.5, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    save(figure, scatter_path, dpi=110)
