"""The centers family on the CPU: products by the matrix library that torch brings, a panel of pixels at a time (see
pairwise/pixels.py), and in C++ what must see a panel while it is in cache, or goes by label.

Bytes moved: forward reads the features once and writes the logits; backward reads features and gradient of the logits
once and writes the gradient of the features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.gradient import want_huge_pages
from ..core.library import define_kernel
from ..core.unit import EPS
from ..pairwise.pixels import Panel, panels

define_kernel("pixel_norms_kernel(Tensor panel, Tensor(a!) norms) -> ()")
define_kernel("pixel_direction_kernel(Tensor panel, Tensor norms, float eps, Tensor(a!) grad) -> ()")
define_kernel(
    "label_sums_kernel(Tensor features, Tensor labels, int ignore_index, Tensor(a!) sums, Tensor(b!) mass) -> ()"
)
define_kernel("label_spread_kernel(Tensor rows, Tensor labels, int ignore_index, Tensor(a!) maps) -> ()")
kernels = torch.ops.metricseg


class _Labels:
    """Picks each pixel's own row out of a panel [K, P], or adds to it."""

    def __init__(self, labels: Tensor, classes: int, ignore_index: int) -> None:
        labels = labels.flatten(1)
        self.known = (labels != ignore_index) & (labels >= 0) & (labels < classes)
        self.at = torch.where(self.known, labels, 0).long()

    def pick(self, panel: Panel, values: Tensor) -> Tensor:
        own = values.gather(0, panel.view(self.at)[None])[0]
        return torch.where(panel.view(self.known), own, 0.0)

    def add(self, panel: Panel, values: Tensor, own: Tensor) -> None:
        own = torch.where(panel.view(self.known), own, 0.0)
        values.scatter_add_(0, panel.view(self.at)[None], own[None])


def _inverse(norms: Tensor) -> Tensor:
    """1 / max(|x|, eps), and 0 for 0."""
    return norms.clamp(min=EPS).reciprocal_().masked_fill_(norms == 0, 0.0)


def similarity_kernel(
    features: Tensor,
    weights: Tensor,
    bias: Tensor | None,
    labels: Tensor | None,
    metric: str,
    scale: float,
    ignore_index: int,
    logits: Tensor,
    own: Tensor | None,
    norms: Tensor | None,
) -> None:
    """See op.py."""
    x_maps, z_maps = features.flatten(2), logits.flatten(2)
    classes = weights.shape[1]
    picked = None if labels is None else _Labels(labels, classes, ignore_index)
    for panel in panels(x_maps, classes):
        image = 0 if weights.shape[0] == 1 else panel.image
        x, z = panel.of(x_maps), panel.place(z_maps)
        torch.mm(weights[image], x, out=z)
        if norms is not None:
            lengths = panel.view(norms.flatten(1))
            kernels.pixel_norms_kernel(x, lengths)
            z *= _inverse(lengths)
        if bias is not None:
            squares = x.new_empty(x.shape[1])
            kernels.pixel_norms_kernel(x, squares)
            z += bias[image][:, None]
            z -= scale * squares.square_()
        if picked is not None and own is not None:
            panel.view(own.flatten(1)).copy_(picked.pick(panel, z))
        panel.fill(z_maps, z)


def similarity_grad_kernel(
    grad_logits: Tensor,
    grad_own: Tensor | None,
    features: Tensor,
    weights: Tensor,
    labels: Tensor | None,
    norms: Tensor | None,
    logits: Tensor | None,
    own: Tensor | None,
    metric: str,
    scale: float,
    ignore_index: int,
    grad_features: Tensor | None,
    grad_weights: Tensor | None,
) -> None:
    """See op.py."""
    x_maps, g_maps, classes = features.flatten(2), grad_logits.flatten(2), weights.shape[1]
    picked = None if labels is None or grad_own is None else _Labels(labels, classes, ignore_index)
    if grad_weights is not None:
        grad_weights.zero_()
    grad_maps = None if grad_features is None else want_huge_pages(grad_features).flatten(2)
    for panel in panels(x_maps, classes):
        image = 0 if weights.shape[0] == 1 else panel.image
        x, g = panel.of(x_maps), panel.view(g_maps)
        lengths = None if norms is None else panel.view(norms.flatten(1))
        inverse = None if lengths is None else _inverse(lengths)
        g = g.to(x.dtype) if inverse is None else g * inverse
        if grad_weights is not None:
            grad_weights[image].addmm_(g, x.t())
        if grad_maps is None:
            continue
        if picked is not None and grad_own is not None and inverse is not None:
            picked.add(panel, g, panel.view(grad_own.flatten(1)) * inverse)
        dx = panel.place(grad_maps)
        torch.mm(weights[image].t(), g, out=dx)
        if lengths is not None:
            kernels.pixel_direction_kernel(x, lengths, EPS, dx)
        if metric == "euclidean":
            dx.addcmul_(x, g.sum(0), value=-2 * scale)
        panel.fill(grad_maps, dx)


def class_sums_kernel(features: Tensor, assignment: Tensor, ignore_index: int, sums: Tensor, mass: Tensor) -> None:
    """See op.py."""
    if not assignment.is_floating_point():
        kernels.label_sums_kernel(features, assignment, ignore_index, sums, mass)
        return
    x_maps, a_maps = features.flatten(2), assignment.flatten(2)
    sums.zero_()
    mass.zero_()
    for panel in panels(x_maps, a_maps.shape[1]):
        soft = torch.softmax(panel.of(a_maps), 0)
        sums[panel.image].addmm_(soft, panel.of(x_maps).t())
        mass[panel.image] += soft.sum(1)


def class_sums_grad_kernel(
    grad_sums: Tensor,
    grad_mass: Tensor,
    features: Tensor,
    assignment: Tensor,
    ignore_index: int,
    grad_features: Tensor | None,
    grad_assignment: Tensor | None,
) -> None:
    """See op.py."""
    if not assignment.is_floating_point():
        if grad_features is not None:
            rows = torch.nn.functional.pad(grad_sums, (0, 0, 0, 1))  # and zeros for pixels without a class
            if grad_features.is_contiguous():
                rows = rows.mT.contiguous().mT
            kernels.label_spread_kernel(rows, assignment, ignore_index, grad_features)
        return
    x_maps, a_maps = features.flatten(2), assignment.flatten(2)
    grad_x, grad_a = (None if g is None else want_huge_pages(g).flatten(2) for g in (grad_features, grad_assignment))
    for panel in panels(x_maps, a_maps.shape[1]):
        soft, rows = torch.softmax(panel.of(a_maps), 0), grad_sums[panel.image]
        if grad_x is not None:
            dx = panel.place(grad_x)
            torch.mm(rows.t(), soft, out=dx)
            panel.fill(grad_x, dx)
        if grad_a is not None:
            moves = panel.place(grad_a)
            torch.mm(rows, panel.of(x_maps), out=moves)
            moves += grad_mass[panel.image][:, None]
            moves -= (soft * moves).sum(0)
            moves *= soft
            panel.fill(grad_a, moves)
