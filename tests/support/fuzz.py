"""Random calls of every op on the CPU against the reference in fp64: `python -m fuzz FAMILY [COUNT] [FIRST_SEED]`.

Sizes from 0 on, every dtype of values and labels, every option, arguments as strided, offset, transposed and expanded
views, now and then a NaN, an infinity or a huge value. A seed names a call.
"""

from __future__ import annotations

import importlib
import random
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import places  # noqa: F401  (finds the families)
import torch
from tolerances import FLOORS
from torch import Tensor
from views import VIEWS

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

    def maps(self, cells: tuple[int, int], pixels: tuple[int, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(h, w) and (H, W) up to these, or in every third call of a volume (d, h, w) and (D, H, W)."""
        deep = self.one_of((), (), (5,))
        return tuple(map(self.size, (*deep, *cells))), tuple(map(self.size, (*deep, *pixels)))

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


def draw_call(family: str, seed: int) -> tuple[Draw, Call]:
    """The call of a seed, as the module <family>_calls draws it."""
    draw = Draw(seed)
    return draw, importlib.import_module(f"{family}_calls").draw_call(draw)


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
    draw, call = draw_call(family, seed)
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
