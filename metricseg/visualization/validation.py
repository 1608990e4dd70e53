"""Base of the pictures of network outputs: the first pictures of a validation, kept, and lines of panels."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import lightning as L
import matplotlib
import numpy as np
import torch.nn.functional as F
from torch import Tensor

from metricseg.visualization.pictures import Palette, colors
from metricseg_kernels import predict_labels

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Shown = tuple[Tensor, ...]  # of one picture: image [3, H, W], labels [H, W], prediction [H, W], and outputs


class ValidationPictures(L.Callback):
    """Draw, after a validation, its first pictures with outputs of the network, if it has them.

    `<name>` of the files is `epoch_<number>` while training and `validate` otherwise. An error while drawing is a
    warning: pictures never end a training run.

    Args:
        pictures: number of pictures; 0 for none.
        folder: of the files; see the subclass.
    """

    needs: tuple[str, ...] = ()
    place = ""

    def __init__(self, pictures: int = 4, folder: str | None = None) -> None:
        self.pictures, self.folder = pictures, folder
        self.shown: list[Shown] = []

    @contextmanager
    def warn_of_errors(self) -> Iterator[None]:
        """Turn an error into a warning, without the pictures of this validation."""
        try:
            yield
        except Exception as error:
            self.shown.clear()
            warnings.warn(f"{type(self).__name__} draws nothing this time: {error!r}", stacklevel=3)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lightning's hook: remove the pictures of an earlier validation."""
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
        """Lightning's hook: keep the first pictures with the parts to draw of them."""
        model: Any = pl_module.model
        wanted = self.pictures - len(self.shown)
        if wanted <= 0 or not trainer.is_global_zero or not set(self.needs) <= set(model.offers):
            return
        images, labels = (part[:wanted] for part in batch)
        with self.warn_of_errors():
            with trainer.precision_plugin.forward_context():
                found = model.outputs(images.contiguous(memory_format=pl_module.format), {"logits", *self.needs})
            self.shown += each_picture(images, labels, found, self.needs)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lightning's hook: draw."""
        if not self.shown:
            return
        with self.warn_of_errors():
            if trainer.sanity_checking:
                self.start()
            else:
                folder = Path(self.folder or Path(trainer.default_root_dir) / self.place)
                folder.mkdir(parents=True, exist_ok=True)
                name = f"epoch_{trainer.current_epoch + 1:03d}" if trainer.state.fn == "fit" else "validate"
                data: Any = trainer.datamodule  # type: ignore[attr-defined]
                self.draw(folder, name, data.palette, data.classes)
        self.shown.clear()

    def start(self) -> None:
        """Keep the pictures of the network before it trains."""

    def draw(self, folder: Path, name: str, palette: Palette, classes: tuple[str, ...]) -> None:
        """Write the files of `self.shown`."""
        raise NotImplementedError


def each_picture(images: Tensor, labels: Tensor, found: Mapping[str, Tensor], names: Sequence[str]) -> Iterator[Shown]:
    """The parts to draw of every picture of a batch, on the CPU; `found` holds the logits and the outputs `names`."""
    predicted = predict_labels(found["logits"], labels.shape[-2:])
    outputs = (found[name].float() for name in names)
    each = (value if value.ndim > 2 else value.expand(len(images), -1, -1) for value in outputs)  # centers of all
    return zip(*(part.cpu() for part in (images.float(), labels, predicted, *each)), strict=True)


def at_grid(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Labels [H, W] at the grid (h, w) of an output, int64."""
    small = F.interpolate(labels[None, None].as_subclass(Tensor).float(), list(size))
    return small[0, 0].long()


def panels(shown: Sequence[Shown], palette: Palette, titles: Sequence[str]) -> tuple[Any, np.ndarray]:
    """A figure with a line for each picture, of picture, labels, prediction, and the axes for what `titles` name:
    (figure, axes [pictures, titles])."""
    table, (height, width) = colors(palette), shown[0][0].shape[-2:]
    columns = 3 + len(titles)
    size = (2.75 * columns, 0.4 + 2.75 * height / width * len(shown))
    figure, axes = plt.subplots(len(shown), columns, figsize=size, squeeze=False, layout="constrained")
    for line, (image, labels, predicted, *_) in zip(axes, shown, strict=True):
        picture = (image - image.amin()) / (image.amax() - image.amin()).clamp(min=1e-12)
        line[0].imshow(picture.permute(1, 2, 0).numpy())
        line[1].imshow(table[labels.numpy()])
        line[2].imshow(table[predicted.numpy()])
        for axis in line:
            axis.set_axis_off()
    for axis, title in zip(axes[0], ("picture", "labels", "prediction", *titles), strict=True):
        axis.set_title(title, fontsize=10)
    return figure, cast(np.ndarray, axes[:, 3:])


def save(figure: Any, path: Path, dpi: int = 100) -> None:
    """Write and close a figure."""
    figure.savefig(path, dpi=dpi, bbox_inches="tight")
    plt.close(figure)
