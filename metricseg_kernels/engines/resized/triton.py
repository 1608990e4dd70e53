"""Axes and class blocks of Triton kernels that resize logits: host code that launchers share."""

from __future__ import annotations

import triton

from .triton_kernels import Axis


def make_axis(cells: int, labels: int, align_corners: bool) -> Axis:
    if not align_corners:
        return Axis(cells, labels, 2 * cells, cells - labels, 2 * labels)
    if cells == 1 or labels <= 1:
        return Axis(cells, labels, 1, 0, labels + 1)
    return Axis(cells, labels, cells - 1, 0, labels - 1)


def class_sizes(classes: int) -> tuple[int, ...]:
    """At most three powers of two that sum to at least `classes`, falling: 19 -> 16, 2, 1."""
    sizes = [1 << (classes.bit_length() - 1)]
    while sum(sizes) < classes:
        rest = classes - sum(sizes)
        sizes.append(triton.next_power_of_2(rest) if len(sizes) == 2 else 1 << (rest.bit_length() - 1))
    return tuple(sizes) if sum(sizes) < triton.next_power_of_2(classes) else (triton.next_power_of_2(classes),)
