"""Bits of the CPU kernels before and after a change: `python -m bits FILE` saves them, or compares if FILE exists.

The calls are random ones of `fuzz`, each named by its seed, and larger ones that take every path of a walk over tiles.
Bits depend on the machine, on torch and on the number of threads: both runs must have the same.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from fuzz import Call, draw_call, run
from torch import Tensor

import metricseg_kernels as mk
from metricseg_kernels.core.registry import FAMILIES

SEEDS = 150


def large() -> Iterator[tuple[str, Call]]:
    """Several tiles, panels and chunks, none full."""
    rng = torch.Generator().manual_seed(0)

    def rows(count: int, depth: int) -> Tensor:
        return torch.nn.functional.normalize(torch.randn(count, depth, generator=rng))

    def labels(classes: int, *shape: int) -> Tensor:
        return torch.randint(-1, classes, shape, generator=rng)

    for dtype in (torch.float32, torch.bfloat16):
        for loss, options in (
            (mk.pixel_contrast_loss, {"temperature": 0.1}),
            (mk.pixel_contrast_loss, {"temperature": 0.1, "denominator": "all"}),
            (mk.pixel_contrast_loss, {"temperature": 0.01, "reduction": "none"}),
            (mk.margin_contrast_loss, {"margin": 1.5, "average": "nonzero"}),
            (mk.margin_contrast_loss, {"margin": 0.5, "power": 1}),
        ):
            x = {"anchors": rows(2500, 70).to(dtype), "anchor_labels": labels(19, 2500)}
            y = {"contrast": rows(3100, 70).to(dtype), "contrast_labels": labels(19, 3100)}
            name = f"{loss.__name__} {options} {dtype}"
            yield f"{name} alone", Call(loss, x, options, ("anchors",))
            yield f"{name} two sets", Call(loss, {**x, **y}, options, ("anchors", "contrast"))
        features = torch.randn(2, 130, 33, 47, generator=rng).to(dtype)
        for classes in (19, 150):
            centers = torch.randn(classes, 130, generator=rng).to(dtype)
            yield (f"center_similarity {classes} {dtype}",
                   Call(mk.center_similarity, {"features": features, "centers": centers}, {}, ("features", "centers")))  # fmt: skip
            logits = torch.randn(2, classes, 33, 47, generator=rng).to(dtype)
            soft = {"features": features, "assignment": logits}
            yield f"class_centers {classes} {dtype}", Call(mk.class_centers, soft, {}, tuple(soft))
            target = labels(classes, 2, 130, 190) & 255
            for align_corners in (False, True):
                options = {"gamma": 1.5, "align_corners": align_corners}
                yield (f"focal_loss {classes} {align_corners} {dtype}",
                       Call(mk.focal_loss, {"input": logits, "target": target}, options, ("input",)))  # fmt: skip
        index = torch.randint(0, 2 * 33 * 47, (900,), generator=rng)
        yield (f"gather_pixels {dtype}",
               Call(mk.gather_pixels, {"features": features, "index": index}, {"normalize": True}, ("features",)))  # fmt: skip


def main() -> int:
    path = Path(sys.argv[1])
    calls = {f"{family} seed {seed}": draw_call(family, seed)[1] for family in FAMILIES for seed in range(SEEDS)}
    calls.update(large())
    found = {name: run(call, call.tensors, "cpu") for name, call in calls.items()}
    if not path.exists():
        torch.save(found, path)
        print(f"{len(found)} calls saved")
        return 0
    kept = torch.load(path)
    differ = [n for n in kept | found if not same(kept.get(n), found.get(n))]
    print(f"{len(found)} calls, {len(differ)} differ", *differ, sep="\n")
    return 1 if differ else 0


def same(before: list[Tensor] | None, after: list[Tensor] | None) -> bool:
    """The same values, NaN in the same places."""
    if before is None or after is None or len(before) != len(after):
        return False
    return all(
        a.dtype == b.dtype and torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())
        for a, b in zip(before, after, strict=True)
    )


if __name__ == "__main__":
    sys.exit(main())
