"""Smooth outlines of masks, as curves that a browser and matplotlib draw alike.

The border between two cells of a grid crosses the middle of their common edge. The closed polygons through these
points, by marching squares, are the control points of a quadratic B-spline, whose pieces join at the middle of two
control points. All joints lie on a grid of quarters of a cell, so a path is a string of small integers. Cells that meet
at a corner alone are connected.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from contourpy import contour_generator
from matplotlib.path import Path as Curve

UNITS = 4  # of a path in the length of a cell


class Outline(NamedTuple):
    """Outline of a mask.

    loops: closed polygons of control points (x, y) in cells, each [n, 2]; inner borders are loops too.
    box: (left, top, right, bottom) in cells.
    anchor: (x, y) in cells, the center of one of its innermost cells, the place for a name.
    """

    loops: tuple[np.ndarray, ...]
    box: tuple[int, int, int, int]
    anchor: tuple[float, float]

    def path(self) -> str:
        """SVG path, in quarters of a cell."""
        return "".join(loop_path(loop) for loop in self.loops)

    def curve(self) -> Curve:
        """The same path for matplotlib, in cells."""
        vertices, codes = [], []
        for loop in self.loops:
            joints = (loop + np.roll(loop, -1, 0)) / 2
            pieces = np.stack([np.roll(loop, -1, 0), np.roll(joints, -1, 0)], 1).reshape(-1, 2)
            vertices.append(np.concatenate([joints[:1], pieces]))
            codes += [Curve.MOVETO, *[Curve.CURVE3] * len(pieces)]
        return Curve(np.concatenate(vertices), codes)


def loop_path(loop: np.ndarray) -> str:
    """`t` takes the mirror image of the last control point at the last joint: here the next control point."""
    joints = np.rint((loop + np.roll(loop, -1, 0)) / 2 * UNITS).astype(int)
    control = np.rint(loop[1 % len(loop)] * UNITS).astype(int)
    steps = np.diff(np.concatenate([joints, joints[:1]]), axis=0)
    (x, y), (cx, cy), (dx, dy) = joints[0], control - joints[0], steps[0]
    path = f"M{x} {y}q{cx} {cy} {dx} {dy}t" + " ".join(f"{dx} {dy}" for dx, dy in steps[1:]) + "Z"
    return path.replace(" -", "-")  # a sign separates as well


def outline(mask: np.ndarray) -> Outline:
    """Outline of mask [h, w] bool.

    Raises ValueError if no cell is in the mask.
    """
    rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    if not len(rows):
        raise ValueError("mask has no cell; an outline takes at least one")
    top, left, bottom, right = int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
    part = np.pad(mask[top:bottom, left:right], 1)
    corner = np.array([left, top]) - 0.5  # of the padded part, whose centers contourpy counts from 0
    lines = contour_generator(z=part.astype(float)).lines(0.5 - 1e-3)  # below the mean of two cells at a corner
    loops = tuple(np.rint(2 * np.asarray(line)[:-1]) / 2 + corner for line in lines)
    x, y = innermost(part)
    return Outline(loops, (left, top, right, bottom), (x + left - 0.5, y + top - 0.5))


def innermost(mask: np.ndarray) -> tuple[int, int]:
    """(x, y) of the cell that most erosions of mask [h, w] leave, that nearest to the mean of them; the mask has a
    border of cells that are not in it."""
    while True:
        eroded = mask.copy()
        for axis in (0, 1):
            eroded &= np.roll(mask, 1, axis) & np.roll(mask, -1, axis)
        if not eroded.any():
            y, x = mask.nonzero()
            best = int(((x - x.mean()) ** 2 + (y - y.mean()) ** 2).argmin())
            return int(x[best]), int(y[best])
        mask = eroded
