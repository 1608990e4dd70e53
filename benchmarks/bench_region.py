"""The region family against what people write instead, at label resolution: softmax, a one-hot map, and sums.

"ce_dice" is Dice with cross-entropy, "dice" Dice alone. Every row computes the same loss and gradient, checked against
the reference in fp64 before any time is taken. Labels as in bench_focal.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import metricseg_kernels as mk
from benchmarks.harness import entry, machine, peers, race, shapes
from benchmarks.harness.race import Contestant
from benchmarks.harness.shapes import Shape
from benchmarks.harness.small_cases import check_finite, labeled_maps
from metricseg_kernels.core import backends
from metricseg_kernels.region import formulas, reference
from metricseg_kernels.region.op import Inputs, Sums

IGNORE = 255


class RegionProblem:
    """One loss on one shape."""

    favor = {"dice": 4.0, "ce_dice": 4.0}  # noqa: RUF012 (read only; added to the label's logit)

    def __init__(self, shape: Shape, loss: str, device: str) -> None:
        self.shape, self.loss, self.name = shape, loss, f"{shape} {loss}"
        generator = torch.Generator(device).manual_seed(0)
        numbers = {"generator": generator, "device": device}
        grid = (8,) * (len(shape.cells) - 1) + (16,)
        coarse = torch.randint(shape.classes, (shape.batch, 1, *grid), **numbers).float()
        self.target = F.interpolate(coarse, shape.labels, mode="nearest")[:, 0].long()  # regions, as pictures have them
        favored = F.interpolate(coarse, shape.cells, mode="nearest").long()
        logits = 1.5 * torch.randn(shape.batch, shape.classes, *shape.cells, **numbers)
        logits.scatter_add_(1, favored, torch.full(favored.shape, self.favor[loss], device=device))
        self.target[torch.rand(self.target.shape, **numbers) < 0.05] = IGNORE
        self.logits = logits.to(getattr(torch, shape.dtype)).requires_grad_()
        self.leaves = (self.logits,)

    def least_bytes(self, phase: str) -> int:
        """Logits and labels read once; in a step both once more, and the gradient written."""
        read = self.logits.nbytes + self.target.nbytes
        return read if phase == "forward" else 2 * read + self.logits.nbytes

    def least_exponentials(self) -> int:
        """One per class and pixel in forward. Backward needs them again, or a tensor of them."""
        return self.shape.classes * self.shape.pixels

    def least_flops(self, phase: str) -> int:
        """No matrix products."""
        return 0

    def truth(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The reference in fp64, band by band of label rows, to need less memory: sums first, then gradients."""
        logits = self.logits.detach().double().requires_grad_()
        z = reference.upsample(logits, self.shape.labels, align_corners=False)
        with torch.no_grad():
            found = [self._band(z.detach()[:, :, rows], rows) for rows in self._rows()]
            sums, pixels, valid = (torch.stack(part).sum(0) for part in zip(*found, strict=True))
        sums.requires_grad_(), pixels.requires_grad_()
        loss = formulas.region_loss(sums, valid[:, 0], None, True, formulas.Formula())
        if self.loss == "ce_dice":
            loss = loss + formulas.pixel_mean(pixels, sums, None)
        of_sums = torch.autograd.grad(loss, (sums, pixels), allow_unused=True)
        grad_z = torch.empty_like(z)
        for rows in self._rows():
            band = z.detach()[:, :, rows].requires_grad_()
            known = [(t, g) for t, g in zip(self._band(band, rows)[:2], of_sums, strict=True) if g is not None]
            (grad_z[:, :, rows],) = torch.autograd.grad([t for t, _ in known], band, [g for _, g in known])
        (grad,) = torch.autograd.grad(z, logits, grad_z) if self.shape.interpolates else (grad_z,)
        return loss.detach(), (grad,)

    def _rows(self) -> list[slice]:
        return [slice(row, row + 64) for row in range(0, self.shape.labels[0], 64)]

    def _band(self, z: Tensor, rows: slice) -> Sums:
        with_pixels = self.loss == "ce_dice"
        inputs = Inputs(z, self.target[:, rows], None, 0.0, 0.0, IGNORE, False, True, with_pixels)
        return reference.region_sums(inputs, per_image=False)


def eager(x: Tensor, target: Tensor, loss: str) -> Tensor:
    """Softmax, one-hot labels, and their sums; the cross-entropy beside them."""
    z = peers.upsample(x, target).float()
    valid = target != IGNORE
    p = z.softmax(1) * valid[:, None]
    y = torch.zeros_like(p).scatter_(1, target.where(valid, 0)[:, None], valid[:, None].to(p.dtype))
    axes = (0, *range(2, z.ndim))
    hits, mass, count = (p * y).sum(axes), p.sum(axes), y.sum(axes)
    dice = (1 - (2 * hits + 1) / (mass + count + 1)).mean()
    return dice + F.cross_entropy(z, target, ignore_index=IGNORE) if loss == "ce_dice" else dice


def ours(backend: str) -> Callable[[RegionProblem], Tensor]:
    """The package's function for a problem's loss."""

    def loss(problem: RegionProblem) -> Tensor:
        function = mk.cross_entropy_dice if problem.loss == "ce_dice" else mk.region_loss
        return function(problem.logits, problem.target, ignore_index=IGNORE, backend=backend)

    return loss


def cross_entropy_alone(problem: RegionProblem, phase: str) -> None:
    """The pass that Dice shares, without it."""
    with torch.set_grad_enabled(phase == "step"):
        loss = mk.cross_entropy(problem.logits, problem.target, ignore_index=IGNORE)
    if phase == "step":
        loss.backward()


@functools.cache
def contestants(loss: str, device: str = machine.DEVICE) -> tuple[Contestant, ...]:
    """The peers of a loss, then our backends, then the pass that they are held against."""
    alone = Contestant("cross-entropy alone", ours("reference"), bare=cross_entropy_alone)
    return (
        Contestant("eager", lambda p: eager(p.logits, p.target, loss)),
        Contestant("torch.compile", lambda p: peers.compiled(eager)(p.logits, p.target, loss)),
        *(
            Contestant(f"metricseg {n}", ours(n), ours=True, missing=backends.why_not("region", n, device))
            for n in entry.own_backends("region", device)
        ),
        *([alone] if loss == "ce_dice" else []),
    )


def problems(device: str = machine.DEVICE) -> Iterator[tuple[Shape, str, tuple[str, ...]]]:
    """(shape, loss, phases); none where there is nothing of ours to measure."""
    if not entry.own_backends("region", device):
        return
    sets = shapes.CPU if device == "cpu" else shapes.GPU
    for shape in (*sets.main, *sets.volumes):
        yield shape, "ce_dice", race.PHASES
    for shape in sets.side:
        yield shape, "dice", race.PHASES


def quick(shape: Shape, loss: str) -> bool:
    """Whether a race is one of the quick subset."""
    return loss == "dice"


run_race = functools.partial(entry.measure, RegionProblem, contestants)


def small_cases(backend: str, device: str) -> None:
    """Upsampling, also by a large ratio, downsampling, neither; ignored labels, soft targets, overlapping classes."""
    for x, labels in labeled_maps(f"{backend} region", device):
        classes = x.shape[1]
        soft = torch.rand(2, classes, *labels.shape[1:]).to(device)
        weight = torch.linspace(0.5, 1.5, classes, device=device)
        losses = [
            mk.region_loss(x, labels, weight=weight, per_image=True, backend=backend),
            mk.region_loss(x, soft, form="tversky", exponent=1.5, align_corners=True, backend=backend),
            mk.region_loss(x, labels, form="jaccard", activation="sigmoid", log=True, backend=backend),
            mk.region_loss(x, soft, activation="sigmoid", per_image=True, backend=backend),
            mk.cross_entropy_dice(x, labels, weight=weight, label_smoothing=0.1, backend=backend),
            mk.focal_dice(x, labels, backend=backend),
        ]
        sum(losses).backward()
        check_finite(*losses, x.grad)


@pytest.mark.benchmark(timer=entry.REPLAY)
@pytest.mark.parametrize(
    ("shape", "loss", "phase", "name", "phases"),
    list(entry.parameters(problems(), lambda _, loss: contestants(loss), quick)),
)
def test_region(shape, loss, phase, name, phases, raced, enter) -> None:
    problem, results = raced((shape, loss), contestants(loss), name, functools.partial(run_race, shape, loss, phases))
    figures = entry.report(problem, contestants(loss), results, name, phase, machine.DEVICE)
    figures |= {"op": "region", "shape": str(shape), "loss": loss, "dtype": shape.dtype, "series": None}
    enter(figures, results[name].times[phase], f"{shape} {loss} {phase}")
