"""The vote of the nearest prototypes, for every direction in space."""

import math

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from metricseg_kernels import knn_vote
from pictures import CLASSES, COLORS, panels

CAPTION = (
    "60 prototypes of three classes on the unit sphere (dots), and the label that knn_vote gives every other "
    "direction. More neighbors outvote a lone prototype, and small regions vanish."
)


def draw() -> Figure:
    labels = torch.arange(60) % 3
    means = F.normalize(torch.randn(3, 3))
    bank = F.normalize(means[labels] + 0.7 * torch.randn(60, 3))  # [60, 3]
    angles = torch.linspace(1.57, -1.57, 120), torch.linspace(-3.14, 3.14, 240)
    latitude, longitude = torch.meshgrid(*angles, indexing="ij")
    around = torch.stack((longitude.cos() * latitude.cos(), longitude.sin() * latitude.cos(), latitude.sin()), -1)
    ks = (1, 15)
    figure, axes = panels(*(f"k = {k}" for k in ks), height=2.0)
    for ax, k in zip(axes, ks, strict=True):
        vote = knn_vote(around.flatten(0, 1), bank, labels, k=k).view(latitude.shape)
        ax.imshow(vote, cmap=CLASSES, vmin=0, vmax=4, alpha=0.5, extent=(-180, 180, -90, 90))
        degrees = 180 / math.pi
        where = (torch.atan2(bank[:, 1], bank[:, 0]) * degrees, bank[:, 2].asin() * degrees)
        ax.scatter(*where, c=[COLORS[t] for t in labels], s=12, edgecolors="black", linewidths=0.5)
        ax.set(xticks=[-180, 0, 180], yticks=[-90, 0, 90], xlabel="longitude")
    axes[0].set_ylabel("latitude")
    return figure
