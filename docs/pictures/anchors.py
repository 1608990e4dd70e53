"""Pixels that each strategy of `sample_anchors` chooses, on a map of four classes with a few wrong predictions."""

import torch
from matplotlib.figure import Figure

from metricseg_kernels import sample_anchors
from pictures import CLASSES, bare, panels

CAPTION = (
    "48 pixels chosen by each strategy, 12 of each class. White: pixels where the prediction is wrong. The confidence "
    "is low in the right third. The same seed gives the same choice on every backend."
)


def scene(h: int = 36, w: int = 64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(labels, predictions, confidence) [1, h, w]: a ground with three shapes."""
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    labels = torch.zeros(h, w, dtype=torch.uint8)
    labels[(x - 14) ** 2 + (y - 15) ** 2 < 90] = 1
    labels[(x > 28) & (x < 46) & (y > 6) & (y < 20)] = 2
    labels[(y > 24) & (x > 20)] = 3
    predictions = labels.clone()
    wrong = ((x - 20) ** 2 + (y - 17) ** 2 < 16) | ((x > 40) & (x < 50) & (y > 15) & (y < 27))
    predictions[wrong] = (labels[wrong] + 1) % 4
    confidence = torch.where(x > 42, 0.3, 0.95)
    return labels[None], predictions[None], confidence[None]


def draw() -> Figure:
    labels, predictions, confidence = scene()
    strategies = ("random", "hard", "semi_hard", "boundary")
    figure, axes = panels(*(f'"{name}"' for name in strategies), rows=2, height=4.2)
    for ax, strategy in zip(axes, strategies, strict=True):
        needs = {"predictions": predictions if strategy == "hard" else None}
        needs |= {"confidence": confidence} if strategy == "semi_hard" else {}
        anchors = sample_anchors(labels, max_samples=48, max_views=12, strategy=strategy, seed=1, **needs)
        index = anchors.index[: anchors.count]
        ax.imshow(labels[0], cmap=CLASSES, vmin=0, vmax=4, alpha=0.55)
        ax.imshow(torch.where(predictions[0] == labels[0], torch.nan, 1.0), cmap="gray", vmin=0, vmax=1, alpha=0.6)
        ax.scatter(index % 64, index // 64, s=12, c="black", linewidths=0)
        bare(ax)
    return figure
