"""Train by Lightning on generated scenes, on a CPU in under a minute: python examples/train_lightning.py

The lines that metricseg adds to a usual script are marked. `Trainer(devices=2)` or `strategy="fsdp"` need no other.
"""

from itertools import pairwise

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader

from metricseg.data import Scenes
from metricseg.losses import FocalLoss  # metricseg


class Task(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        layers, channels = [], (3, 32, 64, 64)
        for before, after in pairwise(channels):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        self.network = nn.Sequential(*layers, nn.Conv2d(64, len(Scenes.classes), 1))  # [B, K, H/8, W/8]
        self.criterion = FocalLoss(gamma=1.0)  # metricseg
        self.losses: list[float] = []

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        images, labels = batch
        loss = self.criterion(self.network(images / 255), labels)  # metricseg
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def main(steps: int = 40) -> tuple[list[float], float]:
    """(loss of each step, share of correct pixels on new scenes)."""
    lightning.seed_everything(0, verbose=False)
    task = Task()
    trainer = lightning.Trainer(max_steps=steps, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    trainer.fit(task, DataLoader(Scenes("train", steps * 8, size=96), batch_size=8))

    task.eval()
    images, labels = next(iter(DataLoader(Scenes("val", 32, size=96), batch_size=32)))
    with torch.no_grad():
        logits = task.network(images / 255)
    prediction = nn.functional.interpolate(logits, labels.shape[-2:], mode="bilinear").argmax(1)
    valid = labels != 255
    return task.losses, (prediction == labels)[valid].float().mean().item()


if __name__ == "__main__":
    losses, accuracy = main()
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}, correct pixels of new scenes {accuracy:.3f}")
