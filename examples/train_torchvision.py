"""Train torchvision's LR-ASPP on generated scenes, on a CPU in under a minute: python examples/train_torchvision.py

The lines that metricseg adds to a usual script are marked.
"""

import torch
from torch.utils.data import DataLoader
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

from metricseg.data import Scenes
from metricseg.integrations.torchvision import low_resolution, torchvision_loss  # metricseg
from metricseg.losses import FocalLoss  # metricseg


def main(steps: int = 40) -> tuple[list[float], float]:
    """(loss of each step, share of correct pixels on new scenes)."""
    torch.manual_seed(0)
    model = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=len(Scenes.classes))
    criterion = torchvision_loss(FocalLoss(gamma=1.0), aux_weight=0.5)  # metricseg
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
        prediction = model(images / 255)["out"].argmax(1)  # [B, H, W]: full size in eval mode
    valid = labels != 255
    return losses, (prediction == labels)[valid].float().mean().item()


if __name__ == "__main__":
    losses, accuracy = main()
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}, correct pixels of new scenes {accuracy:.3f}")
