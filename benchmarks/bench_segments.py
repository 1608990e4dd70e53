"""The segments family against what people write instead: spherical k-means, the split by label, and segment means.

Clusters are checked by their resultants: the length of the sum of the points of each cluster, against that of the
reference in fp64. Segments are checked by the pixels of each, means against the reference in fp64, with the gradient of
their product with fixed weights. FAISS and scikit-learn get their points for nothing; scikit-learn's clusters are
Euclidean, so nothing is checked of them. Embeddings are noisy regions, 25 clusters an image, 10 iterations.
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
from metricseg_kernels.core import backends
from metricseg_kernels.core.registry import FAMILIES
from metricseg_kernels.segments import reference

IGNORE, GRID, CLUSTERS, ITERATIONS = 255, (5, 5), 25, 10
PHASES = {"spherical_kmeans": ("forward",), "split_by_label": ("forward",), "segment_mean": race.PHASES}


class SegmentsProblem:
    """One job on one shape; `loss` is the name of the job."""

    def __init__(self, shape: Maps, loss: str, device: str) -> None:
        self.shape, self.loss, self.name = shape, loss, f"{shape} {loss}"
        rng = torch.Generator().manual_seed(0)
        coarse = torch.randn(shape.batch, shape.channels, 6, 8, generator=rng)
        noise = torch.randn(shape.batch, shape.channels, *shape.cells, generator=rng)
        self.x = (F.interpolate(coarse, shape.cells, mode="bilinear") + 0.3 * noise).to(
            device, getattr(torch, shape.dtype)
        )
        regions = torch.randint(shape.classes, (shape.batch, 1, 8, 16), generator=rng).float()
        labels = F.interpolate(regions, shape.cells, mode="nearest")[:, 0].long()
        labels[torch.rand(labels.shape, generator=rng) < 0.05] = IGNORE
        self.labels = labels.to(device)
        if loss == "spherical_kmeans":
            self.cells = shape.batch * CLUSTERS
            self.leaves: tuple[Tensor, ...] = (torch.ones(self.cells, device=device).requires_grad_(),)
            return
        self.clusters = mk.spherical_kmeans(self.x, grid=GRID, iterations=ITERATIONS)
        self.capacity = shape.batch * CLUSTERS * shape.classes
        self.ids = self.split("reference").ids
        if loss == "split_by_label":
            self.leaves = (torch.ones(self.capacity, dtype=torch.float64, device=device).requires_grad_(),)
            return
        self.count = int(self.ids.max()) + 1
        self.leaves = (self.x.requires_grad_(),)
        weights = torch.randn(self.count, shape.channels, generator=rng)
        self.weights = weights.to(device, getattr(torch, shape.dtype))

    @functools.cached_property
    def points(self) -> tuple[Tensor, Tensor]:
        """Points and first clusters of FAISS and scikit-learn."""
        return peers.grid_points(self.x, GRID)

    def split(self, backend: str | None) -> mk.Segments:
        return mk.split_by_label(
            self.clusters, self.labels, capacity=self.capacity, ignore_index=IGNORE, backend=backend
        )

    def resultants(self, clusters: Tensor) -> Tensor:
        """The sum of a weight for each cluster of each image times the length of the sum of its points, over pixels."""
        q, _ = reference.directions(self.x.double(), self.places, self.shape.cells, False)
        image = torch.arange(self.shape.batch, device=q.device)[:, None]
        at = (image * CLUSTERS + clusters.flatten(1)).flatten()
        sums = q.new_zeros(self.cells, q.shape[1]).index_add(0, at, q.flatten(2).mT.flatten(0, 1))
        return (self.leaves[0] * sums.norm(dim=1)).sum() / self.shape.pixels

    @property
    def places(self) -> Tensor:
        return reference.coordinates(self.shape.cells, torch.float64, self.x.device)

    def pixels_of(self, ids: Tensor) -> Tensor:
        """The sum of a weight for each segment over its pixels."""
        return self.leaves[0][ids[ids >= 0]].sum()

    def truth(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        if self.loss == "spherical_kmeans":
            clusters = mk.spherical_kmeans(self.x.double(), grid=GRID, iterations=ITERATIONS, backend="reference")
            total = self.resultants(clusters)
        elif self.loss == "split_by_label":
            total = self.pixels_of(self.ids)
        else:
            x = self.x.detach().double().requires_grad_()
            mean = mk.segment_mean(x, self.ids, self.count, backend="reference")
            total = (mean * self.weights.double()).sum()
            return total.detach(), torch.autograd.grad(total, x)
        return total.detach(), torch.autograd.grad(total, self.leaves)

    def least_bytes(self, phase: str) -> int:
        """Embeddings read once and ids written; ids and labels read and ids written; in a step of means, the gradient
        of the map written."""
        if self.loss == "spherical_kmeans":
            return self.x.nbytes + 8 * self.shape.pixels
        if self.loss == "split_by_label":
            return 3 * 8 * self.shape.pixels
        return (2 if phase == "step" else 1) * (self.x.nbytes + self.ids.nbytes)

    def least_exponentials(self) -> int:
        return 0

    def least_flops(self, phase: str) -> int:
        """The products of points and centers."""
        if self.loss != "spherical_kmeans":
            return 0
        return 2 * ITERATIONS * CLUSTERS * (self.shape.channels + 2) * self.shape.pixels


@functools.cache
def contestants(loss: str, device: str = machine.DEVICE) -> tuple[Contestant, ...]:
    """The peers of a job, then our backends."""
    own = [name for name in getattr(FAMILIES["segments"], device) if name != "reference" or device == "cuda"]
    about = {name: {"ours": True, "missing": backends.why_not("segments", name, device)} for name in own}

    def chooser(name: str, choose: Callable[[SegmentsProblem], Tensor], **kwargs: Any) -> Contestant:
        check = SegmentsProblem.resultants if loss == "spherical_kmeans" else SegmentsProblem.pixels_of
        return Contestant(name, choose, checked=lambda p: check(p, choose(p)), **kwargs)

    def weighed(name: str, mean: Callable[..., Tensor], **kwargs: Any) -> Contestant:
        return Contestant(name, lambda p: (mean(p.x, p.ids, p.count) * p.weights).sum(), **kwargs)

    if loss == "spherical_kmeans":
        on_host = "it runs on cpu tensors" if device == "cuda" else None
        cluster = functools.partial(mk.spherical_kmeans, grid=GRID, iterations=ITERATIONS)
        clusters = lambda p: peers.faiss_kmeans(*p.points, CLUSTERS, ITERATIONS).view(p.labels.shape)  # noqa: E731
        bare = lambda p, _: peers.sklearn_kmeans(*p.points, CLUSTERS, ITERATIONS)  # noqa: E731
        return (
            chooser("published loop", lambda p: peers.segsort_kmeans(p.x, GRID, ITERATIONS)),
            chooser("batched", lambda p: peers.batched_kmeans(p.x, GRID, ITERATIONS)),
            chooser("faiss", clusters, missing=on_host or peers.why_missing("faiss")),
            Contestant("scikit-learn", lambda p: p.x, bare=bare, missing=on_host or peers.why_missing("sklearn")),
            *(chooser(f"metricseg {n}", lambda p, n=n: cluster(p.x, backend=n), **about[n]) for n in own),
        )
    if loss == "split_by_label":
        return (
            chooser("unique", lambda p: peers.unique_segments(p.clusters, p.labels, p.shape.classes, IGNORE)),
            *(chooser(f"metricseg {n}", lambda p, n=n: p.split(n).ids, **about[n]) for n in own),
        )
    return (
        weighed("permute, scatter_add", peers.scattered_means),
        *(weighed(f"metricseg {n}", functools.partial(mk.segment_mean, backend=n), **about[n]) for n in own),
    )


def problems() -> Iterator[tuple[Maps, str, tuple[str, ...]]]:
    for shape in shapes.CLUSTERS_CPU if machine.DEVICE == "cpu" else shapes.CLUSTERS_GPU:
        for loss, phases in PHASES.items():
            if shape.dtype == "float32" or loss != "split_by_label":
                yield shape, loss, phases


def quick(shape: Maps, loss: str) -> bool:
    """Whether a race is one of the quick subset."""
    return loss == "segment_mean"


run_race = functools.partial(entry.measure, SegmentsProblem, contestants)


def small_cases(backend: str, device: str) -> None:
    """A mask, an interpolation, numbers out of range, a capacity that is too small, odd strides."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(5, (3, 19, 46), generator=rng).to(device)[..., ::2]
    labels[0, 0, :3] = 255
    valid = torch.rand(labels.shape, generator=rng).to(device) < 0.9
    for dtype, layout in ((torch.float32, torch.contiguous_format), (torch.bfloat16, torch.channels_last)):
        x = torch.randn(3, 37, 19, 23, generator=rng).to(device, dtype, memory_format=layout).requires_grad_()
        ids = mk.spherical_kmeans(x, valid=valid, grid=(3, 4), iterations=3, backend=backend)
        assert bool((ids < 0).eq(~valid).all()) and bool((ids < 12).all())
        larger = mk.spherical_kmeans(x, size=(31, 40), location=False, iterations=2, backend=backend)
        assert bool((larger >= 0).all())
        segments = mk.split_by_label(ids, labels, capacity=40, backend=backend)
        assert bool((segments.ids < 40).all()) and int(segments.count) > 40
        mean = mk.segment_mean(x, segments.ids, 40, backend=backend)
        mean.sum().backward()
        check_finite(mean, x.grad)
        print(f"{backend} segments {dtype}: done", flush=True)


@pytest.mark.benchmark(timer=entry.REPLAY)
@pytest.mark.parametrize(
    ("shape", "loss", "phase", "name", "phases"),
    list(entry.parameters(problems(), lambda _, loss: contestants(loss), quick)),
)
def test_segments(shape, loss, phase, name, phases, raced, enter) -> None:
    problem, results = raced((shape, loss), contestants(loss), name, functools.partial(run_race, shape, loss, phases))
    figures = entry.report(problem, contestants(loss), results, name, phase, machine.DEVICE)
    figures |= {"op": "segments", "shape": str(shape), "loss": loss, "dtype": shape.dtype, "series": None}
    enter(figures, results[name].times[phase], f"{shape} {loss} {phase}")
