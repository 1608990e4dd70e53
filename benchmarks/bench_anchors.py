"""The anchors family against what people write instead: the choice of 1,024 pixels, and their rows out of a map.

A choice is random, so what is checked before any time is taken is how many distinct pixels of either group each (image,
class) gives: exactly what the reference gives. Rows are checked against the reference in fp64, with the gradient of
their product with fixed weights. Labels are int64, 5 % of them ignored; a fifth of the predictions are drawn at random.
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
from benchmarks.harness.shapes import Maps
from benchmarks.harness.small_cases import check_finite
from metricseg_kernels.anchors import reference
from metricseg_kernels.core import backends
from metricseg_kernels.core.registry import FAMILIES

IGNORE, SAMPLES, VIEWS = 255, 1024, 100
PHASES = {"sample_anchors": ("forward",), "gather_pixels": race.PHASES}


class AnchorsProblem:
    """One job on one shape; `loss` is the name of the job."""

    def __init__(self, shape: Maps, loss: str, device: str) -> None:
        self.shape, self.loss, self.name = shape, loss, f"{shape} {loss}"
        generator = torch.Generator().manual_seed(0)
        size = (shape.batch, *shape.cells)
        # regions of a dozen classes an image, as pictures have them
        palettes = torch.randint(shape.classes, (shape.batch, 12), generator=generator)
        coarse = torch.randint(12, (shape.batch, 8 * 16), generator=generator)
        coarse = palettes.gather(1, coarse).view(-1, 1, 8, 16).float()
        labels = F.interpolate(coarse, shape.cells, mode="nearest")[:, 0].long()
        other = torch.randint(shape.classes, size, generator=generator)
        predictions = torch.where(torch.rand(size, generator=generator) < 0.2, other, labels)
        labels[torch.rand(size, generator=generator) < 0.05] = IGNORE
        self.labels, self.predictions = labels.to(device), predictions.to(device)
        self.seed = torch.zeros((), dtype=torch.long, device=device)
        index, _, count = self.choice("reference")
        self.cells = 2 * shape.batch * shape.classes
        if loss == "sample_anchors":
            self.leaves = (torch.ones(self.cells, dtype=torch.float64, device=device).requires_grad_(),)
            return
        self.index = index[: int(count)]
        features = torch.randn(shape.batch, shape.channels, *shape.cells, generator=generator)
        self.leaves = (features.to(device, getattr(torch, shape.dtype)).requires_grad_(),)
        weights = torch.randn(len(self.index), shape.channels, generator=generator)
        self.weights = weights.to(device, getattr(torch, shape.dtype))

    def choice(self, backend: str) -> mk.Anchors:
        return mk.sample_anchors(
            self.labels, self.predictions, max_samples=SAMPLES, max_views=VIEWS, num_classes=self.shape.classes,
            ignore_index=IGNORE, seed=self.seed, backend=backend,
        )  # fmt: skip

    def weighed(self, index: Tensor) -> Tensor:
        """The sum of a weight for each cell, (image, class, right or wrong), over the distinct pixels chosen.

        Its gradient says how many pixels each cell gave.
        """
        pixels = index[index >= 0].unique()
        image, label = pixels // (self.shape.pixels // self.shape.batch), self.labels.flatten()[pixels]
        right = self.predictions.flatten()[pixels] == label
        return self.leaves[0][2 * (image * self.shape.classes + label) + right.long()].sum()

    def truth(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        if self.loss == "sample_anchors":
            total = self.weighed(self.choice("reference").index)
            return total.detach(), torch.autograd.grad(total, self.leaves)
        features = self.leaves[0].detach().double().requires_grad_()
        loss = (reference.gather(features, self.index, True, 1e-12) * self.weights.double()).sum()
        return loss.detach(), torch.autograd.grad(loss, features)

    def least_bytes(self, phase: str) -> int:
        """Labels and predictions read, indices and classes written; rows read and written, in a step their gradient
        read and that of the map written."""
        if self.loss == "sample_anchors":
            return self.labels.nbytes + self.predictions.nbytes + 2 * 8 * SAMPLES
        rows = 2 * self.weights.nbytes + self.index.nbytes
        return rows + (self.weights.nbytes + self.leaves[0].nbytes if phase == "step" else 0)

    def least_exponentials(self) -> int:
        return 0

    def least_flops(self, phase: str) -> int:
        """No matrix products."""
        return 0


def _rows_by(gather: Callable[[Tensor, Tensor], Tensor]) -> Callable[[AnchorsProblem], Tensor]:
    return lambda p: (gather(p.leaves[0], p.index) * p.weights).sum()


def _published(p: AnchorsProblem) -> Tensor:
    return peers.contrastive_seg_anchors(p.labels, p.predictions, IGNORE, SAMPLES, VIEWS)[0]


@functools.cache
def contestants(loss: str, device: str = machine.DEVICE) -> tuple[Contestant, ...]:
    """The peers of a job, then our backends."""

    def chooser(name: str, choose: Callable[[AnchorsProblem], Tensor], **kwargs: Any) -> Contestant:
        return Contestant(name, choose, checked=lambda p: p.weighed(choose(p)), **kwargs)

    def ours(backend: str) -> Contestant:
        about = {"ours": True, "missing": backends.why_not("anchors", backend, device)}
        if loss == "sample_anchors":
            return chooser(f"metricseg {backend}", lambda p: p.choice(backend).index, **about)
        return Contestant(
            f"metricseg {backend}", _rows_by(functools.partial(mk.gather_pixels, backend=backend)), **about
        )

    own = tuple(ours(name) for name in getattr(FAMILIES["anchors"], device) if name != "reference" or device == "cuda")
    if loss == "sample_anchors":
        return chooser("published loop", _published), *own
    return (
        Contestant("permute, index", _rows_by(peers.permuted_rows)),
        Contestant("index", _rows_by(peers.indexed_rows)),
        Contestant("torch.compile", _rows_by(lambda x, i: peers.compiled(peers.permuted_rows)(x, i))),
        *own,
    )


def problems() -> Iterator[tuple[Maps, str, tuple[str, ...]]]:
    for shape in shapes.ANCHORS_CPU if machine.DEVICE == "cpu" else shapes.ANCHORS_GPU:
        if shape.dtype == "float32":
            yield shape, "sample_anchors", PHASES["sample_anchors"]
        yield shape, "gather_pixels", PHASES["gather_pixels"]


def quick(shape: Maps, loss: str) -> bool:
    """Whether a race is one of the quick subset."""
    return shape.name == "ade20k"


run_race = functools.partial(entry.measure, AnchorsProblem, contestants)


def small_cases(backend: str, device: str) -> None:
    """Every strategy, more slots than samples, labels and indices out of range, a pixel twice, odd strides."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(5, (3, 19, 46), generator=generator).to(device)[..., ::2]
    labels[0, 0, :3] = 255
    if device == "cuda":  # on the CPU it is an error
        labels[1, 2, 3] = 2**40
    predictions = torch.randint(5, labels.shape, generator=generator).to(device)
    confidence = torch.rand(labels.shape, generator=generator).to(device)
    for strategy, samples in (("hard", 200), ("random", 7), ("semi_hard", 200), ("boundary", 31)):
        kwargs = {"strategy": strategy, "max_samples": samples, "max_views": 20, "seed": 1, "backend": backend}
        index, sampled, count = mk.sample_anchors(labels, predictions, confidence=confidence, **kwargs)
        used = index[: int(count)]
        assert count > 0 and bool((labels.flatten()[used] == sampled[: int(count)]).all())
        for dtype, layout in ((torch.float32, torch.contiguous_format), (torch.bfloat16, torch.channels_last)):
            x = torch.randn(3, 37, 19, 23, generator=generator).to(device, dtype, memory_format=layout).requires_grad_()
            bad = [-2, 2**50] if device == "cuda" else []
            pixels = torch.cat([index, index[:5], index.new_tensor([-1, *bad])])
            rows = mk.gather_pixels(x, pixels, backend=backend)
            rows.sum().backward()
            good = len(rows) - len(bad)
            check_finite(rows[:good], x.grad)
            assert bool(rows[good:].isnan().all())
        print(f"{backend} anchors {strategy}: done", flush=True)


@pytest.mark.benchmark(timer=entry.REPLAY)
@pytest.mark.parametrize(
    ("shape", "loss", "phase", "name", "phases"),
    list(entry.parameters(problems(), lambda _, loss: contestants(loss), quick)),
)
def test_anchors(shape, loss, phase, name, phases, raced, enter) -> None:
    problem, results = raced((shape, loss), contestants(loss), name, functools.partial(run_race, shape, loss, phases))
    figures = entry.report(problem, contestants(loss), results, name, phase, machine.DEVICE)
    figures |= {"op": "anchors", "shape": str(shape), "loss": loss, "dtype": shape.dtype, "series": None}
    enter(figures, results[name].times[phase], f"{shape} {loss} {phase}")
