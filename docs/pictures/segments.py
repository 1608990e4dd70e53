"""Clusters of an embedding over the iterations of spherical k-means, and the segments that labels make of them."""

import torch
from matplotlib.figure import Figure

from metricseg_kernels import spherical_kmeans, split_by_label
from pictures import bare, panels

CAPTION = (
    "Borders of the clusters over the angle of a noisy embedding of two channels: the grid that k-means starts from, "
    "after one iteration, after ten, and split by label where the dashed line crosses."
)


def embedding(h: int = 60, w: int = 90) -> torch.Tensor:
    """Angles [h, w] of unit vectors: a slope, a disk and a bar, with noise."""
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    angle = 0.012 * x + 0.2
    angle = torch.where((x - 27) ** 2 + (y - 32) ** 2 < 230, 2.1, angle)
    angle = torch.where((x + 0.4 * y - 74).abs() < 8, 3.2, angle)
    return angle + 0.03 * torch.randn(h, w)


def draw() -> Figure:
    angle = embedding()
    vectors = torch.stack((angle.cos(), angle.sin()))[None]  # [1, 2, h, w]
    labels = (torch.arange(60) > 33).long()[None, :, None].expand(1, 60, 90).contiguous()
    clusters = {n: spherical_kmeans(vectors, grid=(4, 4), iterations=n) for n in (0, 1, 10)}
    segments = split_by_label(clusters[10], labels, capacity=64)
    titles = ("grid", "1 iteration", "10 iterations", f"{int(segments.count)} segments")
    figure, axes = panels(*titles, rows=2, height=4.4)
    for ax, ids in zip(axes, (*clusters.values(), segments.ids), strict=True):
        ax.imshow(angle, cmap="viridis", vmin=0, vmax=3.6)
        for k in ids.unique():
            ax.contour(ids[0] == k, levels=[0.5], colors="white", linewidths=0.8)
        bare(ax)
    axes[-1].axhline(33.5, color="black", linestyle="--", linewidth=1)
    return figure
