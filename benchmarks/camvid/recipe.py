"""The training recipe that the CamVid comparisons share: batches, epochs with checkpoints, validation.

Every system sees the same pictures in the same order with the same augmentation (random scale 0.6 to 1.6, 320 x 320
crop, flip, batch 8), AdamW with 3e-4 for the backbone and 1e-3 for the rest, weight decay 1e-2, poly 0.9, output
stride 16 (32 for a decoder that starts there).
"""

from __future__ import annotations

import csv
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from metricseg.data import IGNORE, Augmented, CamVid, EpochSampler, eval_transform, train_transform
from metricseg.data.regions import NO_REGION, Oversegmented, Regions
from metricseg.data.stream import seeded
from metricseg.models import SegSort
from metricseg.training.evaluation import BoundaryIoU, IoU
from metricseg.training.retrieval import joined

from .systems import System

HALF = (0.5, 0.5, 0.5)


def train_loader(
    root: Path, seed: int, workers: int = 0, regions: dict[str, Any] | None = None, cache: Path | None = None
) -> DataLoader[Any]:
    """The training batches, (float32 [8, 3, 320, 320], uint8 [8, 320, 320]); with the options of `regions`, int32
    regions of an oversegmentation in the place of labels, kept in the folder `cache`."""
    pictures: Any = CamVid(root, "train")
    if regions:
        pictures = Oversegmented(pictures, Regions(**regions, cache=cache or "runs/regions"))
        pictures.prepare(workers)
    ignored = NO_REGION if regions else IGNORE
    transform = train_transform((320, 320), scale=(0.6, 1.6), mean=HALF, std=HALF, ignored=ignored)
    data = Augmented(pictures, transform, seed)
    return DataLoader(data, 8, sampler=EpochSampler(len(data), seed), drop_last=True, num_workers=workers)


def fill_bank(model: SegSort, root: Path, device: str) -> None:
    """Build the bank from all training pictures at their own size, without augmentation, with their labels."""
    transform, data = eval_transform(mean=HALF, std=HALF), CamVid(root, "train")
    parts = []
    for number in tqdm(range(len(data)), desc="bank", mininterval=5):
        image, labels = (part.as_subclass(Tensor)[None].to(device) for part in transform(*data[number]))
        parts.append(model.bank_rows(image, labels, number))
    model.bank.fill(joined(parts, model.bank.dim))


@torch.inference_mode()
def validate(system: System, root: Path) -> tuple[list[float], list[float]]:
    """IoU of each class in [0, 1] over the validation pictures at their own size, of all pixels, and of those within
    three of a label border. A SegSort gets a new bank first."""
    system.model.eval()
    if isinstance(system.model, SegSort):
        fill_bank(system.model, root, system.device)
    transform, classes = eval_transform(mean=HALF, std=HALF), len(CamVid.classes)
    metrics = [metric.to(system.device) for metric in (IoU(classes), BoundaryIoU(classes))]
    for sample in tqdm(CamVid(root, "val"), desc="validate", mininterval=5):
        image, labels = transform(*sample)
        predicted = system.predict(image[None].to(system.device)).argmax(1)
        for metric in metrics:
            metric.update(predicted, labels[None].to(system.device))
    everywhere, near_borders = (metric.compute().tolist() for metric in metrics)
    return everywhere, near_borders


class Clock:
    """Seconds on the wall and seconds of processor time (user + system, all threads) since it was made, added to
    earlier ones."""

    def __init__(self, wall: float = 0.0, cpu: float = 0.0) -> None:
        self.wall0, self.cpu0 = time.perf_counter() - wall, time.process_time() - cpu

    def read(self) -> tuple[float, float]:
        """(wall, processor) seconds."""
        return time.perf_counter() - self.wall0, time.process_time() - self.cpu0


def train_epoch(system: System, loader: DataLoader[Any], optimizer: Any, schedule: Any, name: str) -> float:
    """One pass over the training pictures; the mean loss."""
    system.model.train()
    total = 0.0
    bar = tqdm(loader, desc=name, mininterval=5)
    for images, labels in bar:
        optimizer.zero_grad(set_to_none=True)
        loss = system.loss(images.to(system.device), labels.to(system.device))
        loss.backward()
        optimizer.step()
        schedule.step()
        total += loss.item()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    return total / len(loader)


def laps(systems: dict[str, tuple[System, Any]], batch: Any, count: int) -> dict[str, dict[str, float]]:
    """Times `count` training steps (loss, backward, optimizer) of each system, all of them in turn, after two that are
    not counted: median, least and most wall seconds, and the median of processor seconds, all threads."""
    wall: dict[str, list[float]] = {name: [] for name in systems}
    cpu: dict[str, list[float]] = {name: [] for name in systems}
    for _ in range(count + 2):
        for name, (system, optimizer) in systems.items():
            clock = Clock()
            step(system, optimizer, batch)
            for kept, seconds in zip((wall[name], cpu[name]), clock.read(), strict=True):
                kept.append(seconds)
    return {
        name: {
            "seconds": round(statistics.median(wall[name][2:]), 3),
            "least": round(min(wall[name][2:]), 3),
            "most": round(max(wall[name][2:]), 3),
            "processor_seconds": round(statistics.median(cpu[name][2:]), 3),
        }
        for name in systems
    }


def step(system: System, optimizer: Any, batch: Any) -> None:
    """A training step, to its end."""
    system.model.train()
    optimizer.zero_grad(set_to_none=True)
    system.loss(*batch).backward()
    optimizer.step()
    if system.device == "cuda":
        torch.cuda.synchronize()


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """A table as CSV, rewritten whole."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def prepare(make: Callable[[], System], seed: int, steps: int) -> tuple[System, Any, Any]:
    """A seeded system with its optimizer and poly schedule over `steps` steps."""
    torch.manual_seed(seeded(seed))
    system = make()
    optimizer = torch.optim.AdamW(
        [{"params": system.backbone, "lr": 3e-4}, {"params": system.rest, "lr": 1e-3}], weight_decay=1e-2
    )
    return system, optimizer, torch.optim.lr_scheduler.PolynomialLR(optimizer, steps, 0.9)


def train(
    make: Callable[[], System],
    loader: DataLoader[Any],
    root: Path,
    epochs: int,
    seed: int,
    eval_every: int,
    checkpoint: Path,
    curve: Path,
) -> None:
    """A whole run, or the rest of one: `checkpoint` is written after each epoch, before its validation and after, and
    resumed from; `curve` is its CSV.

    Every `eval_every`-th epoch is validated, and the last one always.
    """
    system, optimizer, schedule = prepare(make, seed, epochs * len(loader))
    state = {"model": system.model, "optimizer": optimizer, "schedule": schedule}
    if system.criterion.state_dict():  # a memory
        state["loss"] = system.criterion
    rows: list[dict[str, Any]] = []
    if checkpoint.exists():
        kept = torch.load(checkpoint, weights_only=True, map_location=system.device)
        rows = kept["rows"]
        for key, part in state.items():
            part.load_state_dict(kept[key])

    def keep() -> None:
        write_rows(curve, rows)
        whole = checkpoint.with_suffix(".part")
        torch.save({**{key: part.state_dict() for key, part in state.items()}, "rows": rows}, whole)
        whole.replace(checkpoint)

    def validate_last() -> None:
        if rows[-1]["val_miou"] == "" and (len(rows) % eval_every == 0 or len(rows) == epochs):
            iou, boundary = validate(system, root)
            rows[-1]["val_miou"] = round(sum(iou) / len(iou), 5)
            rows[-1]["val_miou_boundary"] = round(sum(boundary) / len(boundary), 5)
            rows[-1].update({c: round(iou[k], 4) for k, c in enumerate(CamVid.classes)})
            keep()

    if rows:
        validate_last()
    clock = Clock(rows[-1]["train_seconds"], rows[-1]["train_cpu_seconds"]) if rows else Clock()
    for epoch in range(len(rows), epochs):
        torch.manual_seed(seeded(seed, epoch))
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        loss = train_epoch(system, loader, optimizer, schedule, f"{checkpoint.stem} {epoch + 1}/{epochs}")
        wall, cpu = clock.read()
        seconds = {"train_seconds": round(wall, 1), "train_cpu_seconds": round(cpu, 1)}
        rows.append(
            {"epoch": epoch + 1, "train_loss": round(loss, 5), "val_miou": "", "val_miou_boundary": "", **seconds}
        )
        rows[-1].update(dict.fromkeys(CamVid.classes, ""))
        keep()
        validate_last()
        clock = Clock(wall, cpu)
