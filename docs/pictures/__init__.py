"""Pictures of the family pages, drawn by the package itself when the site is built.

A module per family has `draw() -> Figure` and CAPTION. It takes seconds on a CPU. The same code gives the same bytes.
"""

from __future__ import annotations

import importlib
import io

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

COLORS = ("#3b6fb6", "#d98032", "#4f9d69", "#a05195", "#8a8a8a")
CLASSES = ListedColormap(COLORS)
STYLE = {"font.size": 12, "axes.titlesize": 12, "svg.hashsalt": "metricseg", "svg.fonttype": "path"}


def panels(*titles: str, rows: int = 1, height: float = 2.8) -> tuple[Figure, list[Axes]]:
    """A figure 6.4 inches wide, readable on a phone: one panel for each title."""
    figure = Figure(figsize=(6.4, height), layout="constrained")
    axes = list(np.ravel(figure.subplots(rows, len(titles) // rows)))
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title)
    return figure, axes


def bare(ax: Axes) -> None:
    """A panel without ticks, with as much room in x as in y."""
    ax.set(xticks=[], yticks=[], aspect="equal")


def svg(family: str) -> tuple[bytes, str]:
    """The picture of a family's page, and its caption."""
    torch.manual_seed(0)
    with matplotlib.rc_context(STYLE):
        module = importlib.import_module(f"{__name__}.{family}")
        out = io.BytesIO()
        module.draw().savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue(), module.CAPTION
