"""What an embedding looks like: its principal components as colours, and its pixels as points by class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metricseg.data.base import IGNORE
from metricseg.models.layers import resize
from metricseg.pictures import Palette, colours

matplotlib.use("Agg")
import matplotlib.pyplot as plt

POINTS_PER_CLASS = 300


def principal_components(rows: Tensor, count: int = 3) -> tuple[Tensor, Tensor]:
    """(mean [D], directions [D, count]) of `rows` [N, D]: the covariance's eigenvectors of greatest variance, in
    descending order, each with its largest entry positive."""
    mean = rows.mean(0)
    vectors = torch.linalg.eigh(torch.cov(rows.T)).eigenvectors.flip(1)[:, :count]  # [D, count]
    signs = vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    return mean, vectors * signs


class EmbeddingPictures(L.Callback):
    """After a validation, draws the embedding of its first pictures, where the network has one.

    Writes `<folder>/<name>_map.png`, for each picture its labels, its prediction and the first three principal
    components of the unit-norm embedding as red, green and blue; and `<folder>/<name>_scatter.png`, pixels by class in
    the plane of the first two. `<name>` is `epoch_<number>` while training and `validate` otherwise. The components are
    those of all labelled pixels shown.

    Args:
        pictures: how many; 0 for none.
        folder: where; `<run's folder>/embedding` unless given.
    """

    def __init__(self, pictures: int = 4, folder: str | None = None) -> None:
        self.pictures, self.folder = pictures, folder
        self.shown: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lightning's hook: forgets an earlier validation's pictures."""
        self.shown.clear()

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Lightning's hook: keeps the first pictures with what is drawn of them."""
        model: Any = pl_module.model
        wanted = self.pictures - len(self.shown)
        if wanted <= 0 or trainer.sanity_checking or not trainer.is_global_zero or "embedding" not in model.offers:
            return
        images, labels = (part[:wanted] for part in batch)
        with trainer.precision_plugin.forward_context():
            found = model.outputs(images.contiguous(memory_format=pl_module.format), ("logits", "embedding"))
        predicted = resize(found["logits"].float(), labels.shape[-2:]).argmax(1)
        embedding = F.normalize(found["embedding"].float(), dim=1)
        self.shown += zip(*(part.cpu() for part in (images, labels, predicted, embedding)), strict=True)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lightning's hook: draws."""
        if not self.shown:
            return
        folder = Path(self.folder or Path(trainer.default_root_dir) / "embedding")
        folder.mkdir(parents=True, exist_ok=True)
        name = f"epoch_{trainer.current_epoch + 1:03d}" if trainer.state.fn == "fit" else "validate"
        palette, classes = trainer.datamodule.palette, trainer.datamodule.classes  # type: ignore[attr-defined]
        draw(self.shown, palette, classes, folder / f"{name}_map.png", folder / f"{name}_scatter.png")
        self.shown.clear()


def draw(
    shown: list[tuple[Tensor, Tensor, Tensor, Tensor]],
    palette: Palette,
    classes: tuple[str, ...],
    map_path: Path,
    scatter_path: Path,
) -> None:
    """Both pictures of (image [3, H, W], labels [H, W], prediction [H, W], unit-norm embedding [D, h, w]) each."""
    rows = torch.cat([embedding.flatten(1).T for *_, embedding in shown])  # [N, D]
    kinds = torch.cat(
        [
            F.interpolate(labels[None, None].as_subclass(Tensor).float(), embedding.shape[-2:]).flatten()
            for _, labels, _, embedding in shown
        ]
    ).long()  # [N]
    labelled = kinds != IGNORE
    mean, directions = principal_components(rows[labelled] if int(labelled.sum()) > 1 else rows)
    points = (rows - mean) @ directions  # [N, 3]
    low, high = (points.quantile(q, 0) for q in (0.01, 0.99))
    scaled = ((points - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)

    table = colours(palette)
    height, width = shown[0][0].shape[-2:]
    size = (11, 0.4 + 2.75 * height / width * len(shown))
    figure, axes = plt.subplots(len(shown), 4, figsize=size, squeeze=False, layout="constrained")
    maps = scaled.split([embedding[0].numel() for *_, embedding in shown])
    for line, (image, labels, predicted, embedding), colour in zip(axes, shown, maps, strict=True):
        picture = (image - image.amin()) / (image.amax() - image.amin()).clamp(min=1e-12)
        line[0].imshow(picture.permute(1, 2, 0).numpy())
        line[1].imshow(table[labels.numpy()])
        line[2].imshow(table[predicted.numpy()])
        line[3].imshow(colour.reshape(*embedding.shape[-2:], 3).numpy(), interpolation="nearest")
        for axis in line:
            axis.set_axis_off()
    for axis, title in zip(axes[0], ("picture", "labels", "prediction", "embedding, 3 components"), strict=True):
        axis.set_title(title, fontsize=10)
    figure.savefig(map_path, dpi=100)
    plt.close(figure)

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
    figure.savefig(scatter_path, dpi=110)
    plt.close(figure)
