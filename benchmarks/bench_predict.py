"""The predict family against what people write instead: interpolation to label resolution, then softmax and argmax.

"argmax" is one map of noise, in which nearly every class may be the largest anywhere; "segments" is one as of a trained
network, with regions in which a class stands out. "scales" is the mean softmax of three scales with flips, "confusion"
the matrix of one map. Labels are
checked by the scores in fp64 of the classes that they name, so that a tie within rounding is no error. Counts are
checked by one sum with fixed weights, which a few ties don't show in.
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
from metricseg_kernels.core import backends
from metricseg_kernels.core.registry import FAMILIES

PHASES = ("forward",)
SCALES = (0.5, 1.0, 1.5)
LOSSES = ("argmax", "segments", "scales", "confusion")
REGION = 16  # cells of a region's side
SHAPES = shapes.PREDICTED_CPU if machine.DEVICE == "cpu" else shapes.PREDICTED_GPU


class PredictProblem:
    """Logits of one scale or three, each with a mirrored picture's, and labels."""

    def __init__(self, shape: Shape, loss: str, device: str) -> None:
        self.shape, self.loss, self.name = shape, loss, f"{shape} {loss}"
        rng = torch.Generator(device).manual_seed(0)
        scales = [s for s in SCALES for _ in (False, True)] if loss == "scales" else [1.0]
        self.flipped = [False, True] * len(SCALES) if loss == "scales" else [False]
        self.maps = [
            torch.randn(
                shape.batch, shape.classes, *(round(scale * n) for n in shape.cells), generator=rng, device=device
            ).to(getattr(torch, shape.dtype))
            for scale in scales
        ]
        if loss == "segments":
            noise = self.maps[0].float()
            self.maps = [(8 * regions(shape, rng, device) + 0.5 * noise).to(self.maps[0].dtype)]
        pixels = (shape.batch, *shape.labels)
        if loss == "confusion":
            self.target = torch.randint(shape.classes, pixels, generator=rng, device=device)
            self.target[torch.rand(pixels, generator=rng, device=device) < 0.05] = 255
            pixels = (shape.classes, shape.classes)
        weights = torch.rand(pixels, generator=rng, device=device).to(self.maps[0].dtype)
        self.weights = weights if loss == "confusion" else 1.0
        self.leaves = ((weights.new_ones(()) if loss == "confusion" else weights).requires_grad_(),)

    @functools.cached_property
    def scores(self) -> Tensor:
        """[B, K, H, W] in fp64."""
        maps = [m.double() for m in self.maps]
        return peers.mean_softmax(maps, self.flipped, self.shape.labels)

    def weighed(self, found: Tensor) -> Tensor:
        """The sum of the scores of labels, or of counts, times fixed weights."""
        if self.loss != "confusion":
            found = self.scores.gather(1, found.long()[:, None])[:, 0]
        return (self.leaves[0] * (self.weights * found)).sum(dtype=torch.float64)

    def truth(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        labels = self.scores.argmax(1)
        total = self.weighed(count(labels, self) if self.loss == "confusion" else labels)
        return total.detach(), torch.autograd.grad(total, self.leaves)

    def least_bytes(self, phase: str) -> int:
        """Maps read once; labels of a byte written, or target read."""
        pixels = self.target.nbytes if self.loss == "confusion" else self.shape.pixels
        return sum(m.nbytes for m in self.maps) + pixels

    def least_exponentials(self) -> int:
        return len(self.maps) * self.shape.classes * self.shape.pixels if self.loss == "scales" else 0

    def least_flops(self, phase: str) -> int:
        """No matrix products."""
        return 0


def regions(shape: Shape, rng: torch.Generator, device: str) -> Tensor:
    """[B, K, h, w]: 1 in squares of a class, 0 in those of the others, and what lies between at their borders.

    With noise of 1/16 of that, 1.15 classes can be the largest between four cells; in 89 % of the places it is one.
    The logits of a DeepLabv3+ after one epoch on CamVid have 1.12 to 1.15, and 87 to 90 %.
    """
    height, width = shape.cells
    grid = (shape.batch, -(-height // REGION), -(-width // REGION))
    hot = F.one_hot(torch.randint(shape.classes, grid, generator=rng, device=device), shape.classes)
    large = F.interpolate(hot.movedim(3, 1).float(), scale_factor=REGION)[:, :, :height, :width]
    return F.avg_pool2d(F.pad(large, (1, 1, 1, 1), mode="replicate"), 3, 1)


def count(labels: Tensor, problem: PredictProblem) -> Tensor:
    """The confusion matrix by bincount, as mmsegmentation and torchmetrics count."""
    valid = problem.target != 255
    classes = problem.shape.classes
    pairs = problem.target[valid] * classes + labels[valid]
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def eager(problem: PredictProblem) -> Tensor:
    if problem.loss == "scales":
        return peers.mean_softmax(problem.maps, problem.flipped, problem.shape.labels).argmax(1)
    logits = peers.resize(problem.maps[0], problem.shape.labels)
    return count(logits.argmax(1), problem) if problem.loss == "confusion" else logits.argmax(1)


def torchmetrics(problem: PredictProblem) -> Tensor:
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    logits = peers.resize(problem.maps[0], problem.shape.labels)
    return multiclass_confusion_matrix(
        logits.argmax(1), problem.target, problem.shape.classes, ignore_index=255, validate_args=False
    )


def ours(backend: str) -> Callable[[PredictProblem], Tensor]:
    def predict(problem: PredictProblem) -> Tensor:
        if problem.loss == "confusion":
            return mk.confusion_matrix(problem.maps, problem.target, backend=backend)
        return mk.predict_labels(problem.maps, problem.shape.labels, flipped=problem.flipped, backend=backend)

    return predict


@functools.cache
def contestants(loss: str, device: str = machine.DEVICE) -> tuple[Contestant, ...]:
    """The peers, then our backends."""
    own = [name for name in getattr(FAMILIES["predict"], device) if name != "reference"]
    entered: list[tuple[str, Callable[[PredictProblem], Tensor], dict[str, Any]]] = [("eager", eager, {})]
    if loss == "confusion":
        entered.append(("torchmetrics", torchmetrics, {"missing": peers.why_missing("torchmetrics")}))
    for name in own:
        about = {"ours": True, "missing": backends.why_not("predict", name, device)}
        entered.append((f"metricseg {name}", ours(name), about))
    return tuple(
        Contestant(name, found, checked=lambda p, found=found: p.weighed(found(p)), **about)
        for name, found, about in entered
    )


def problems() -> Iterator[tuple[Shape, str, tuple[str, ...]]]:
    for shape in SHAPES:
        for loss in ("argmax",) if len(shape.cells) == 3 else LOSSES:
            yield shape, loss, PHASES


def quick(shape: Shape, loss: str) -> bool:
    """Whether a race is one of the quick subset."""
    return shape == SHAPES[0] and loss == "argmax"


def run_race(shape: Shape, loss: str, phases: tuple[str, ...], processes: memory.FreshProcesses | None) -> Any:
    """(problem, results) of all contestants."""
    device = machine.DEVICE
    problem = PredictProblem(shape, loss, device)
    meter = race.peak_meter(problem, contestants, processes, device, warm_up=shape.smaller(0.25))
    return problem, race.run(problem, contestants(loss), device, meter, phases)


def small_cases(backend: str, device: str) -> None:
    """Odd sizes, a mirrored map, channels-last, all outputs."""
    rng = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        maps = [torch.randn(2, 21, *size, generator=rng).to(device, dtype) for size in ((9, 13), (5, 7))]
        maps[1] = maps[1].to(memory_format=torch.channels_last)
        target = torch.randint(21, (2, 33, 67), generator=rng).to(device)
        for logits, flipped in ((maps[0], False), (maps, [True, False])):
            counts = mk.confusion_matrix(logits, target, flipped=flipped, backend=backend)
            assert int(counts.sum()) == target.numel()
            for more in (False, True):
                found = mk.predict_labels(
                    logits, (33, 67), flipped=flipped, return_confidence=more, return_entropy=more, backend=backend
                )
                assert all(bool(t.isfinite().all()) for t in (found if more else [found]))
        print(f"{backend} predict {dtype}: done", flush=True)


@pytest.mark.benchmark(timer=entry.REPLAY)
@pytest.mark.parametrize(
    ("shape", "loss", "phase", "name", "phases"),
    list(entry.parameters(problems(), lambda _, loss: contestants(loss), quick)),
)
def test_predict(shape, loss, phase, name, phases, raced, enter) -> None:
    problem, results = raced((shape, loss), contestants(loss), name, functools.partial(run_race, shape, loss, phases))
    figures = entry.report(problem, contestants(loss), results, name, phase, machine.DEVICE)
    figures |= {"op": "predict", "shape": str(shape), "loss": loss, "dtype": shape.dtype, "series": None}
    enter(figures, results[name].times[phase], f"{shape} {loss} {phase}")
