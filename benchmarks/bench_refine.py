"""Refined upsampling against F.interpolate, F.unfold and F.grid_sample, which write an upsampled map, unfolded offsets
and a grid.

A result is checked by its product with fixed weights, and the gradients of features, offsets and neighbor logits,
against the reference in fp64. Features are smooth: between pixels the gradient of a position jumps, and float32 may
round to the other side. Offsets are smooth flows of a few pixels, in float32.
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
from benchmarks.harness import entry, machine, peers, race, shapes
from benchmarks.harness.race import Contestant
from benchmarks.harness.shapes import Upsampling
from benchmarks.harness.small_cases import check_finite
from metricseg_kernels.core import backends
from metricseg_kernels.core.registry import FAMILIES


class RefineProblem:
    """One map; `loss` is "refined" with neighbor weights or "flow" without."""

    def __init__(self, shape: Upsampling, loss: str, device: str) -> None:
        self.shape, self.loss, self.name = shape, loss, f"{shape} {loss}"
        rng = torch.Generator().manual_seed(0)
        coarse = torch.randn(shape.batch, shape.channels, 3, 4, generator=rng)
        x = F.interpolate(coarse, shape.cells, mode="bicubic", align_corners=False)
        flow = F.interpolate(3 * torch.randn(shape.batch, 2, 6, 8, generator=rng), shape.labels, mode="bilinear")
        leaves = [x.to(getattr(torch, shape.dtype)), flow]
        if loss == "refined":
            leaves.append(torch.randn(shape.batch, 9, *shape.labels, generator=rng))
        self.leaves: tuple[Tensor, ...] = tuple(leaf.to(device).requires_grad_() for leaf in leaves)
        weights = torch.rand(shape.batch, shape.channels, *shape.labels, generator=rng) / shape.pixels
        self.weights = weights.to(device, getattr(torch, shape.dtype))

    def truth(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        leaves = [leaf.detach().double().requires_grad_() for leaf in self.leaves]
        total = (mk.refine_upsample(*leaves, backend="reference") * self.weights).sum()
        return total.detach(), torch.autograd.grad(total, leaves)

    def least_bytes(self, phase: str) -> int:
        """All inputs read and the output written; in a step also its gradient read, and theirs written."""
        inputs = sum(leaf.nbytes for leaf in self.leaves)
        return inputs + self.weights.nbytes if phase == "forward" else 2 * (inputs + self.weights.nbytes)

    def least_exponentials(self) -> int:
        return 9 * self.shape.pixels if self.loss == "refined" else 0

    def least_flops(self, phase: str) -> int:
        return 0


@functools.cache
def contestants(loss: str, device: str = machine.DEVICE) -> tuple[Contestant, ...]:
    """The peers, then our backends."""
    own = [name for name in getattr(FAMILIES["refine"], device) if name != "reference" or device == "cuda"]
    about = {name: {"ours": True, "missing": backends.why_not("refine", name, device)} for name in own}

    def entrant(name: str, upsample: Callable[..., Tensor], **kwargs: Any) -> Contestant:
        def total(problem: RefineProblem) -> Tensor:
            leaves = (*problem.leaves, None)[:3]
            return (upsample(*leaves) * problem.weights).sum()

        return Contestant(name, total, **kwargs)

    return (
        entrant("eager", peers.refined),
        *([entrant("torch.compile", peers.compiled(peers.refined))] if loss == "refined" else []),
        *(entrant(f"metricseg {n}", functools.partial(mk.refine_upsample, backend=n), **about[n]) for n in own),
    )


def problems() -> Iterator[tuple[Upsampling, str, tuple[str, ...]]]:
    for shape in shapes.REFINED_CPU if machine.DEVICE == "cpu" else shapes.REFINED_GPU:
        yield shape, "refined", race.PHASES
    yield shape, "flow", race.PHASES[1:]


def quick(shape: Upsampling, loss: str) -> bool:
    """Whether a race is one of the quick subset."""
    return shape == shapes.REFINED_CPU[0]


run_race = functools.partial(entry.measure, RefineProblem, contestants)


def small_cases(backend: str, device: str) -> None:
    """Both paddings, far offsets, a NaN, odd strides, channels-last."""
    rng = torch.Generator().manual_seed(0)
    for dtype, layout in ((torch.float32, torch.contiguous_format), (torch.bfloat16, torch.channels_last)):
        for padding, reach in (("border", 2.0), ("zeros", 300.0)):
            x = torch.randn(2, 21, 7, 9, generator=rng).to(device, dtype, memory_format=layout).requires_grad_()
            offsets = (reach * torch.randn(2, 2, 19, 46, generator=rng)).to(device)[..., ::2].requires_grad_()
            logits = torch.randn(2, 9, 19, 23, generator=rng).to(device).requires_grad_()
            output = mk.refine_upsample(x, offsets, logits, padding=padding, backend=backend)
            output.sum().backward()
            check_finite(output, x.grad, offsets.grad, logits.grad)
        print(f"{backend} refine {dtype}: done", flush=True)


@pytest.mark.benchmark(timer=entry.REPLAY)
@pytest.mark.parametrize(
    ("shape", "loss", "phase", "name", "phases"),
    list(entry.parameters(problems(), lambda _, loss: contestants(loss), quick)),
)
def test_refine(shape, loss, phase, name, phases, raced, enter) -> None:
    problem, results = raced((shape, loss), contestants(loss), name, functools.partial(run_race, shape, loss, phases))
    figures = entry.report(problem, contestants(loss), results, name, phase, machine.DEVICE)
    figures |= {"op": "refine", "shape": str(shape), "loss": loss, "dtype": shape.dtype, "series": None}
    enter(figures, results[name].times[phase], f"{shape} {loss} {phase}")
