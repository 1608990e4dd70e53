"""Label maps as pictures: palettes, overlays, and the files that `metricseg predict` writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import BasePredictionWriter
from PIL import Image

from metricseg.data.base import IGNORE, open_image

Palette = Sequence[tuple[int, int, int]]


def colours(palette: Palette) -> np.ndarray:
    """A table uint8 [256, 3]: the palette, then black, and white for ignored pixels."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette
    table[IGNORE] = 255
    return table


def label_image(labels: np.ndarray, palette: Palette) -> Image.Image:
    """Labels uint8 [H, W] as a palette PNG: its pixels are the class indices, its colours the palette's."""
    image = Image.fromarray(labels.astype(np.uint8), mode="L").convert("P")
    image.putdata(labels.astype(np.uint8).ravel())
    image.putpalette(colours(palette).ravel().tolist())
    return image


def overlay(picture: np.ndarray, labels: np.ndarray, palette: Palette, opacity: float = 0.5) -> np.ndarray:
    """Picture uint8 [H, W, 3] under its labels' colours, uint8 [H, W, 3]."""
    mixed = (1 - opacity) * picture + opacity * colours(palette)[labels]
    return mixed.round().astype(np.uint8)


class PredictionWriter(BasePredictionWriter):
    """Writes for each picture `<stem>.png`, its label map, and `<stem>_overlay.jpg`, into `folder`."""

    def __init__(self, folder: str = "predictions") -> None:
        super().__init__(write_interval="batch")
        self.folder = Path(folder)

    def write_on_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Lightning's hook, once for each picture."""
        labels, path = prediction[0].cpu().numpy(), Path(prediction[1])
        palette = trainer.datamodule.palette  # type: ignore[attr-defined]
        self.folder.mkdir(parents=True, exist_ok=True)
        label_image(labels, palette).save(self.folder / f"{path.stem}.png")
        picture = np.asarray(open_image(path).convert("RGB"))
        Image.fromarray(overlay(picture, labels, palette)).save(self.folder / f"{path.stem}_overlay.jpg", quality=92)
