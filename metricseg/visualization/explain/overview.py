"""One picture of an explanation: the segments, and a few of them with their nearest neighbors."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.patches import Patch, PathPatch

from metricseg.visualization.explain.outlines import Outline
from metricseg.visualization.explain.pages import facts_of, percent
from metricseg.visualization.explain.segments import Explanation, Segment, Source, short_name
from metricseg.visualization.pictures import Palette
from metricseg.visualization.validation import plt

LINES = 6  # segments with their neighbors: half of them the largest, the others the least certain
NEIGHBORS = 6
SHAPE = (3, 4)  # height and width of a crop
LINE, CELL = 1.48, 1.32  # height of a line and width of a crop with their margins, in inches
RIGHT, WRONG, TEXT, MUTED = "#12713c", "#a8261c", "#1b1d21", "#656a73"


def chosen(segments: Sequence[Segment]) -> list[int]:
    """Places of the segments to draw: the largest, then the least certain of the others."""
    places = list(range(len(segments)))
    large = places[: LINES // 2]
    rest = sorted(places[len(large) :], key=lambda k: segments[k].certainty)
    return large + rest[: LINES - len(large)]


def window(outline: Outline, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """(left, right, bottom, top) of a crop around an outline, within the picture where it fits; explain.js has the
    same."""
    left, top, right, bottom = outline.box
    height, width = size
    ratio = SHAPE[1] / SHAPE[0]
    tall = max(1.35 * (bottom - top), 1.35 * (right - left) / ratio, height / 5)
    tall = min(tall, max(height, width / ratio))
    wide = tall * ratio

    def start(low: int, high: int, length: float, limit: int) -> float:
        if length >= limit:
            return (limit - length) / 2
        return min(max((low + high - length) / 2, 0), limit - length)

    x, y = start(left, right, wide, width), start(top, bottom, tall, height)
    return x, x + wide, y + tall, y


def show(axis: Any, picture: np.ndarray, size: tuple[int, int], part: tuple[float, float, float, float]) -> None:
    """Draw the part (left, right, bottom, top) of a picture whose grid is (h, w)."""
    x0, x1, y1, y0 = part
    (height, width), (tall, wide) = size, picture.shape[:2]
    rows = max(int(y0 / height * tall), 0), min(int(np.ceil(y1 / height * tall)), tall)
    columns = max(int(x0 / width * wide), 0), min(int(np.ceil(x1 / width * wide)), wide)
    extent = tuple(k / wide * width for k in columns) + tuple(k / tall * height for k in reversed(rows))
    axis.imshow(picture[slice(*rows), slice(*columns)], extent=extent, aspect="auto", interpolation="antialiased")
    axis.set(xlim=(x0, x1), ylim=(y1, y0), xticks=[], yticks=[], facecolor="black")


def draw_crop(axis: Any, picture: np.ndarray, outline: Outline | None, size: tuple[int, int], color: Any) -> None:
    """Draw a part of a picture with an outline, and a line in the color of its class below."""
    show(axis, picture, size, window(outline, size) if outline else (0, size[1], size[0], 0))
    for width, line in ((2.6, "black"), (1.2, "white")) if outline else ():
        axis.add_patch(PathPatch(outline.curve(), fill=False, edgecolor=line, linewidth=width))
    axis.spines[["top", "left", "right"]].set_visible(False)
    axis.spines["bottom"].set(color=color, linewidth=4)


def draw_picture(axis: Any, explained: Explanation, classes: Sequence[str], table: Any, marked: set[int]) -> None:
    """Draw the whole picture with its segments; those of `marked` have their number and class."""
    show(axis, explained.picture, explained.size, (0, explained.size[1], explained.size[0], 0))
    axis.set_aspect("equal")
    for number, segment in enumerate(explained.segments):
        color = (*table[segment.label], 0.45)
        axis.add_patch(PathPatch(segment.outline.curve(), facecolor=color, edgecolor="white", linewidth=0.7))
        x, y = segment.outline.anchor
        words, font = (f"{number + 1} {classes[segment.label]}", 8) if number in marked else (f"{number + 1}", 6)
        box = {"boxstyle": "round,pad=0.22", "facecolor": (0, 0, 0, 0.62), "edgecolor": "none"}
        axis.text(x, y, words, color="white", fontsize=font, ha="center", va="center", bbox=box)
    axis.spines[:].set_visible(False)
    kinds = sorted({segment.label for segment in explained.segments})
    patches = [Patch(facecolor=table[k], edgecolor=MUTED, linewidth=0.5, label=classes[k]) for k in kinds]
    axis.legend(
        handles=patches, loc="upper left", bbox_to_anchor=(-0.01, -0.015), ncols=6, frameon=False, fontsize=8.5,
        handlelength=1.1, handleheight=1.1, columnspacing=1.4, labelcolor=TEXT,
    )  # fmt: skip


def verdict(segment: Segment, classes: Sequence[str]) -> tuple[str, str]:
    """(words, color): whether the label is right."""
    if segment.truth is None:
        return "no labels here", MUTED
    if segment.truth == segment.label:
        return f"right for {percent(segment.right or 0)}", RIGHT
    return f"wrong: {classes[segment.truth]}", WRONG


def shortened(name: str, longest: int = 22) -> str:
    """A name, without its start if it is too long."""
    return name if len(name) <= longest else f"\u2026{name[1 - longest :]}"


def overview(
    explained: Explanation,
    sources: Mapping[int, Source],
    names: Sequence[str],
    read: Callable[[int], np.ndarray],
    classes: Sequence[str],
    palette: Palette,
) -> bytes:
    """A PNG; `read` gives a source picture uint8 [H, W, 3] by its number, `names` its name."""
    lines, table = chosen(explained.segments), np.array(palette) / 255
    rows = max(len(lines), 1)
    height, width = explained.size
    tall, wide = LINE * rows + 0.75, CELL * (NEIGHBORS + 1)
    left = min(max((tall - 1.6) * width / height, 6.0), 11.0)
    figure = plt.figure(figsize=(left + wide + 0.4, tall), facecolor="white")
    parts = figure.add_gridspec(
        1, 2, width_ratios=[left, wide], wspace=0.03, left=0.01, right=0.992, bottom=0.45 / tall, top=1 - 0.72 / tall
    )
    below = 0.985 - 0.3 / tall
    figure.text(0.01, 0.985, short_name(explained.name), fontsize=14, weight="bold", color=TEXT, va="top")
    figure.text(0.01, below, ", ".join(facts_of(explained)), fontsize=10, color=MUTED, va="top")
    axis = figure.add_subplot(parts[0])
    axis.set_anchor("N")
    draw_picture(axis, explained, classes, table, set(lines))
    grid = parts[1].subgridspec(rows, NEIGHBORS + 1, hspace=0.62, wspace=0.07)
    for line, place in enumerate(lines):
        segment = explained.segments[place]
        axis = figure.add_subplot(grid[line, 0])
        draw_crop(axis, explained.picture, segment.outline, explained.size, table[segment.label])
        axis.set_title(f"{place + 1} {classes[segment.label]}", fontsize=8.5, weight="bold", color=TEXT, pad=3)
        words, color = verdict(segment, classes)
        votes = f"{segment.votes[segment.label]} of {sum(segment.votes)} votes"
        axis.set_xlabel(f"{votes}\n{words}", fontsize=7, color=color, labelpad=4)
        for column, (row, similarity) in enumerate(segment.neighbors[:NEIGHBORS]):
            source = sources[row]
            axis = figure.add_subplot(grid[line, column + 1])
            draw_crop(axis, read(source.picture), source.outline, source.size, table[source.label])
            other = source.label != segment.label
            axis.set_title(classes[source.label], fontsize=8.5, color=WRONG if other else TEXT, pad=3)
            lost = "" if source.outline else "\nnot found again"
            words = f"{similarity:.3f}  {shortened(short_name(names[source.picture]))}{lost}"
            axis.set_xlabel(words, fontsize=6.5, color=MUTED)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    plt.close(figure)
    return file.getvalue()
