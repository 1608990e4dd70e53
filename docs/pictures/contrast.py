"""Steps down the gradient of contrast losses, for unit vectors of three classes in the plane."""

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from metricseg_kernels import margin_contrast_loss, pixel_contrast_loss
from pictures import COLORS, bare, panels

CAPTION = (
    "Rows of three classes (colors) on the unit circle, and a step of each loss; arrows are scaled to the longest of "
    "their panel. A low temperature acts on rows near another class, a high one on all. The margin pushes no further "
    "than its distance."
)
LOSSES = {
    "InfoNCE, t = 0.1": lambda rows, labels: pixel_contrast_loss(rows, labels, temperature=0.1),
    "InfoNCE, t = 1": lambda rows, labels: pixel_contrast_loss(rows, labels, temperature=1.0),
    "margin 0.5": lambda rows, labels: margin_contrast_loss(rows, labels, margin=0.5),
}


def draw() -> Figure:
    labels = torch.arange(3).repeat_interleave(5)
    angles = 2.1 * labels + 0.75 * torch.randn(15)
    points = torch.stack((angles.cos(), angles.sin()), 1)
    figure, axes = panels(*LOSSES, height=2.4)
    for ax, loss in zip(axes, LOSSES.values(), strict=True):
        rows = points.clone().requires_grad_()
        loss(F.normalize(rows), labels).backward()
        step = -rows.grad / rows.grad.norm(dim=1).max()
        ax.add_patch(Circle((0, 0), 1, fill=False, color="#cccccc"))
        color = [COLORS[k] for k in labels]
        ax.quiver(*points.T, *step.T, color=color, angles="xy", scale_units="xy", scale=1.4, width=0.016)
        ax.scatter(*points.T, c=color, s=22, edgecolors="white", linewidths=0.6, zorder=3)
        ax.set(xlim=(-1.5, 1.5), ylim=(-1.5, 1.5))
        bare(ax)
    return figure
