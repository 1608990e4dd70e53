"""The maps and centers that every backend of the centers family is held against, and the jobs done with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from tolerances import assert_as_good, assert_gradient, lay_out, skip_unsupported
from torch import Tensor

import metricseg_kernels as mk


class Case(NamedTuple):
    id: str
    size: tuple[int, int, int]  # (B, h, w)
    channels: int = 16
    classes: int = 5
    centers: str = "shared"  # shared, own (each image's)
    layout: str = "nchw"  # nchw, nhwc, strided, channels (a slice), rows (a slice), expanded (one column)
    labels: str = "mixed"  # mixed (a fifth ignored), full, ignored, absent (the lower half of the classes has no pixel)
    label_dtype: torch.dtype = torch.int64
    ignore_index: int = 255
    zeros: bool = False  # a third of the pixels and the first center have the norm 0
    magnitude: float = 1.0
    center_magnitude: float = 1.0
    scale: float = 15.0


CASES = [
    Case("primes", (2, 7, 11), 13, 19),
    Case("powers-of-two", (2, 8, 16), 64, 16, label_dtype=torch.uint8),
    Case("one-class", (2, 5, 7), 12, 1, "own"),
    Case("two-classes", (2, 4, 9), 24, 2, label_dtype=torch.int32),
    Case("eleven-classes", (3, 6, 5), 40, 11, "own", label_dtype=torch.uint8),
    Case("ade20k", (1, 3, 5), 24, 150, label_dtype=torch.uint8),
    Case("ade20k-full", (1, 2, 3), 8, 847),
    Case("ade20k-full-own", (2, 1, 3), 5, 847, "own", label_dtype=torch.int32),
    Case("odd-channels", (2, 3, 8), 33, 7),
    Case("many-channels", (1, 3, 6), 512, 7),
    Case("most-channels", (1, 2, 3), 2048, 3, "own"),
    Case("one-pixel", (1, 1, 1), 16, 3, labels="full"),
    Case("one-row", (2, 1, 37), 8, 6),
    Case("one-column", (1, 41, 1), 8, 4, "own"),
    Case("no-images", (0, 4, 6)),
    Case("no-images-own", (0, 4, 6), centers="own"),
    Case("no-pixels", (2, 0, 6)),
    Case("no-pixels-own", (2, 0, 6), centers="own"),
    Case("no-channels", (2, 3, 4), 0),
    Case("channels-last", (2, 5, 7), 19, 6, layout="nhwc"),
    Case("channels-last-own", (2, 5, 7), 32, 6, "own", layout="nhwc", label_dtype=torch.uint8),
    Case("channels-last-one-image", (1, 3, 4), 5, 150, layout="nhwc"),
    Case("strided", (2, 4, 6), 9, layout="strided"),
    Case("channel-slice", (2, 4, 6), 9, layout="channels"),
    Case("row-slice", (2, 4, 6), 9, centers="own", layout="rows"),
    Case("expanded", (2, 4, 6), 9, layout="expanded"),
    Case("zeros", (2, 4, 9), zeros=True),
    Case("zeros-own", (2, 4, 9), centers="own", zeros=True, layout="nhwc"),
    Case("ignored", (2, 4, 6), labels="ignored"),
    Case("absent", (2, 4, 6), classes=8, centers="own", labels="absent"),
    Case("ignore-0", (2, 4, 6), ignore_index=0),
    Case("ignore-negative", (2, 4, 6), ignore_index=-100, label_dtype=torch.int32),
    Case("tiny", (2, 4, 6), magnitude=1e-3, center_magnitude=1e-2, scale=0.5),
    Case("huge", (2, 4, 6), magnitude=1e4, center_magnitude=1e3),
    Case("cold", (2, 4, 6), centers="own", scale=200.0),
]
NAMED = {c.id: c for c in CASES}
CASE_PARAMS = [pytest.param(c, id=c.id) for c in CASES]
EMPTY = ("no-images", "no-images-own", "no-pixels", "no-pixels-own")


class Inputs(NamedTuple):
    features: Tensor  # [B, C, h, w]
    centers: Tensor  # [K, C] or [B, K, C]
    logits: Tensor  # [B, K, h, w]
    labels: Tensor  # [B, h, w]


def make(case: Case, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Inputs:
    """The inputs of a case; the same numbers for every dtype up to rounding."""
    rng = torch.Generator().manual_seed(sum(map(ord, case.id)))
    batch, height, width = case.size
    maps = (batch, case.channels, height, width)
    features = torch.randn(maps, generator=rng, dtype=torch.float64) * case.magnitude
    rows = (case.classes, case.channels) if case.centers == "shared" else (batch, case.classes, case.channels)
    centers = torch.randn(rows, generator=rng, dtype=torch.float64) * case.center_magnitude
    logits = 2 * torch.randn(batch, case.classes, height, width, generator=rng, dtype=torch.float64)
    if case.zeros:
        features[..., ::3], centers[..., 0, :] = 0, 0
    lowest = case.classes // 2 if case.labels == "absent" else 0
    labels = torch.randint(lowest, case.classes, case.size, generator=rng)
    if case.labels in ("mixed", "absent"):
        labels[torch.rand(case.size, generator=rng) < 0.2] = case.ignore_index
    if case.labels == "ignored":
        labels.fill_(case.ignore_index)
    return Inputs(
        _lay_out(features.to(dtype), case.layout).to(device),
        centers.to(device, dtype),
        lay_out(logits.to(dtype), case.layout).to(device),
        labels.to(device, case.label_dtype),
    )


def _lay_out(x: Tensor, layout: str) -> Tensor:
    """As `cases.lay_out`; and slices whose planes, or whose rows, lie close together."""
    if layout == "channels":
        return torch.stack([x, torch.full_like(x, torch.nan)], 2).flatten(1, 2)[:, ::2]
    if layout == "rows":
        return torch.stack([torch.full_like(x, torch.nan), x], 3).flatten(2, 3)[:, :, 1::2]
    if layout == "expanded":
        return x[:1, ..., :1].expand(x.shape)
    return lay_out(x, layout)


class Job(NamedTuple):
    """What is asked of the family: outputs, and the inputs that learn."""

    call: Callable[..., Any]  # call(inputs, case, **kwargs) -> output or outputs
    learn: tuple[str, ...]


def _similarity(metric: str) -> Callable[..., Any]:
    return lambda i, c, **kw: mk.center_similarity(
        i.features, i.centers, metric=metric, scale=c.scale if metric == "cosine" else 0.3, **kw
    )


def _pulled(i: Inputs, c: Case, **kw: Any) -> tuple[Tensor, Tensor]:
    return mk.center_similarity(
        i.features, i.centers, scale=c.scale, pull_labels=i.labels, ignore_index=c.ignore_index, **kw
    )


def _soft(average: str) -> Callable[..., Any]:
    return lambda i, c, **kw: mk.class_centers(i.features, i.logits, average=average, **kw)


def _hard(average: str) -> Callable[..., Any]:
    return lambda i, c, **kw: mk.class_centers(
        i.features, i.labels, num_classes=c.classes, average=average, ignore_index=c.ignore_index, **kw
    )


JOBS = {
    "cosine": Job(_similarity("cosine"), ("features", "centers")),
    "dot": Job(_similarity("dot"), ("features", "centers")),
    "euclidean": Job(_similarity("euclidean"), ("features", "centers")),
    "pulled": Job(_pulled, ("features", "centers")),
    "pull": Job(
        lambda i, c, **kw: mk.center_pull(i.features, i.centers, i.labels, ignore_index=c.ignore_index, **kw),
        ("features",),
    ),
    "soft": Job(_soft("mass"), ("features", "logits")),
    "soft-area": Job(_soft("area"), ("features", "logits")),
    "hard": Job(_hard("mass"), ("features",)),
    "hard-area": Job(_hard("area"), ("features",)),
}
METRICS = ("cosine", "dot", "euclidean")


def learning(inputs: Inputs, names: tuple[str, ...]) -> Inputs:
    """New leaves of the same layout, of which those named require a gradient."""
    leaves = {name: getattr(inputs, name).detach().requires_grad_(name in names) for name in Inputs._fields[:3]}
    return inputs._replace(**leaves)


def upstream_for(output: Tensor, dtype: torch.dtype) -> Tensor:
    """A gradient that every dtype gets alike: that of a 0-d output weighs as much as a map."""
    rng = torch.Generator().manual_seed(output.numel())
    upstream = torch.randn(output.shape, generator=rng, dtype=torch.float64).to(dtype)
    return (upstream if output.ndim else upstream.new_tensor(100.0)).to(output)


def run(job: Job, inputs: Inputs, case: Case, learn: tuple[str, ...] | None = None, **kwargs: Any):
    """(outputs, gradients), the upstream gradients rounded to the dtype that `dtype` names, or to the features'."""
    dtype = kwargs.pop("dtype", inputs.features.dtype)
    inputs = learning(inputs, job.learn if learn is None else learn)
    outputs = job.call(inputs, case, **kwargs)
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    leaves = [getattr(inputs, name) for name in (job.learn if learn is None else learn)]
    learnt = [o for o in outputs if o.requires_grad]
    grads = torch.autograd.grad(learnt, leaves, [upstream_for(o, dtype) for o in learnt])
    return [o.detach() for o in outputs], list(grads)


def double(inputs: Inputs) -> Inputs:
    return Inputs(*(t.cpu().double() if t.is_floating_point() else t.cpu() for t in inputs))


def against_reference(name: str, case: Case, dtype: torch.dtype, backend: str, device: str,
                      learn: tuple[str, ...] | None = None, shared: bool = False) -> tuple[list[Tensor], list[Tensor]]:  # fmt: skip
    """One call on the backend, in plain PyTorch, and in fp64; each held against the last. shared: of the features'
    gradient, as in `assert_gradient`."""
    skip_unsupported(backend, dtype)
    job, inputs = JOBS[name], make(case, dtype, device)
    truth = run(job, double(inputs), case, learn, dtype=dtype, backend="reference")
    plain = run(job, inputs, case, learn, backend="reference")
    got = run(job, inputs, case, learn, backend=backend)
    for ours, simple, exact in zip(got[0], plain[0], truth[0], strict=True):
        assert ours.dtype == simple.dtype
        assert_as_good(ours, simple, exact, dtype)
    for leaf, ours, simple, exact in zip(learn or job.learn, got[1], plain[1], truth[1], strict=True):
        assert ours.dtype == dtype and ours.shape == getattr(inputs, leaf).shape
        if dtype == torch.float64:  # the cosine of thousands of products is known no better than its bound
            assert_as_good(ours, simple, exact, dtype)
        else:
            assert_gradient(ours, simple, exact, dtype, shared and leaf == "features")
    return got


def memory_step(
    job: str, layout: str, dtype: str, size: tuple[int, int, int], channels: int, classes: int
) -> Callable[[], None]:
    """One step of the cpu backend, made from nothing, for a fresh process that measures memory: class centers, or the
    loss at twice the resolution, and the gradients."""
    case = Case("memory", size, channels, classes, layout=layout, label_dtype=torch.uint8)
    inputs = make(case, getattr(torch, dtype))
    inputs = learning(inputs, JOBS[job].learn if job in JOBS else JOBS["cosine"].learn)
    target = inputs.labels.repeat_interleave(2, 1).repeat_interleave(2, 2)

    def step() -> None:
        if job == "loss":
            logits = mk.center_similarity(inputs.features, inputs.centers, backend="cpu")
            mk.cross_entropy(logits, target, backend="cpu").backward()
        else:
            centers = JOBS[job].call(inputs, case, backend="cpu")
            centers.backward(torch.ones_like(centers))
        for leaf in inputs[:3]:
            leaf.grad = None

    return step


# what Triton's interpreter keeps: cases in fp32, and tests
INTERPRETED = (
    "primes",
    "channels-last-own",
    "zeros-own",
    "no-channels",
    "one-class",
    "ade20k",
    "one-column",
    "no-pixels-own",
    "strided",
    "channel-slice",
    "ignored",
    "absent",
    "huge",
)
INTERPRETED_TESTS = {
    "test_values_and_gradients",
    "test_opcheck_of_similarity",
    "test_opcheck_of_folding",
    "test_opcheck_of_class_means",
    "test_compile_fullgraph",
}
# cases that run in other dtypes as well, if kernels are compiled
IN_EVERY_DTYPE = {"ade20k", "channels-last-own", "huge", "primes", "zeros-own"}
