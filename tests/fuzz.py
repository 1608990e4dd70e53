"""Random calls of every op on the CPU against the reference in fp64: `python -m fuzz FAMILY [COUNT] [FIRST_SEED]`.

Sizes from 0 on, every dtype of values and labels, every option, arguments as strided, offset, transposed and expanded
views, now and then a NaN, an infinity or a huge value. A seed names a call.
"""

from __future__ import annotations

import math
import random
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from cases import FLOORS
from test_views import VIEWS
from torch import Tensor

import metricseg_kernels as mk

SPECIAL = (float("nan"), float("inf"), -float("inf"), 1e4)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
IGNORED = ("auto", None, 255, 0, -1, -100, 300)


class Call(NamedTuple):
    function: Callable[..., Any]
    tensors: dict[str, Tensor]
    options: dict[str, Any]
    learns: tuple[str, ...]


class Draw:
    """Random arguments, all from one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.rng = torch.Generator().manual_seed(seed)
        self.dtype = self.one_of(*DTYPES)
        self.special = self.random.random() < 0.1

    def one_of(self, *values: Any) -> Any:
        return self.random.choice(values)

    def size(self, high: int, low: int = 1) -> int:
        return self.random.randint(low, high)

    def values(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        scale = self.one_of(1e-3, 1.0, 1.0, 5.0)
        found = (torch.randn(shape, generator=self.rng) * scale).to(dtype or self.dtype)
        if self.special and found.numel() and self.random.random() < 0.5:
            found.view(-1)[self.random.randrange(found.numel())] = self.one_of(*SPECIAL)
        return found

    def labels(self, classes: int, ignore_index: Any, *shape: int) -> Tensor:
        found = torch.randint(0, classes, shape, generator=self.rng)
        dtype = self.one_of(torch.uint8, torch.int32, torch.int64)
        ignored = 255 if ignore_index == "auto" else ignore_index
        if ignored is not None and (dtype != torch.uint8 or 0 <= ignored <= 255):
            found = torch.where(torch.rand(shape, generator=self.rng) < 0.2, ignored, found)
        return found.to(dtype)

    def factors(self, count: int) -> Tensor | None:
        return self.one_of(None, torch.rand(count, generator=self.rng).to(self.dtype))


def focal(draw: Draw) -> Call:
    ignore_index, classes = draw.one_of(*IGNORED), draw.size(9, 2)
    batch, cells, pixels = draw.size(2, 0), (draw.size(7), draw.size(7)), (draw.size(15), draw.size(15))
    tensors = {"input": draw.values(batch, classes, *cells)}
    agree = [c == p for c, p in zip(cells, pixels, strict=True)]
    if draw.special and not all(agree):
        # F.interpolate weighs a cell that is its own neighbor by 1 and by 0, which makes NaN of an infinity
        edge = torch.full(cells, any(agree))
        edge[-1] = edge[:, -1] = True
        tensors["input"][..., edge] = tensors["input"][..., edge].nan_to_num(torch.nan, 1e4, -1e4)
    options = {"ignore_index": ignore_index, "align_corners": draw.one_of(False, True)}
    function = draw.one_of(mk.focal_loss, mk.cross_entropy, mk.sigmoid_focal_loss, mk.ohem_cross_entropy)
    tensors["target"] = draw.labels(classes, ignore_index, batch, *pixels)
    if function is mk.ohem_cross_entropy:
        # in fp64, and with thresholds clearly apart from the pixels that they keep: among equal ones rounding decides
        tensors["input"] = tensors["input"].double()
        nll = mk.cross_entropy(**tensors, **options, reduction="none", backend="reference")
        ignored = 255 if ignore_index in ("auto", None) else ignore_index
        nll = nll[tensors["target"] != ignored].sort(descending=True).values
        steps = 1 + (nll[:-1] - nll[1:] > 1e-9).nonzero().view(-1)
        options["min_kept"] = draw.one_of(0, 10**6, draw.one_of(10**6, *steps.tolist()))
        options["thresh"] = draw.one_of(*(t for t in (0.1, 0.7, 1.0) if not ((nll + math.log(t)).abs() < 1e-9).any()))
        return Call(function, tensors, options, ("input",))
    options["reduction"] = draw.one_of("mean", "sum", "none")
    if draw.one_of(False, False, True):
        tensors["pixel_weight"] = torch.rand(batch, *pixels, generator=draw.rng).to(draw.dtype)
    if options["reduction"] == "mean" and draw.one_of(False, True):
        options["avg_factor"] = draw.one_of(0, 3.0, torch.tensor(7))
    if function is not mk.cross_entropy:
        options["gamma"] = draw.one_of(0.0, 0.5, 1.0, 2.0, 3.7)
    if function is mk.sigmoid_focal_loss:
        options["alpha"] = draw.one_of(-1.0, 0.25, 1.0)
        if draw.one_of(False, True):
            tensors["target"] = torch.rand(batch, classes, *pixels, generator=draw.rng).to(draw.dtype)
    else:
        options["label_smoothing"] = draw.one_of(0.0, 0.1, 1.0)
        if (weight := draw.factors(classes)) is not None:
            tensors["weight"] = weight
    return Call(function, tensors, options, ("input",))


def anchors(draw: Draw) -> Call:
    shape = (draw.size(2, 0), draw.size(9), draw.size(9))
    if draw.one_of(False, True):
        pixels = shape[0] * shape[1] * shape[2]
        index = torch.randint(-1, pixels, (draw.size(20, 0),), generator=draw.rng) if pixels else torch.full((3,), -1)
        tensors = {"features": draw.values(shape[0], draw.size(9, 0), *shape[1:]), "index": index}
        return Call(mk.gather_pixels, tensors, {"normalize": draw.one_of(False, True)}, ("features",))
    ignore_index, classes = draw.one_of(*IGNORED), draw.size(40)
    tensors = {"labels": draw.labels(classes, ignore_index, *shape)}
    options = {
        "strategy": draw.one_of("hard", "random", "semi_hard", "boundary"), "num_classes": classes, "seed": draw.size(99),
        "max_samples": draw.size(60), "max_views": draw.size(9), "min_pixels": draw.one_of(None, 0, 1, 5),
        "radius": draw.size(3), "ignore_index": ignore_index,
    }  # fmt: skip
    if options["strategy"] in ("hard", "semi_hard"):
        tensors["predictions"] = draw.labels(classes, None, *shape)
        tensors["confidence"] = draw.values(*shape)
    return Call(mk.sample_anchors, tensors, options, ())


def contrast(draw: Draw) -> Call:
    depth, classes, ignored = draw.size(20, 0), draw.size(5), draw.one_of(-1, 0, 255, 10**6)
    tensors, sides = {}, ("anchor", "contrast") if draw.one_of(False, True) else ("anchor",)
    ids = draw.one_of(False, False, True)
    for side in sides:
        rows = draw.size(40, 0)
        name = "anchors" if side == "anchor" else "contrast"
        tensors[name] = draw.values(rows, depth) * (0.3 if draw.dtype == torch.float16 else 1.0)
        tensors[f"{side}_labels"] = draw.labels(classes, ignored, rows)
        if ids:
            tensors[f"{side}_ids"] = torch.randint(0, 30, (rows,), generator=draw.rng)
    learns = ("anchors", "contrast")[: len(sides)]
    options: dict[str, Any] = {"ignore_label": ignored}
    if draw.one_of(False, True):
        options.update(margin=draw.one_of(0.5, 2.0), positive_margin=draw.one_of(0.0, 0.3), power=draw.one_of(1, 2),
                       average=draw.one_of("pairs", "nonzero"))  # fmt: skip
        # at the end of a margin rounding decides
        tensors = {n: t.double() if t.is_floating_point() else t for n, t in tensors.items()}
        return Call(mk.margin_contrast_loss, tensors, options, learns)
    options.update(temperature=draw.one_of(0.1, 1.0), base_temperature=draw.one_of(None, 0.07),
                   denominator=draw.one_of("negatives", "all"), reduction=draw.one_of("mean", "sum", "none"))  # fmt: skip
    return Call(mk.pixel_contrast_loss, tensors, options, learns)


def centers(draw: Draw) -> Call:
    ignore_index, classes, channels = draw.one_of(*IGNORED), draw.size(9), draw.size(20, 0)
    shape = (draw.size(2, 0), draw.size(9), draw.size(9))
    tensors = {"features": draw.values(shape[0], channels, *shape[1:])}
    if draw.one_of(False, True):
        options: dict[str, Any] = {"normalize": draw.one_of("mass", "area"), "return_present": True}
        if draw.one_of(False, True):
            tensors["assignment"] = draw.values(shape[0], classes, *shape[1:])
            return Call(mk.class_centers, tensors, options, ("features", "assignment"))
        tensors["assignment"] = draw.labels(classes, ignore_index, *shape)
        options.update(num_classes=classes, ignore_index=ignore_index)
        return Call(mk.class_centers, tensors, options, ("features",))
    own = draw.one_of((), (shape[0],))
    tensors["centers"] = draw.values(*own, classes, channels)
    options = {"metric": draw.one_of("cosine", "dot", "euclidean"), "scale": draw.one_of(0.5, 15.0)}
    if options["metric"] == "cosine" and draw.one_of(False, True):
        tensors["pull_labels"] = draw.labels(classes, ignore_index, *shape)
        options["ignore_index"] = ignore_index
    return Call(mk.center_similarity, tensors, options, ("features", "centers"))


FAMILIES = {"focal": focal, "anchors": anchors, "contrast": contrast, "centers": centers}


def run(call: Call, tensors: dict[str, Tensor], backend: str) -> list[Tensor]:
    """Outputs, and the gradients of all of them together."""
    leaves = {n: t.detach().requires_grad_(n in call.learns) for n, t in tensors.items()}
    found = call.function(**leaves, **call.options, backend=backend)
    outputs = [found] if isinstance(found, Tensor) else list(found)
    learning = [o for o in outputs if o.requires_grad]
    if learning:
        upstream = [torch.linspace(0.5, 1.5, max(o.numel(), 1))[: o.numel()].view(o.shape).to(o) for o in learning]
        outputs += torch.autograd.grad(learning, [leaves[n] for n in call.learns], upstream)
    return [o.detach() for o in outputs]


def check(family: str, seed: int) -> None:
    """One call. The error is at most eight times plain PyTorch's in the same dtype, plus a floor on the scale of what
    the call gives; a NaN in the truth shows, if not in the same output. With special values, other NaN may stand beside it."""
    draw = Draw(seed)
    call = FAMILIES[family](draw)
    views = {n: VIEWS[draw.one_of(*VIEWS)](t) if draw.one_of(False, True) and t.numel() else t
             for n, t in call.tensors.items()}  # fmt: skip
    wide = {n: t.double() if t.is_floating_point() else t for n, t in views.items()}
    truth, plain, got = run(call, wide, "reference"), run(call, views, "reference"), run(call, views, "cpu")
    scale = max([1.0, *(t.double().norm().item() for t in truth if t.isfinite().all())])
    for i, (ours, simple, exact) in enumerate(zip(got, plain, truth, strict=True)):
        assert ours.dtype == simple.dtype and ours.shape == exact.shape, i
        if not ours.is_floating_point():
            assert torch.equal(ours, simple), i
        elif exact.isnan().any():
            assert not all(o.isfinite().all() for o in got), i
        elif exact.isfinite().all() and simple.isfinite().all() and (ours.isfinite().all() or not draw.special):
            error, plain_error = ((t.double() - exact).norm().item() for t in (ours, simple))
            assert error <= 8 * plain_error + 4 * FLOORS[ours.dtype] * scale, (i, error, plain_error, scale)


def main() -> int:
    family = sys.argv[1]
    count, first = int(sys.argv[2]) if sys.argv[2:] else 3000, int(sys.argv[3]) if sys.argv[3:] else 0
    failures, start = 0, time.perf_counter()
    for seed in range(first, first + count):
        try:
            check(family, seed)
        except Exception as error:
            failures += 1
            print(f"{family} seed {seed}: {type(error).__name__}: {str(error)[:300]}", flush=True)
        if seed % 500 == 499:
            print(f"{seed + 1 - first} of {count}, {failures} failed, {time.perf_counter() - start:.0f} s", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
