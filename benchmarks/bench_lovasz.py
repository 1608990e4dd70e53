"""The lovasz family against what people write instead: interpolated logits, softmax, and a sort for each class.

"trained" logits favor the class of the label, "noise" does not. Every row computes the loss of the batch over its
present classes, and is checked against a sort in fp64 before any time is taken. Ours, with 512 bins, may be 1 / 512
off, and its gradient 0.01. That of eager may be 0.001 off: it is made of differences of numbers near 1 in fp32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import metricseg_kernels as mk
from benchmarks.bench_region import IGNORE, RegionProblem
from benchmarks.harness import entry, machine, peers, race, shapes
from benchmarks.harness.race import Contestant
from benchmarks.harness.shapes import Shape
from benchmarks.harness.small_cases import check_finite, labeled_maps
from metricseg_kernels.core import backends

BINS = 512


class LovaszProblem(RegionProblem):
    """The loss on one shape."""

    favor = {"trained": 7.0, "noise": 0.0}  # noqa: RUF012 (read only)

    def truth(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """By a sort in fp64."""
        logits = self.logits.detach().double().requires_grad_()
        loss = eager(logits, self.target)
        return loss.detach(), torch.autograd.grad(loss, logits)


def eager(x: Tensor, target: Tensor) -> Tensor:
    """Softmax, and class by class a sort of the errors and the differences of the Jaccard loss."""
    z = peers.upsample(x, target)
    p = (z if z.dtype == torch.float64 else z.float()).softmax(1).movedim(1, -1)
    valid = target != IGNORE
    p, labels, losses = p[valid], target[valid], []
    for k in labels.unique().tolist():
        own = (labels == k).to(p.dtype)
        errors, order = (own - p[:, k]).abs().sort(descending=True)
        total, found = own.sum(), own[order].cumsum(0)
        union = total + torch.arange(1, len(own) + 1, device=own.device, dtype=own.dtype) - found
        jaccard = 1 - (total - found) / union
        losses.append((errors * torch.cat([jaccard[:1], jaccard.diff()])).sum())
    return torch.stack(losses).mean()


def ours(backend: str) -> Callable[[LovaszProblem], Tensor]:
    """The package's function."""
    return lambda p: mk.lovasz_loss(p.logits, p.target, bins=BINS, ignore_index=IGNORE, backend=backend)


@functools.cache
def contestants(loss: str, device: str = machine.DEVICE) -> tuple[Contestant, ...]:
    """The sort, then our backends."""
    return (
        Contestant("eager", lambda p: eager(p.logits, p.target), apart=(0.0, 0.001)),
        *(
            Contestant(
                f"metricseg {n}", ours(n), ours=True, missing=backends.why_not("lovasz", n, device),
                apart=(1 / BINS, 0.01),
            )
            for n in entry.own_backends("lovasz", device)
        ),
    )  # fmt: skip


def problems(device: str = machine.DEVICE) -> Iterator[tuple[Shape, str, tuple[str, ...]]]:
    """(shape, logits, phases); none where there is nothing of ours to measure."""
    if not entry.own_backends("lovasz", device):
        return
    sets = shapes.CPU if device == "cpu" else shapes.GPU
    for shape in sets.main:
        if shape.interpolates:
            yield shape, "trained", race.PHASES
    for shape in sets.side:
        for loss in ("trained", "noise"):
            if loss != "trained" or shape not in sets.main:
                yield shape, loss, race.PHASES


def quick(shape: Shape, loss: str) -> bool:
    """Whether a race is one of the quick subset."""
    return loss == "noise"


run_race = functools.partial(entry.measure, LovaszProblem, contestants)


def small_cases(backend: str, device: str) -> None:
    """Upsampling, also by a large ratio, downsampling, neither; ignored labels; more classes than one walk holds."""
    for x, labels in labeled_maps(f"{backend} lovasz", device):
        losses = [
            mk.lovasz_loss(x, labels, bins=bins, per_image=images, align_corners=images, backend=backend)
            for bins, images in ((16, True), (512, False))
        ]
        sum(losses).backward()
        check_finite(*losses, x.grad)


@pytest.mark.benchmark(timer=entry.REPLAY)
@pytest.mark.parametrize(
    ("shape", "loss", "phase", "name", "phases"),
    list(entry.parameters(problems(), lambda _, loss: contestants(loss), quick)),
)
def test_lovasz(shape, loss, phase, name, phases, raced, enter) -> None:
    problem, results = raced((shape, loss), contestants(loss), name, functools.partial(run_race, shape, loss, phases))
    figures = entry.report(problem, contestants(loss), results, name, phase, machine.DEVICE)
    figures |= {"op": "lovasz", "shape": str(shape), "loss": loss, "dtype": shape.dtype, "series": None}
    enter(figures, results[name].times[phase], f"{shape} {loss} {phase}")
