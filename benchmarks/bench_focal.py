"""The focal family against what people write instead, at label resolution. Run: pytest benchmarks/ --benchmark-only

Every row computes the same loss and gradient, checked against the reference in fp64 before any time is taken.
Labels are int64, 5 % of them ignored; logits favor the right class, as in a network half-way trained.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import metricseg_kernels as mk
from benchmarks.harness import entry, machine, memory, peers, race, shapes
from benchmarks.harness.race import Contestant
from benchmarks.harness.shapes import Shape
from benchmarks.harness.small_cases import check_finite, labeled_maps
from metricseg_kernels.core import backends
from metricseg_kernels.core.registry import FAMILIES
from metricseg_kernels.focal import reference

IGNORE, GAMMA, ALPHA, THRESH = 255, 2.0, 0.25, 0.7


class FocalProblem:
    """One loss on one shape."""

    def __init__(self, shape: Shape, loss: str, device: str) -> None:
        self.shape, self.loss, self.name = shape, loss, f"{shape} {loss}"
        generator = torch.Generator(device).manual_seed(0)
        numbers = {"generator": generator, "device": device}
        grid = (8,) * (len(shape.cells) - 1) + (16,)
        coarse = torch.randint(shape.classes, (shape.batch, 1, *grid), **numbers).float()
        target = F.interpolate(coarse, shape.labels, mode="nearest")[:, 0].long()  # regions, as pictures have them
        favored = F.interpolate(coarse, shape.cells, mode="nearest").long()
        logits = 1.5 * torch.randn(shape.batch, shape.classes, *shape.cells, **numbers)
        logits.scatter_add_(1, favored, torch.full(favored.shape, 4.0, device=device))
        target[torch.rand(target.shape, **numbers) < 0.05] = IGNORE
        self.logits = logits.to(getattr(torch, shape.dtype)).requires_grad_()
        self.target = target
        self.weight = torch.linspace(0.5, 1.5, shape.classes).to(device) if loss == "cross_entropy" else None
        self.min_kept = shape.pixels // 16
        self.leaves = (self.logits,)

    def least_bytes(self, phase: str) -> int:
        """Logits and labels read once; in a step the gradient written once."""
        return self.logits.nbytes * (2 if phase == "step" else 1) + self.target.nbytes

    def least_exponentials(self) -> int:
        """One per class and pixel, in forward; a gradient needs no others."""
        return self.shape.classes * self.shape.pixels

    def least_flops(self, phase: str) -> int:
        """No matrix products."""
        return 0

    def truth(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The reference in fp64. The per-pixel part runs band by band of label rows, to need less memory and time."""
        logits = self.logits.detach().double().requires_grad_()
        z = reference.upsample(logits, self.shape.labels, align_corners=False)
        grad_z, total, count = torch.empty_like(z), 0.0, 0.0
        keep_above = self._threshold(z.detach()) if self.loss == "ohem" else None
        for image in range(self.shape.batch):
            for row in range(0, self.shape.labels[0], 64):
                rows = (slice(image, image + 1), slice(None), slice(row, row + 64))
                band = z.detach()[rows].requires_grad_()
                loss, counted = self._band(band, self.target[image : image + 1, row : row + 64], keep_above)
                (grad_z[rows],) = torch.autograd.grad(loss, band)
                total, count = total + loss.detach(), count + counted
        (grad,) = torch.autograd.grad(z, logits, grad_z) if self.shape.interpolates else (grad_z,)
        return total / count, (grad / count,)

    def _band(self, z: Tensor, target: Tensor, keep_above: Tensor | None) -> tuple[Tensor, Tensor]:
        """(summed loss, what the mean divides by)."""
        if self.loss == "sigmoid_focal":
            loss, totals = reference.sigmoid_focal(z, target, GAMMA, ALPHA, IGNORE, False, True)
            return loss, totals[0] * self.shape.classes
        gamma = GAMMA if self.loss == "focal" else 0.0
        loss, totals, _ = reference.focal(z, target, self.weight, keep_above, gamma, 0.0, IGNORE, False, True, False)
        return loss, totals[1 if self.weight is not None else 0]

    def _threshold(self, z: Tensor) -> Tensor:
        nll = F.cross_entropy(z, self.target, ignore_index=IGNORE, reduction="none")
        hardest = reference.kth_largest(nll.masked_fill(self.target == IGNORE, -1.0), self.min_kept)
        return torch.minimum(hardest, -torch.log(torch.tensor(THRESH, dtype=z.dtype, device=z.device)))


def ours(backend: str) -> Callable[[FocalProblem], Tensor]:
    """The package's function for a problem's loss."""

    def loss(problem: FocalProblem) -> Tensor:
        x, t, kw = problem.logits, problem.target, {"ignore_index": IGNORE, "backend": backend}
        if problem.loss == "focal":
            return mk.focal_loss(x, t, gamma=GAMMA, **kw)
        if problem.loss == "cross_entropy":
            return mk.cross_entropy(x, t, weight=problem.weight, **kw)
        if problem.loss == "sigmoid_focal":
            return mk.sigmoid_focal_loss(x, t, gamma=GAMMA, alpha=ALPHA, **kw)
        return mk.ohem_cross_entropy(x, t, thresh=THRESH, min_kept=problem.min_kept, **kw)

    return loss


@functools.cache
def contestants(loss: str, device: str = machine.DEVICE) -> tuple[Contestant, ...]:
    """The peers of a loss, then our backends."""
    rivals: dict[str, list[Contestant]] = {
        "focal": [
            Contestant("eager", lambda p: peers.focal(p.logits, p.target, IGNORE, GAMMA)),
            Contestant("torch.compile", lambda p: peers.compiled(peers.focal)(p.logits, p.target, IGNORE, GAMMA)),
        ],
        "cross_entropy": [
            Contestant("eager", lambda p: peers.cross_entropy(p.logits, p.target, IGNORE, p.weight)),
            Contestant(
                "torch.compile",
                lambda p: peers.compiled(peers.cross_entropy)(p.logits, p.target, IGNORE, p.weight),
            ),
        ],
        "sigmoid_focal": [
            Contestant(
                "torchvision",
                lambda p: peers.torchvision_focal(p.logits, p.target, IGNORE, GAMMA, ALPHA),
                missing=peers.why_missing("torchvision"),
            ),
            Contestant(
                "smp",
                lambda p: peers.smp_focal(p.logits, p.target, IGNORE, GAMMA, ALPHA),
                missing=peers.why_missing("segmentation_models_pytorch"),
            ),
        ],
        "ohem": [Contestant("eager", lambda p: peers.ohem(p.logits, p.target, IGNORE, THRESH, p.min_kept))],
    }
    own = [
        Contestant(f"metricseg {n}", ours(n), ours=True, missing=backends.why_not("focal", n, device))
        for n in getattr(FAMILIES["focal"], device)
        if n != "reference"
    ]
    return (*rivals[loss], *own)


def entrants(shape: Shape, loss: str) -> tuple[Contestant, ...]:
    """Who runs on a shape. On a GPU torch.compile sits out where nothing is interpolated: minutes of compilation."""
    everyone = contestants(loss)
    if machine.DEVICE == "cpu" or shape.interpolates:
        return everyone
    return tuple(contestant for contestant in everyone if contestant.name != "torch.compile")


def problems(device: str = machine.DEVICE) -> Iterator[tuple[Shape, str, tuple[str, ...]]]:
    """(shape, loss, phases). The sweep is for plots."""
    sets = shapes.CPU if device == "cpu" else shapes.GPU
    for shape in sets.main:
        for loss in ("focal", "cross_entropy"):
            yield shape, loss, race.PHASES
    for shape in sets.volumes:
        yield shape, "cross_entropy", race.PHASES
    for shape in sets.side:
        for loss in ("sigmoid_focal", "ohem"):
            yield shape, loss, race.PHASES
    for shape in sets.sweep:
        yield shape, "focal", ("step",)


def quick(shape: Shape, loss: str) -> bool:
    """Whether a race is one of the quick subset."""
    return loss == "ohem"


def run_race(shape: Shape, loss: str, phases: tuple[str, ...], processes: memory.FreshProcesses | None) -> Any:
    """(problem, results) of all contestants."""
    device = machine.DEVICE
    problem = FocalProblem(shape, loss, device)
    meter = race.peak_meter(problem, contestants, processes, device)
    return problem, race.run(problem, entrants(shape, loss), device, meter, phases)


def small_cases(backend: str, device: str) -> None:
    """Upsampling, downsampling and neither; ignored labels, a label out of range."""
    for x, labels in labeled_maps(f"{backend} focal", device):
        weight = torch.linspace(0.5, 1.5, x.shape[1], device=device)
        losses = [
            mk.focal_loss(x, labels, backend=backend),
            mk.cross_entropy(x, labels, weight=weight, label_smoothing=0.1, align_corners=True, backend=backend),
            mk.focal_loss(x, labels, reduction="none", return_stats=True, backend=backend)[0].mean(),
            mk.sigmoid_focal_loss(x, labels, backend=backend),
            mk.ohem_cross_entropy(x, labels, min_kept=20, backend=backend),
        ]
        sum(losses).backward()
        check_finite(*losses, x.grad)
        if device == "cuda":  # on the CPU it is an error
            labels[0, 0, 5] = 200
            assert bool(mk.focal_loss(x, labels, backend=backend).isnan())


@pytest.mark.benchmark(timer=entry.REPLAY)
@pytest.mark.parametrize(
    ("shape", "loss", "phase", "name", "phases"), list(entry.parameters(problems(), entrants, quick))
)
def test_focal(shape, loss, phase, name, phases, raced, enter) -> None:
    entered = entrants(shape, loss)
    problem, results = raced((shape, loss), entered, name, functools.partial(run_race, shape, loss, phases))
    figures = entry.report(problem, entered, results, name, phase, machine.DEVICE)
    figures |= {"op": "focal", "shape": str(shape), "loss": loss, "dtype": shape.dtype}
    figures |= {
        "series": shape.name if shape.interpolates and len(shape.cells) == 2 else None,
        "size": shape.pixels,
        "size_label": " x ".join(map(str, shape.labels)),
        "floor_mib": problem.logits.nbytes / 2**20,
        "size_name": "label size",
        "floor_name": "the logits",
        "title": f"{loss.replace('_', ' ')} loss at label resolution, forward + backward: batch {shape.batch}, "
        f"{shape.classes} classes, logits at a quarter of the label size, {shape.dtype}",
    }
    enter(figures, results[name].times[phase], f"{shape} {loss} {phase}")
