"""Label maps as pictures: palettes, overlays, and the files that `metricseg predict` writes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import BasePredictionWriter
from PIL import Image

from metricseg.data.base import IGNORE, read_image

Palette = Sequence[tuple[int, int, int]]


def colors(palette: Palette) -> np.ndarray:
    """A table uint8 [256, 3]: the palette, then black, and white for ignored pixels."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette
    table[IGNORE] = 255
    return table


def label_image(labels: np.ndarray, palette: Palette) -> Image.Image:
    """Labels uint8 [H, W] as a palette PNG: its pixels are the class indices, its colors the palette's."""
    image = Image.fromarray(labels.astype(np.uint8), mode="L").convert("P")
    image.putdata(labels.astype(np.uint8).ravel())
    image.putpalette(colors(palette).ravel().tolist())
    return image


def overlay(picture: np.ndarray, labels: np.ndarray, palette: Palette, opacity: float = 0.5) -> np.ndarray:
    """Picture uint8 [H, W, 3] under its labels' colors, uint8 [H, W, 3]."""
    mixed = (1 - opacity) * picture + opacity * colors(palette)[labels]
    return mixed.round().astype(np.uint8)


class PredictionWriter(BasePredictionWriter):
    """Write for each picture `<stem>.png`, its label map, and `<stem>_overlay.jpg`, into `folder`.

    Pictures with the same stem get their full names instead of it: `a.jpg.png` and `a.png.png`.

    Args:
        folder: where to write; it is made if it does not exist.
        overwrite: replace files that exist.

    Before anything is written, raises ValueError if an output would replace a picture that is read, or two pictures
    would have one output, and FileExistsError if an output exists and `overwrite` is false.
    """

    def __init__(self, folder: str = "predictions", overwrite: bool = False) -> None:
        super().__init__(write_interval="batch")
        self.folder, self.overwrite = Path(folder), overwrite
        self.outputs: dict[str, tuple[Path, Path]] = {}

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lightning's hook: plan the outputs."""
        pictures: list[Path] = trainer.predict_dataloaders.dataset.files
        stems = Counter(p.stem for p in pictures)
        names = [p.stem if stems[p.stem] == 1 else p.name for p in pictures]
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise ValueError(f"two pictures would be written to {self.folder / twice[0]}.png; rename one of them")
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"--writer.folder is {self.folder}, a file; it takes a folder")
        read = {(found.st_dev, found.st_ino) for found in (p.stat() for p in pictures)}
        for picture, name in zip(pictures, names, strict=True):
            outputs = self.folder / f"{name}.png", self.folder / f"{name}_overlay.jpg"
            self.outputs[str(picture)] = outputs
            for output in outputs:
                if output.exists() and (output.stat().st_dev, output.stat().st_ino) in read:
                    raise ValueError(f"{output} is a picture to predict and would be replaced; set --writer.folder")
                if output.exists() and not self.overwrite:
                    raise FileExistsError(f"{output} exists; --writer.overwrite true replaces it")
        trainer.strategy.barrier("outputs")  # no rank writes before all have checked
        self.folder.mkdir(parents=True, exist_ok=True)

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
        if prediction[0] is None:  # a picture that was skipped
            return
        labels, path = prediction[0].cpu().numpy(), prediction[1]
        palette = trainer.datamodule.palette  # type: ignore[attr-defined]
        label_path, overlay_path = self.outputs[path]
        label_image(labels, palette).save(label_path)
        picture = read_image(Path(path)).permute(1, 2, 0).numpy()
        Image.fromarray(overlay(picture, labels, palette)).save(overlay_path, quality=92)
