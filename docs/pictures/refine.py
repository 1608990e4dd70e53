"""A coarse mask upsampled bilinearly, and at offsets that were fitted to the fine mask."""

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from metricseg_kernels import refine_upsample
from pictures import bare, panels

CAPTION = (
    "A mask of 8 x 8 cells, upsampled to 48 x 48. Offsets were fitted to the fine mask by 80 steps of Adam through "
    "refine_upsample: at the border pixels read from inside or outside (arrows, every third pixel)."
)


def draw() -> Figure:
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="ij")
    inside = ((x - 20) ** 2 + (y - 22) ** 2 < 190) | ((x - 33).abs() + (y - 32).abs() < 10)
    fine = inside.float()[None, None]  # [1, 1, 48, 48]
    coarse = F.avg_pool2d(fine, 6)  # [1, 1, 8, 8]
    offsets = torch.zeros(1, 2, 48, 48, requires_grad=True)
    optimizer = torch.optim.Adam([offsets], lr=0.2)
    for _ in range(80):
        optimizer.zero_grad()
        F.mse_loss(refine_upsample(coarse, offsets), fine).backward()
        optimizer.step()
    start, fitted = (refine_upsample(coarse, shift).detach() for shift in (torch.zeros_like(offsets), offsets))
    errors = [float((found - fine).abs().mean()) for found in (start, fitted)]
    titles = ("coarse", "fine", f"bilinear, error {errors[0]:.3f}", f"refined, error {errors[1]:.3f}")
    figure, axes = panels(*titles, rows=2, height=5.6)
    for ax, image in zip(axes, (coarse, fine, start, fitted), strict=True):
        ax.imshow(image[0, 0], cmap="gray", vmin=0, vmax=1)
        bare(ax)
    shift = offsets.detach()[0, :, 1::3, 1::3]
    moved = shift.norm(dim=0) > 0.5
    arrows = (values[moved] for values in (x[1::3, 1::3], y[1::3, 1::3], shift[1], shift[0]))
    axes[-1].quiver(*arrows, color="#d98032", angles="xy", scale_units="xy", scale=1, width=0.006)
    return figure
