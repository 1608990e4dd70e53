"""The class of each feature in the plane, by its similarity to three centers."""

import torch
from matplotlib.figure import Figure

from metricseg_kernels import center_similarity
from pictures import CLASSES, COLORS, bare, panels

CAPTION = (
    "Features of two channels, colored by the center of the largest center_similarity. By cosine the length of a "
    "center does not count, by dot product a long center wins, by distance the nearest does."
)


def draw() -> Figure:
    metrics = ("cosine", "dot", "euclidean")
    y, x = torch.meshgrid(torch.linspace(2, -2, 240), torch.linspace(-2, 2, 240), indexing="ij")
    features = torch.stack((x, y))[None]  # [1, 2, 240, 240]
    centers = torch.tensor([[1.6, 0.5], [-0.5, 0.5], [0.3, -0.9]])  # [3, 2]
    figure, axes = panels(*(f'"{metric}"' for metric in metrics), height=2.4)
    for ax, metric in zip(axes, metrics, strict=True):
        nearest = center_similarity(features, centers, metric=metric).argmax(1)[0]
        ax.imshow(nearest, cmap=CLASSES, vmin=0, vmax=4, alpha=0.5, extent=(-2, 2, -2, 2))
        ax.scatter(*centers.T, c=COLORS[:3], s=50, edgecolors="black", zorder=3)
        ax.plot(0, 0, "+", color="black")
        bare(ax)
    return figure
