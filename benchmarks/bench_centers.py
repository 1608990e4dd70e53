"""The centers family against what people write instead, and against bare matrix products of the same size.

Every row of a job computes the same values and gradients, checked against the reference in fp64 before any time is
taken: logits and centers by their product with fixed weights. The timed step is given these as the gradient of logits
or centers, so that it is their making and their backward, and nothing else.
Features are a class direction plus noise; 5 % of the labels, int64, are ignored.
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
from benchmarks.harness.shapes import Centers
from benchmarks.harness.small_cases import check_finite
from metricseg_kernels.core import backends
from metricseg_kernels.core.registry import FAMILIES

IGNORE, SCALE = 255, 15.0
LEARN = {  # by job
    "cosine": ("features", "centers"),
    "soft_centers": ("features", "logits"),
    "hard_centers": ("features",),
    "cross_entropy": ("features", "centers"),
}
SETS = shapes.CENTERS_CPU if machine.DEVICE == "cpu" else shapes.CENTERS_GPU


class CentersProblem:
    """One job on one shape; `loss` is the name of the job."""

    def __init__(self, shape: Centers, loss: str, device: str) -> None:
        self.shape, self.loss, self.name = shape, loss, f"{shape} {loss}"
        dtype, size = getattr(torch, shape.dtype), (shape.batch, *shape.cells)
        source = {"generator": torch.Generator(device).manual_seed(0), "device": device}
        random = functools.partial(torch.randn, **source)

        coarse = torch.randint(shape.classes, (shape.batch, 1, 8, 16), **source).float()
        labels = F.interpolate(coarse, shape.cells, mode="nearest")[:, 0].long()  # regions, as pictures have them
        target = F.interpolate(coarse, shape.labels or shape.cells, mode="nearest")[:, 0].long()
        directions = random(shape.classes, shape.channels)
        features = random(shape.batch, shape.channels, *shape.cells)
        features += 0.4 * directions[labels].movedim(-1, 1)
        rows = (shape.batch,) * shape.own + (shape.classes, shape.channels)
        logits = random(shape.batch, shape.classes, *shape.cells)
        logits.scatter_add_(1, labels[:, None], torch.full_like(labels[:, None], 3.0, dtype=logits.dtype))
        labels[torch.rand(size, **source) < 0.05] = IGNORE
        target[torch.rand(target.shape, **source) < 0.05] = IGNORE

        layout = torch.channels_last if shape.layout == "nhwc" else torch.contiguous_format
        self.features = features.to(dtype, memory_format=layout)
        self.centers = (directions + random(rows)).to(dtype)
        self.logits, self.labels, self.target = logits.to(dtype), labels, target
        output = (shape.batch, shape.classes, *(shape.cells if loss == "cosine" else (shape.channels,)))
        self.weights = (random(output) + 1).to(dtype)
        self.leaves = tuple(getattr(self, name).requires_grad_() for name in LEARN[loss])

    def truth(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        wide = {
            name: leaf.detach().double().requires_grad_()
            for name, leaf in zip(LEARN[self.loss], self.leaves, strict=True)
        }
        value = weighed(self, ours(self, "reference", **wide))
        return value.detach(), torch.autograd.grad(value, list(wide.values()))

    def least_bytes(self, phase: str) -> int:
        """Features read, values written; in a step the features read again, their gradient written, the gradient of
        the values read. A loss, and hard centers, need no second reading."""
        features, logits, labels = self.features.nbytes, self.logits.nbytes, self.labels.nbytes
        forward, again = {
            "cosine": (features + logits, features + logits),
            "soft_centers": (features + logits, features + 2 * logits),
            "hard_centers": (features + labels, labels),
            "cross_entropy": (features + self.target.nbytes, 0),
        }[self.loss]
        return forward + (again + features if phase == "step" else 0)

    def least_exponentials(self) -> int:
        """One for each class of a pixel, in forward; a gradient needs no others."""
        pixels = {"soft_centers": self.shape.pixels, "cross_entropy": self.shape.label_pixels}
        return self.shape.classes * pixels.get(self.loss, 0)

    def least_flops(self, phase: str) -> int:
        """W X; in a step the gradients of both; of soft centers as many. Sums by label are no product."""
        product = 2 * self.shape.pixels * self.shape.channels * self.shape.classes
        return 0 if self.loss == "hard_centers" else product * (3 if phase == "step" else 1)

    def output_bytes(self, phase: str) -> int:
        """Bytes of what comes out: values, and in a step the gradients."""
        values = 0 if self.loss == "cross_entropy" else self.weights.nbytes
        return values + (sum(leaf.nbytes for leaf in self.leaves) if phase == "step" else 0)

    @functools.cached_property
    def buffers(self) -> tuple[Tensor, Tensor]:
        """Where bare products of an image go: [K, N], [C, N]."""
        pixels = self.shape.pixels // self.shape.batch
        new = self.features.detach().new_empty
        return new(self.shape.classes, pixels), new(self.shape.channels, pixels)


class Given(torch.autograd.Function):
    """A 0-d loss whose gradient to values is what is given."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, given: Tensor) -> Tensor:
        ctx.save_for_backward(given)
        return values.new_zeros(())

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None]:
        return ctx.saved_tensors[0], None


def weighed(p: CentersProblem, values: Tensor) -> Tensor:
    """What is checked: the loss, or the product of values and weights, whose gradient is that of `Given`."""
    if p.loss == "cross_entropy":
        return values
    wide = torch.promote_types(values.dtype, torch.float32)
    return (values.to(wide) * p.weights.to(wide)).sum()


def ours(p: CentersProblem, backend: str, **other: Tensor) -> Tensor:
    """Of the tensors of a problem, or of others in their place."""
    features = other.get("features", p.features)
    if p.loss == "soft_centers":
        return mk.class_centers(features, other.get("logits", p.logits), backend=backend)
    if p.loss == "hard_centers":
        return mk.class_centers(features, p.labels, num_classes=p.shape.classes, backend=backend)
    logits = mk.center_similarity(features, other.get("centers", p.centers), scale=SCALE, backend=backend)
    return logits if p.loss == "cosine" else mk.cross_entropy(logits, p.target, backend=backend)


def bare_products(p: CentersProblem, phase: str) -> None:
    """W X [K, N], or of soft centers A X^T [K, C]; in a step both, and A^T W [N, C]."""
    x, w = p.features.detach().flatten(2), p.centers.detach()
    wx, wa = p.buffers
    for image in range(p.shape.batch):
        rows, a = w[image] if p.shape.own else w, p.logits.detach()[image].flatten(1)
        if p.loss != "soft_centers" or phase == "step":
            torch.mm(rows, x[image], out=wx)
        if p.loss == "soft_centers" or phase == "step":
            torch.mm(a, x[image].t())
        if phase == "step":
            torch.mm(rows.t(), a, out=wa)


@functools.cache
def contestants(loss: str, device: str = machine.DEVICE) -> tuple[Contestant, ...]:
    """The peers of a job, then our backends, then the products that they are held against."""

    def contestant(name: str, values: Callable[[CentersProblem], Tensor], **about: Any) -> Contestant:
        timed = values if loss == "cross_entropy" else lambda p: Given.apply(values(p), p.weights)
        return Contestant(name, timed, checked=lambda p: weighed(p, values(p)), **about)

    def written(function: Callable[..., Tensor], *names: str, extra: tuple[Any, ...] = ()) -> tuple[Contestant, ...]:
        """A peer's function of the tensors of a problem, eager and compiled."""
        arguments = lambda p: [*(getattr(p, name) for name in names), *extra]  # noqa: E731
        return (
            contestant("eager", lambda p: function(*arguments(p))),
            contestant("torch.compile", lambda p: peers.compiled(function)(*arguments(p))),
        )

    no_linear = None if hasattr(F, "linear_cross_entropy") else "this torch has none"
    rivals: dict[str, tuple[Contestant, ...]] = {
        "cosine": (
            *written(peers.cosine_logits, "features", "centers", extra=(SCALE,)),
            contestant("convolution", lambda p: peers.cosine_convolution(p.features, p.centers, SCALE)),
        ),
        "soft_centers": written(peers.soft_class_centers, "features", "logits"),
        "hard_centers": (
            contestant("eager", lambda p: peers.hard_class_centers(p.features, p.labels, p.shape.classes, IGNORE)),
        ),
        "cross_entropy": (
            *written(peers.cosine_cross_entropy, "features", "centers", "target", extra=(SCALE, IGNORE)),
            contestant(
                "F.linear_cross_entropy",
                lambda p: peers.linear_cross_entropy(p.features, p.centers, p.target, SCALE, IGNORE),
                missing=no_linear,
            ),
        ),
    }
    own = tuple(
        contestant(
            f"metricseg {name}",
            functools.partial(ours, backend=name),
            ours=True,
            missing=backends.why_not("centers", name, device),
        )
        for name in getattr(FAMILIES["centers"], device)
        if name != "reference"
    )
    bare = Contestant("bare products", rivals[loss][0].loss, bare=bare_products)
    return (*rivals[loss], *own) if loss == "hard_centers" else (*rivals[loss], *own, bare)


def entrants(shape: Centers, loss: str) -> tuple[Contestant, ...]:
    """Who runs on a shape. A compilation takes half a minute and sits out where a shape is one of many, and from tf32;
    torch's loss of a linear layer knows labels at the features only."""
    absent = set()
    if loss == "cross_entropy":
        absent = {"F.linear_cross_entropy"} if shape.labels else {"torch.compile"}
    elif shape not in (SETS.main if loss == "cosine" else SETS.soft[:1]) or shape.precision != "highest":
        absent = {"torch.compile", "convolution"}
    return tuple(contestant for contestant in contestants(loss) if contestant.name not in absent)


def problems() -> Iterator[tuple[Centers, str, tuple[str, ...]]]:
    """(shape, job, phases). The sweep is for plots."""
    for shape in SETS.main:
        yield shape, "cosine", race.PHASES
    for shape in (*SETS.side, *SETS.sweep):
        yield shape, "cosine", ("step",)
    for loss, part in (("soft_centers", SETS.soft), ("hard_centers", SETS.hard), ("cross_entropy", SETS.loss)):
        for shape in part:
            yield shape, loss, ("step",)


def quick(shape: Centers, loss: str) -> bool:
    """Whether a race is one of the quick subset."""
    return shape is SETS.main[0] and loss == "cosine"


def run_race(shape: Centers, loss: str, phases: tuple[str, ...], processes: memory.FreshProcesses | None) -> Any:
    """(problem, results) of all contestants."""
    device = machine.DEVICE
    problem = CentersProblem(shape, loss, device)
    meter = race.peak_meter(problem, contestants, processes, device)
    with race.precision(shape.precision):
        budget = race.BUDGET[device] * len(phases) / 2  # of many races each takes a part
        results = race.run(problem, entrants(shape, loss), device, meter, phases, budget)
    return problem, results


def small_cases(backend: str, device: str) -> None:
    """No size a multiple of a tile, shared centers and each image's own, labels out of range, odd strides."""
    for channels, classes, own, dtype, layout in (
        (37, 19, False, torch.float32, torch.contiguous_format),
        (64, 150, True, torch.bfloat16, torch.channels_last),
        (5, 847, False, torch.float16, torch.contiguous_format),
    ):
        generator = torch.Generator().manual_seed(0)
        sizes = (2, channels, 11, 26), (2, classes, 11, 13), (*(2,) * own, classes, channels)
        x, z, w = (torch.randn(size, generator=generator).to(device, dtype) for size in sizes)
        x = x[..., ::2] if layout == torch.contiguous_format else x[..., :13].contiguous(memory_format=layout)
        x, z, w = (t.requires_grad_() for t in (x, z, w))
        labels = torch.randint(classes, (2, 11, 13), generator=generator).to(device, torch.int32)
        labels[:, 0, :3] = 255
        kwargs = {"num_classes": classes, "return_present": True, "backend": backend}
        logits, pull = mk.center_similarity(x, w, pull_labels=labels, backend=backend)
        far = mk.center_similarity(x, w, metric="euclidean", scale=0.1, backend=backend)
        (soft, _), (hard, present) = (mk.class_centers(x, a, **kwargs) for a in (z, labels))
        loss = sum(t.float().mean() for t in (logits, far, soft, hard)) + pull + mk.center_push(hard, present)
        loss.backward()
        check_finite(loss, x.grad, z.grad, w.grad)
        if device == "cuda":  # on the CPU it is an error
            labels[0, 1, 1] = 2**30  # the pull is NaN, and so are the centers of its image
            assert bool(mk.center_pull(x, w, labels, backend=backend).isnan())
            hard = mk.class_centers(x, labels, **kwargs)[0]
            assert bool(hard[0].isnan().all() and hard[1].isfinite().all())
        print(f"{backend} centers {channels} x {classes} {dtype}: done", flush=True)


@pytest.mark.benchmark(timer=entry.REPLAY)
@pytest.mark.parametrize(
    ("shape", "loss", "phase", "name", "phases"), list(entry.parameters(problems(), entrants, quick))
)
def test_centers(shape, loss, phase, name, phases, raced, enter) -> None:
    entered = entrants(shape, loss)
    problem, results = raced((shape, loss), entered, name, functools.partial(run_race, shape, loss, phases))
    with race.precision(shape.precision):
        figures = entry.report(problem, entered, results, name, phase, machine.DEVICE)
    arithmetic = shape.dtype if shape.precision == "highest" else "tf32"
    output_mib = problem.output_bytes(phase) / 2**20
    if figures["peak_mib"] is not None:
        figures["times_outputs"] = figures["peak_mib"] / output_mib
    figures |= {"op": "centers", "shape": str(shape), "loss": loss, "dtype": arithmetic}
    figures |= {
        "series": f"k{shape.classes}" if shape in (*SETS.main, *SETS.sweep) and loss == "cosine" else None,
        "size": shape.pixels,
        "size_label": " x ".join(map(str, shape.cells)),
        "floor_mib": output_mib,
        "size_name": "feature grid",
        "floor_name": "outputs and gradients",
        "title": f"cosine logits of class centers, forward + backward: batch {shape.batch}, {shape.channels} channels, "
        f"{shape.classes} classes, {arithmetic}",
    }
    enter(figures, results[name].times[phase], f"{shape} {loss} {phase}")
