"""The pictures that the demonstration writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from torch import Tensor

from metricseg.data import Scenes
from metricseg.visualization.pictures import colors

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import Patch

if TYPE_CHECKING:
    from metricseg.demo.__main__ import Result

STYLE = {"eager": {"color": "#d55e00", "lw": 2.6, "alpha": 0.75}, "ours": {"color": "#0072b2", "lw": 1.4}}


def panel(path: Path, images: Tensor, labels: Tensor, predictions: Sequence[Tensor]) -> None:
    """Rows: picture, truth, prediction of each run. Images float [N, 3, H, W] in [-1, 1], the others [N, H, W]."""
    table = colors(Scenes.palette)
    rows = [
        ((images.permute(0, 2, 3, 1).numpy() + 1) / 2).clip(0, 1),
        table[labels.numpy()],
        *(table[p.numpy()] for p in predictions),
    ]
    names = ["picture", "truth", "eager", "ours"]
    figure, axes = plt.subplots(len(rows), len(images), figsize=(1.7 * len(images), 1.72 * len(rows) + 0.5))
    for name, row, line in zip(names, rows, axes, strict=True):
        for axis, content in zip(line, row, strict=True):
            axis.imshow(content, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            for spine in axis.spines.values():
                spine.set_visible(False)
        line[0].set_ylabel(name, fontsize=12)
    keys = [Patch(color=np.array(c) / 255, label=n) for n, c in zip(Scenes.classes, Scenes.palette, strict=True)]
    keys.append(Patch(facecolor="white", edgecolor="grey", label="ignored"))
    figure.legend(handles=keys, ncols=len(keys), loc="lower center", frameon=False, fontsize=8.5, handlelength=1.0)
    figure.subplots_adjust(left=0.035, right=0.998, top=0.995, bottom=0.06, wspace=0.03, hspace=0.03)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def smooth(values: Sequence[float], width: int = 10) -> np.ndarray:
    """Running mean over the last `width` values."""
    total = np.cumsum(np.concatenate([[0.0], np.asarray(values)]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    return (total[ends] - total[starts]) / (ends - starts)


def curve(path: Path, results: Sequence[Result]) -> None:
    """Training loss and validation mIoU over steps, and the loss step's time and memory."""
    figure, axes = plt.subplots(1, 4, figsize=(13, 3.4), gridspec_kw={"width_ratios": [2.2, 2.2, 1, 1]})
    for result in results:
        look = STYLE[result.name]
        axes[0].plot(np.arange(1, len(result.losses) + 1), smooth(result.losses), label=result.name, **look)
        axes[1].plot(*zip(*result.miou, strict=True), marker="o", label=result.name, **look)
    axes[0].set(title="focal loss, training", xlabel="step")
    axes[1].set(title="mIoU, validation", xlabel="step", ylim=(0, 1))
    axes[0].legend(frameon=False)
    bars = (
        ("loss step, ms", [r.city_ms for r in results]),
        ("loss step, peak MB", [r.city_mb or 0.0 for r in results]),
    )
    for axis, (title, values) in zip(axes[2:], bars, strict=True):
        drawn = axis.bar([r.name for r in results], values, color=[STYLE[r.name]["color"] for r in results], width=0.6)
        axis.bar_label(drawn, fmt="%.0f", padding=2)
        axis.set(title=title, xlabel="19 x 512 x 1024")
        axis.margins(y=0.15)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.3)
        axis.set_axisbelow(True)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
