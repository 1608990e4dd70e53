"""The distill family against what people write instead: both maps interpolated, log_softmax, and F.kl_div.

The losses are kinds of `distillation_loss`, at temperature 2. "kl" has a teacher of the student's cells, "kl, other
stride" one of half as many rows and columns. Every row computes the same loss and gradient of the student, checked
against the reference in fp64 before any time is taken.
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
from benchmarks.harness.small_cases import check_finite
from metricseg_kernels.core import backends
from metricseg_kernels.distill import reference

IGNORE = 255
TEMPERATURE = 2.0


class DistillProblem:
    """One loss on one shape."""

    def __init__(self, shape: Shape, loss: str, device: str) -> None:
        self.shape, self.loss, self.name = shape, loss, f"{shape} {loss}"
        self.kind = loss.split(",")[0]
        numbers = {"generator": torch.Generator(device).manual_seed(0), "device": device}
        dtype = getattr(torch, shape.dtype)
        cells = [n // 2 for n in shape.cells] if "other" in loss else shape.cells
        maps = ((shape.batch, shape.classes, *size) for size in (shape.cells, cells))
        student, self.teacher = ((2 * torch.randn(size, **numbers)).to(dtype) for size in maps)
        self.student = student.requires_grad_()
        self.target = torch.randint(shape.classes, (shape.batch, *shape.labels), **numbers)
        self.target[torch.rand(self.target.shape, **numbers) < 0.05] = IGNORE
        self.leaves = (self.student,)

    def least_bytes(self, phase: str) -> int:
        """Maps and labels read once, and in a step the gradient written."""
        read = self.student.nbytes + self.teacher.nbytes + self.target.nbytes
        return read if phase == "forward" else read + self.student.nbytes

    def least_exponentials(self) -> int:
        """One per map, class and pixel."""
        return 2 * self.shape.classes * self.shape.pixels

    def least_flops(self, phase: str) -> int:
        """No matrix products."""
        return 0

    def truth(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The reference in fp64, band by band of label rows, to need less memory."""
        student = self.student.detach().double().requires_grad_()
        z, y = (reference.upsample(x, self.shape.labels, False) for x in (student, self.teacher.double()))
        valid = (self.target != IGNORE).sum()
        total, grad_z = torch.zeros((), dtype=torch.float64, device=z.device), torch.empty_like(z)
        for row in range(0, self.shape.labels[0], 64):
            rows = slice(row, row + 64)
            band, target = z.detach()[:, :, rows].requires_grad_(), self.target[:, rows]
            loss = reference.distill(
                band, y[:, :, rows], target, *target.shape[1:], TEMPERATURE, self.kind, IGNORE, False, True, False
            )
            total = total + loss.detach()
            (grad_z[:, :, rows],) = torch.autograd.grad(loss / valid, band)
        (grad,) = torch.autograd.grad(z, student, grad_z) if self.shape.interpolates else (grad_z,)
        return total / valid, (grad,)


def eager(student: Tensor, teacher: Tensor, target: Tensor, kind: str) -> Tensor:
    """log_softmax of both interpolated maps, and F.kl_div; of the mean of both for "js"."""
    log_p, log_q = (
        F.log_softmax(peers.upsample(x, target).float() / TEMPERATURE, 1) for x in (student, teacher.detach())
    )
    if kind == "kl":
        pixels = F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(1)
    elif kind == "reverse_kl":
        pixels = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)
    else:
        log_m = torch.log((log_p.exp() + log_q.exp()) / 2)
        of_p, of_q = (F.kl_div(log_m, x, reduction="none", log_target=True).sum(1) for x in (log_p, log_q))
        pixels = (of_p + of_q) / 2
    valid = target != IGNORE
    return TEMPERATURE**2 * (pixels * valid).sum() / valid.sum()


def ours(backend: str) -> Callable[[DistillProblem], Tensor]:
    """The package's function for a problem's loss."""

    def loss(problem: DistillProblem) -> Tensor:
        return mk.distillation_loss(
            problem.student, problem.teacher, problem.target, temperature=TEMPERATURE, kind=problem.kind,
            ignore_index=IGNORE, backend=backend,
        )  # fmt: skip

    return loss


@functools.cache
def contestants(loss: str, device: str = machine.DEVICE) -> tuple[Contestant, ...]:
    """The peers of a loss, then our backends."""

    def peer(function: Callable[..., Tensor]) -> Callable[[DistillProblem], Tensor]:
        return lambda p: function(p.student, p.teacher, p.target, p.kind)

    return (
        Contestant("eager", peer(eager)),
        Contestant("torch.compile", lambda p: peer(peers.compiled(eager))(p)),
        *(
            Contestant(f"metricseg {n}", ours(n), ours=True, missing=backends.why_not("distill", n, device))
            for n in entry.own_backends("distill", device)
        ),
    )


def problems(device: str = machine.DEVICE) -> Iterator[tuple[Shape, str, tuple[str, ...]]]:
    """(shape, loss, phases); none where there is nothing of ours to measure."""
    if not entry.own_backends("distill", device):
        return
    sets = shapes.CPU if device == "cpu" else shapes.GPU
    for shape in sets.main:
        yield shape, "kl", race.PHASES
        if shape.interpolates:
            yield shape, "kl, other stride", race.PHASES
    for shape in sets.side:
        for loss in ("kl", "reverse_kl", "js"):
            if loss != "kl" or shape not in sets.main:
                yield shape, loss, race.PHASES


def quick(shape: Shape, loss: str) -> bool:
    """Whether a race is one of the quick subset."""
    return loss == "js"


run_race = functools.partial(entry.measure, DistillProblem, contestants)


def small_cases(backend: str, device: str) -> None:
    """Maps of equal and of other strides, upsampled, downsampled and neither; ignored labels, and none."""
    for classes, cells, others, size, dtype in (
        (19, (9, 13), (9, 13), (36, 52), torch.float32),
        (5, (8, 8), (5, 17), (31, 29), torch.bfloat16),
        (150, (12, 12), (12, 12), (12, 12), torch.float32),
        (3, (33, 17), (20, 40), (9, 8), torch.float16),
    ):
        generator = torch.Generator().manual_seed(0)
        x, y = (torch.randn(2, classes, *n, generator=generator).to(device, dtype) for n in (cells, others))
        labels = torch.randint(classes, (2, *size), generator=generator).to(device, torch.uint8)
        labels[:, 0, :2] = IGNORE
        x.requires_grad_(), y.requires_grad_()
        losses = [
            mk.distillation_loss(x, y, target, kind=kind, temperature=TEMPERATURE, backend=backend)
            for kind in ("kl", "reverse_kl", "js")
            for target in (labels, size)
        ]
        losses.append(mk.distillation_loss(x, y, labels, reduction="none", align_corners=True, backend=backend).sum())
        sum(losses).backward()
        check_finite(*losses, x.grad, y.grad)
        print(f"{backend} distill {tuple(x.shape)} and {tuple(y.shape)} to {size} {dtype}: done", flush=True)


@pytest.mark.benchmark(timer=entry.REPLAY)
@pytest.mark.parametrize(
    ("shape", "loss", "phase", "name", "phases"),
    list(entry.parameters(problems(), lambda _, loss: contestants(loss), quick)),
)
def test_distill(shape, loss, phase, name, phases, raced, enter) -> None:
    problem, results = raced((shape, loss), contestants(loss), name, functools.partial(run_race, shape, loss, phases))
    figures = entry.report(problem, contestants(loss), results, name, phase, machine.DEVICE)
    figures |= {"op": "distill", "shape": str(shape), "loss": loss, "dtype": shape.dtype, "series": None}
    enter(figures, results[name].times[phase], f"{shape} {loss} {phase}")
