"""The contrast family against what people write instead, and against bare matrix products of the same size.

Every row of a loss computes the same loss and gradient, checked against the reference in fp64 before any time is taken.
Features are of unit norm, a class direction plus noise; labels are int64, all of them valid, since the peers know no
other. Every anchor of 65,536 or more is timed with the mean over all; what is checked there, since the truth of all
takes too long, is the sum over 256 anchors and its gradient in all rows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import metricseg_kernels as mk
from benchmarks.harness import entry, machine, memory, peers, race, shapes
from benchmarks.harness.race import Contestant
from benchmarks.harness.shapes import Rows
from benchmarks.harness.small_cases import check_finite
from metricseg_kernels.contrast import reference
from metricseg_kernels.core import backends
from metricseg_kernels.core.registry import FAMILIES

TEMPERATURE, BASE_TEMPERATURE, MARGIN = 0.1, 0.07, 1.0  # ContrastiveSeg's; Jia et al.'s
LOSSES = {
    "negatives": "ContrastiveSeg",
    "balanced": "ContrastiveSeg, weights of classes",
    "all": "SupCon",
    "margin": "power 2, mean of pairs",
    "hinge": "power 1, nonzero",
    "nca": "SegSort",
}
DENOMINATORS = {"negatives": "negatives", "balanced": "negatives", "all": "all"}
CONCENTRATION = 10.0  # SegSort's
TRUTH_OF_ALL = {"cpu": 2e8, "cuda": 2e9}  # pairs
TRUTH_AT_ONCE = {"cpu": 2**22, "cuda": 2**24}  # pairs, in fp64
PEERS_FIT = {"cpu": 2e8, "cuda": 1.1e9}  # pairs; eager PyTorch takes about 28 bytes for each


class ContrastProblem:
    """One loss on one shape."""

    def __init__(self, shape: Rows, loss: str, device: str) -> None:
        self.shape, self.loss, self.name = shape, loss, f"{shape} {loss}"
        generator = torch.Generator().manual_seed(0)
        directions = torch.randn(shape.classes, shape.dim, generator=generator)

        def some(rows: int) -> tuple[Tensor, Tensor]:
            labels = torch.randint(shape.classes, (rows,), generator=generator)
            noise = torch.randn(rows, shape.dim, generator=generator)
            features = F.normalize(0.4 * directions[labels] + noise, dim=1)
            return features.to(device, getattr(torch, shape.dtype)), labels.to(device)

        self.anchors, self.labels = some(shape.anchors)
        self.bank, self.bank_labels = (None, None) if shape.bank is None else some(shape.bank)
        self.weights = 1 / self.labels.bincount()[self.labels].float() if loss == "balanced" else None
        self.leaves: tuple[Tensor, ...] = (self.anchors.requires_grad_(),)
        if loss == "nca" and self.bank is not None and self.bank_labels is not None:  # prototypes learn
            self.leaves = (self.anchors, self.bank.requires_grad_())
            order = torch.rand(len(self.labels), len(self.bank), generator=generator).to(device)
            self.segment_ids = (order * (self.labels[:, None] == self.bank_labels)).argmax(1)
        self.sample = None
        if shape.pairs > TRUTH_OF_ALL[device]:
            self.sample = torch.randperm(shape.anchors, generator=generator)[:256].to(device)

    @property
    def columns(self) -> tuple[Tensor, Tensor]:
        """The contrast rows and their labels."""
        if self.bank is None or self.bank_labels is None:
            return self.anchors, self.labels
        return self.bank, self.bank_labels

    def least_bytes(self, phase: str) -> int:
        """Features and labels read once; in a step the gradient written once."""
        features = (2 if phase == "step" else 1) * sum(leaf.nbytes for leaf in self.leaves)
        fixed = self.bank.nbytes if self.bank is not None and len(self.leaves) == 1 else 0
        labels = self.labels.nbytes + (0 if self.bank_labels is None else self.bank_labels.nbytes)
        return features + fixed + labels

    def least_exponentials(self) -> int:
        """One per pair; (i, j) and (j, i) of a set with itself share one."""
        if self.loss in ("margin", "hinge"):
            return 0
        return self.shape.pairs // (2 if self.bank is None else 1)

    def least_flops(self, phase: str) -> int:
        """X Y^T, of which a set with itself needs one half; in a step a product for each side that learns, one for a
        set with itself by W_ij + W_ji."""
        product = 2 * self.shape.pairs * self.shape.dim
        return (product // 2 if self.bank is None else product) + (product * len(self.leaves) if phase == "step" else 0)

    def truth(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The reference in fp64, a block of anchors against all rows at a time: memory grows with the rows."""
        leaves = tuple(leaf.detach().double().requires_grad_() for leaf in self.leaves)
        x = leaves[0]
        y = x if self.bank is None else leaves[1] if len(leaves) > 1 else self.bank.double()
        everyone = torch.arange(len(x), device=x.device)
        parts: list[Any] = [
            [0.0, [torch.zeros_like(leaf) for leaf in leaves], 0.0] for _ in range(2)
        ]  # sum, its gradients, what a mean divides by
        at_once = max(1, TRUTH_AT_ONCE[x.device.type] // len(y))
        for rows in (everyone if self.sample is None else self.sample).split(at_once):
            for part, (total, count) in zip(parts, self._block(x, y, rows), strict=False):
                part[0] += total.detach()
                for kept, grad in zip(part[1], torch.autograd.grad(total, leaves, retain_graph=True), strict=True):
                    kept += grad
                part[2] += count
        if self.sample is not None:
            return parts[0][0], tuple(parts[0][1])
        means = [(total / count, [grad / count for grad in grads]) for total, grads, count in parts if count]
        return sum(m[0] for m in means), tuple(sum(grads) for grads in zip(*(m[1] for m in means), strict=True))

    def _block(self, x: Tensor, y: Tensor, rows: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(sum, count) of each mean of the loss, over some anchors."""
        labels = self.columns[1]
        alone = self.bank is None
        everyone = torch.arange(len(y), device=x.device)
        ids = (rows, everyone) if alone else (None, None)
        if self.loss == "nca":
            which = reference.pairs(self.labels[rows], labels, self.segment_ids[rows], everyone, -1)
            losses, counts = reference.nca_contrast(x[rows], y, which, 1 / CONCENTRATION)
            return [(losses.sum(), counts.sum())]
        which = reference.pairs(self.labels[rows], labels, *ids, -1)
        if self.loss in DENOMINATORS:
            losses, positives = reference.pixel_contrast(
                x[rows], y, which, TEMPERATURE, self.scale, DENOMINATORS[self.loss], self.weights
            )
            weights = torch.ones_like(losses) if self.weights is None else self.weights[rows]
            return [((weights * losses).sum(), (weights * (positives > 0)).sum())]
        power, nonzero = (2, False) if self.loss == "margin" else (1, True)
        pull, push, pulled, pushed = reference.margin_contrast(x[rows], y, which, MARGIN, 0.0, power, nonzero)
        return [(pull, pulled), (push, pushed)]

    @property
    def scale(self) -> float:
        """temperature / base_temperature, which only ContrastiveSeg has."""
        return TEMPERATURE / BASE_TEMPERATURE if self.loss in ("negatives", "balanced") else 1.0

    @functools.cached_property
    def buffers(self) -> tuple[Tensor, Tensor, Tensor]:
        """Where bare products go."""
        x, (y, _) = self.anchors.detach(), self.columns
        return x.new_empty(len(x), len(y)), torch.empty_like(x), torch.empty_like(y)


def ours(backend: str, **kwargs: Any) -> Callable[[ContrastProblem], Tensor]:
    """The package's function for a problem's loss."""

    def loss(problem: ContrastProblem) -> Tensor:
        sets = problem.anchors, problem.labels, problem.bank, problem.bank_labels
        if problem.loss == "nca":
            return mk.prototype_nca_loss(
                *sets[:2], problem.segment_ids, *problem.columns, concentration=CONCENTRATION, backend=backend
            )
        if problem.loss == "margin":
            return mk.margin_contrast_loss(*sets, margin=MARGIN, backend=backend)
        if problem.loss == "hinge":
            return mk.margin_contrast_loss(*sets, margin=MARGIN, power=1, average="nonzero", backend=backend)
        return mk.pixel_contrast_loss(
            *sets, temperature=TEMPERATURE, base_temperature=TEMPERATURE / problem.scale,
            denominator=DENOMINATORS[problem.loss], anchor_weights=problem.weights, contrast_weights=problem.weights,
            backend=backend, **kwargs,
        )  # fmt: skip

    return loss


def of_sample(backend: str) -> Callable[[ContrastProblem], Tensor]:
    """What is checked: the loss, or where only a sample of anchors has a truth, the sum over them."""

    def loss(problem: ContrastProblem) -> Tensor:
        if problem.sample is None:
            return ours(backend)(problem)
        return ours(backend, reduction="none")(problem)[problem.sample].sum()

    return loss


def bare_products(problem: ContrastProblem, phase: str) -> None:
    """S = X Y^T; in a step S Y, and S^T X where the columns learn."""
    x, (y, _), (s, over_rows, over_columns) = problem.anchors.detach(), problem.columns, problem.buffers
    y = y.detach()
    torch.mm(x, y.T, out=s)
    if phase == "step":
        torch.mm(s, y, out=over_rows)
        if problem.bank is None or len(problem.leaves) > 1:
            torch.mm(s.T, x, out=over_columns)


@functools.cache
def contestants(loss: str, device: str = machine.DEVICE) -> tuple[Contestant, ...]:
    """The peers of a loss, then our backends, then the products that they are held against."""

    def seg(p: ContrastProblem, function: Callable[..., Tensor] = peers.contrastive_seg) -> Tensor:
        return function(p.anchors, p.labels, p.bank, p.bank_labels, TEMPERATURE, BASE_TEMPERATURE)

    no_pml = peers.why_missing("pytorch_metric_learning")
    rivals: dict[str, list[Contestant]] = {
        "negatives": [
            Contestant("eager", seg),
            Contestant("torch.compile", lambda p: seg(p, peers.compiled(peers.contrastive_seg))),
        ],
        "balanced": [
            Contestant("eager", lambda p: seg(p, functools.partial(peers.contrastive_seg, weights=p.weights)))
        ],
        "all": [
            Contestant("PML SupConLoss", lambda p: peers.pml_supcon(p.anchors, p.labels, TEMPERATURE), missing=no_pml)
        ],
        "margin": [Contestant("cdist", lambda p: peers.cdist_margin(p.anchors, p.labels, MARGIN))],
        "nca": [
            Contestant(
                "eager", lambda p: peers.segsort_nca(p.anchors, p.labels, p.segment_ids, *p.columns, CONCENTRATION)
            )
        ],
        "hinge": [
            Contestant(
                "PML ContrastiveLoss", lambda p: peers.pml_contrastive(p.anchors, p.labels, MARGIN), missing=no_pml
            )
        ],
    }
    own = [
        Contestant(
            f"metricseg {n}", ours(n), ours=True, missing=backends.why_not("contrast", n, device), checked=of_sample(n)
        )
        for n in getattr(FAMILIES["contrast"], device)
        if n != "reference"
    ]
    return (*rivals[loss], *own, Contestant("bare products", ours("reference"), bare=bare_products))


def entrants(shape: Rows, loss: str) -> tuple[Contestant, ...]:
    """Who runs on a shape: ours on all; whoever writes the matrix of all pairs where it fits.

    On a GPU torch.compile sits out the sweep: minutes of compilation.
    """
    everyone = contestants(loss)
    if machine.DEVICE == "cuda" and shape in shapes.CONTRAST_GPU.sweep:
        everyone = tuple(contestant for contestant in everyone if contestant.name != "torch.compile")
    if shape.pairs <= PEERS_FIT[machine.DEVICE]:
        return everyone
    return tuple(contestant for contestant in everyone if contestant.ours)


def problems(device: str = machine.DEVICE) -> Iterator[tuple[Rows, str, tuple[str, ...]]]:
    """(shape, loss, phases). The sweep is for plots."""
    sets = shapes.CONTRAST_CPU if device == "cpu" else shapes.CONTRAST_GPU
    for shape in sets.main:
        yield shape, "negatives", race.PHASES if device == "cuda" or shape is shapes.SAMPLED else ("step",)
    if device == "cpu":
        for shape in (shapes.SAMPLED, shapes.PIXELS):
            yield shape, "balanced", ("step",)
    for shape in (*sets.alone, *sets.sweep):
        yield shape, "negatives", ("step",)
    for shape in sets.euclidean:
        for loss in ("all", "margin", "hinge"):
            yield shape, loss, ("step",)
    for shape in sets.segments:
        yield shape, "nca", ("step",)


def laps(shape: Rows, device: str) -> tuple[int, int] | None:
    """Few of what takes seconds."""
    if device == "cuda":
        return (3, 20) if shape.pairs > 1e8 else None
    return (1, 1) if shape.pairs > TRUTH_OF_ALL[device] else None


def quick(shape: Rows, loss: str) -> bool:
    """Whether a race is one of the quick subset."""
    return shape is shapes.SAMPLED


def run_race(shape: Rows, loss: str, phases: tuple[str, ...], processes: memory.FreshProcesses | None) -> Any:
    """(problem, results) of all contestants."""
    device = machine.DEVICE
    problem = ContrastProblem(shape, loss, device)
    warm_up = None
    if shape.pairs > 1e7:
        warm_up = replace(shape, anchors=shapes.SAMPLED.anchors) if loss == "nca" else shapes.SAMPLED
    meter = race.peak_meter(problem, contestants, processes, device, warm_up)
    with race.precision(shape.precision):
        results = race.run(problem, entrants(shape, loss), device, meter, phases, laps=laps(shape, device))
    return problem, results


def small_cases(backend: str, device: str) -> None:
    """A set with itself and two sets, no size a multiple of a tile, ignored rows, ids, odd strides."""
    for rows, columns, dim, dtype in ((150, None, 20, torch.float32), (131, 77, 64, torch.bfloat16)):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2 * rows, dim, generator=generator).to(device, dtype)[::2].requires_grad_()
        labels = torch.randint(-1, 4, (rows,), generator=generator).to(device)
        sets: list[Any] = [x, labels, None, None]
        ids = {"anchor_ids": torch.arange(rows, device=device)}
        if columns is not None:
            y = torch.randn(columns, dim, generator=generator).to(device, dtype).requires_grad_()
            sets[2:] = y, torch.randint(-1, 4, (columns,), generator=generator).to(device)
            ids["contrast_ids"] = torch.arange(columns, device=device)
        losses = [
            mk.pixel_contrast_loss(*sets, backend=backend),
            mk.pixel_contrast_loss(*sets, denominator="all", reduction="none", backend=backend, **ids).mean(),
            mk.margin_contrast_loss(*sets, margin=9.0, backend=backend),
        ]
        sum(losses).backward()
        check_finite(*losses, x.grad)
        print(f"{backend} contrast {rows} x {columns or rows} x {dim} {dtype}: done", flush=True)


@pytest.mark.benchmark(timer=entry.REPLAY)
@pytest.mark.parametrize(
    ("shape", "loss", "phase", "name", "phases"), list(entry.parameters(problems(), entrants, quick))
)
def test_contrast(shape, loss, phase, name, phases, raced, enter) -> None:
    entered = entrants(shape, loss)
    problem, results = raced((shape, loss), entered, name, functools.partial(run_race, shape, loss, phases))
    with race.precision(shape.precision):
        figures = entry.report(problem, entered, results, name, phase, machine.DEVICE)
    arithmetic = shape.dtype if shape.precision == "highest" else "tf32"
    figures |= {"op": "contrast", "shape": str(shape), "loss": loss, "dtype": arithmetic}
    figures |= {
        "series": f"d{shape.dim}" if shape.bank is None and loss == "negatives" else None,
        "size": shape.anchors,
        "size_label": f"{shape.anchors:,}",
        "floor_mib": problem.anchors.nbytes / 2**20,
        "size_name": "anchors",
        "floor_name": "the features",
        "title": f"contrast of every pixel with every pixel ({LOSSES[loss]}), forward + backward: "
        f"{shape.dim} channels, {shape.classes} classes, {arithmetic}",
    }
    enter(figures, results[name].times[phase], f"{shape} {loss} {phase}")
