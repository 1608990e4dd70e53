"""Training a decoder on cached features, and what it scores."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from metricseg.data import CamVid
from metricseg.data.stream import seeded
from metricseg.losses import build_loss
from metricseg.models import SegSort, build_model
from metricseg.training.evaluation import BoundaryIoU, IoU
from metricseg.training.retrieval import joined

from .features import BACKBONE, Cached, Features
from .rows import StudyRow

BATCH, RATE, DECAY, POWER = 8, 1e-3, 1e-2, 0.9
EVERY = 2  # training pictures of SegSort's bank


def train(row: StudyRow, seed: int, steps: int, views: Features, name: str) -> nn.Module:
    """The trained network of a row. Start, batches, their order and dropout are a function of the seed.

    AdamW at 1e-3 with poly 0.9, weight decay 1e-2, batches of eight, bf16 autocast, channels-last.
    """
    torch.manual_seed(seeded(seed))
    model = build_model({**row.model, "backbone": BACKBONE, "num_classes": len(CamVid.classes)})
    model.backbone = Cached()
    model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    criterion = build_loss({"name": "terms", **row.terms})
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, steps, POWER)
    order: list[int] = []
    epoch, bar = 0, tqdm(range(steps), desc=name, mininterval=5, leave=False)
    for step in bar:
        if len(order) < BATCH:
            generator = torch.Generator().manual_seed(seeded(seed, epoch, -1))
            order, epoch = torch.randperm(len(views), generator=generator).tolist(), epoch + 1
        stages, labels = views.batch(order[:BATCH])
        order = order[BATCH:]
        torch.manual_seed(seeded(seed, step))
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model.outputs(stages, criterion.needs, labels)
        loss = torch.stack(list(criterion(outputs, labels).values())).sum()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    return model.eval()


@torch.inference_mode()
def score(model: Any, val: Features, train_pictures: Features) -> dict[str, list[float]]:
    """IoU of each class in [0, 1] on the validation pictures: of all pixels, and of those within three of a border."""
    classes = len(CamVid.classes)
    metrics = {"iou": IoU(classes), "boundary": BoundaryIoU(classes)}
    with torch.autocast("cpu", torch.bfloat16):
        if isinstance(model, SegSort):
            chosen = range(0, len(train_pictures), EVERY)
            rows = [model.bank_rows(*train_pictures.batch([i]), i) for i in chosen]  # type: ignore[arg-type]
            model.bank.fill(joined(rows, model.bank.dim))
        for stages, labels in val.batches(BATCH):
            predicted: Tensor = model.predict(stages, labels.shape[-2:]).argmax(1)
            for metric in metrics.values():
                metric.update(predicted, labels)
    return {name: metric.compute().tolist() for name, metric in metrics.items()}
