"""Train segmentation_models_pytorch's FPN on generated scenes, on a CPU in under a minute: python examples/train_smp.py

The lines that metricseg adds to a usual script are marked.
"""

import segmentation_models_pytorch as smp
import torch
from torch.utils.data import DataLoader

from metricseg.data import Scenes
from metricseg.integrations.smp import low_resolution  # metricseg
from metricseg.losses import FocalLoss  # metricseg


def main(steps: int = 40) -> tuple[list[float], float]:
    """(loss of each step, mean IoU on new scenes)."""
    torch.manual_seed(0)
    classes = len(Scenes.classes)
    model = smp.FPN("mobilenet_v2", encoder_weights=None, classes=classes)
    criterion = FocalLoss(gamma=1.0)  # metricseg
    model = low_resolution(model, criterion)  # metricseg
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for images, labels in DataLoader(Scenes("train", steps * 8, size=96), batch_size=8):
        loss = criterion(model(images / 255), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    model.eval()
    images, labels = next(iter(DataLoader(Scenes("val", 32, size=96), batch_size=32)))
    with torch.no_grad():
        prediction = model(images / 255).argmax(1)  # [B, H, W]: full size in eval mode
    stats = smp.metrics.get_stats(prediction, labels.long(), "multiclass", num_classes=classes, ignore_index=255)
    return losses, float(smp.metrics.iou_score(*stats, reduction="micro"))


if __name__ == "__main__":
    losses, iou = main()
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}, IoU on new scenes {iou:.3f}")
