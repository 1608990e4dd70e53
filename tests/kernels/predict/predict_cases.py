"""Cases of the predict family: maps of several sizes, layouts and flags, and what they are resized to."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from tolerances import lay_out
from torch import Tensor


class Case(NamedTuple):
    maps: tuple[tuple[int, ...], ...]  # (h, w) of each, of a volume (d, h, w)
    size: tuple[int, ...]
    classes: int = 5
    batch: int = 2
    flipped: bool | tuple[bool, ...] = False
    weights: tuple[float, ...] | None = None
    align_corners: bool = False
    layout: str = "nchw"
    id: str = ""

    def options(self) -> dict[str, Any]:
        flipped = list(self.flipped) if isinstance(self.flipped, tuple) else self.flipped
        weights = None if self.weights is None else list(self.weights)
        return {"flipped": flipped, "weights": weights, "align_corners": self.align_corners}


CASES = {
    "one-pixel": Case(((1, 1),), (1, 1), classes=2, batch=1),
    "primes": Case(((5, 7),), (23, 29)),
    "same-size": Case(((7, 9),), (7, 9)),
    "same-rows": Case(((7, 9),), (7, 31)),
    "quarter": Case(((6, 20),), (24, 80), classes=19),
    "smaller": Case(((13, 37),), (5, 9)),
    "one-cell": Case(((1, 1),), (6, 40)),
    "corners": Case(((5, 7),), (17, 41), align_corners=True),
    "corners-of-one-label": Case(((5, 7),), (1, 1), align_corners=True),
    "flipped": Case(((5, 7),), (20, 37), flipped=True),
    "nhwc": Case(((5, 9),), (20, 36), layout="nhwc"),
    "strided": Case(((5, 9),), (20, 36), layout="strided"),
    "many-classes": Case(((3, 5),), (12, 21), classes=300, batch=1),
    "two-maps": Case(((5, 7), (9, 13)), (23, 29)),
    "scales-and-flips": Case(((3, 5), (3, 5), (6, 10), (6, 10), (9, 15), (9, 15)), (24, 40), flipped=(False, True) * 3),
    "weights": Case(((5, 7), (5, 7), (4, 3)), (19, 23), weights=(1.0, 0.0, 2.5)),
    "maps-flipped-nhwc-corners": Case(((5, 7), (2, 3)), (18, 70), flipped=(True, False), align_corners=True,
                                      layout="nhwc"),
    "wide": Case(((2, 90),), (5, 701), classes=3, batch=1),
    "wide-maps": Case(((2, 90), (3, 45)), (5, 360), classes=40, batch=1),
    "no-image": Case(((5, 7),), (8, 9), batch=0),
}  # fmt: skip
VOLUMES = {
    "up2": Case(((3, 4, 6),), (6, 8, 12)),
    "primes": Case(((3, 7, 11),), (7, 13, 37), classes=19),
    "same-size": Case(((5, 6, 7),), (5, 6, 7)),
    "same-planes": Case(((3, 6, 7),), (9, 6, 7)),
    "slices": Case(((4, 3, 5),), (4, 12, 20)),
    "smaller": Case(((8, 9, 10),), (3, 4, 5)),
    "corners": Case(((3, 5, 4),), (9, 17, 13), align_corners=True),
    "one-cell": Case(((1, 1, 1),), (3, 6, 40)),
    "flipped": Case(((3, 5, 7),), (6, 20, 37), flipped=True),
    "nhwc": Case(((3, 5, 9),), (6, 20, 36), layout="nhwc"),
    "strided": Case(((3, 5, 9),), (6, 20, 36), layout="strided"),
    "many-classes": Case(((2, 3, 5),), (4, 12, 21), classes=300, batch=1),
    "scales-and-flips": Case(((2, 3, 5), (2, 3, 5), (4, 6, 10)), (8, 12, 20), flipped=(False, True, False)),
    "no-volume": Case(((2, 5, 7),), (4, 8, 9), batch=0),
}
CASES, VOLUMES = ({name: case._replace(id=name) for name, case in table.items()} for table in (CASES, VOLUMES))
# what Triton's interpreter keeps: cases, and tests
INTERPRETED = ("", "one-pixel", "primes", "same-rows", "flipped", "nhwc", "two-maps", "no-image")
INTERPRETED_TESTS = {
    "test_labels_and_scores",
    "test_confusion_matrix",
    "test_infinite_and_nan_logits",
    "test_rows_between_two_cells",
    "test_labels_out_of_range",
    "test_scores_and_counts_of_two_maps",
}


def make_maps(case: Case, dtype: torch.dtype = torch.float64, device: str = "cpu", seed: int = 0) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    shapes = [(case.batch, case.classes, *size) for size in case.maps]
    maps = [3 * torch.randn(shape, generator=rng, dtype=torch.float64) for shape in shapes]
    return [lay_out(m.to(dtype), case.layout).to(device) for m in maps]


def make_segments(case: Case, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Tensor:
    """Logits of a single map as of a trained network: regions in which a class stands out, and noise."""
    rng = torch.Generator().manual_seed(0)
    height, width = case.maps[0]
    regions = torch.randint(case.classes, (case.batch, -(-height // 3), -(-width // 3)), generator=rng)
    hot = F.one_hot(regions, case.classes).permute(0, 3, 1, 2).double()
    hot = F.interpolate(hot, scale_factor=3)[:, :, :height, :width]
    z = 4 * hot + 0.5 * torch.randn(hot.shape, generator=rng, dtype=torch.float64)
    return lay_out(z.to(dtype), case.layout).to(device)


def make_target(case: Case, dtype: torch.dtype = torch.int64, device: str = "cpu") -> Tensor:
    rng = torch.Generator().manual_seed(1)
    target = torch.randint(0, case.classes, (case.batch, *case.size), generator=rng)
    target[torch.rand(target.shape, generator=rng) < 0.2] = 255 if case.classes <= 255 else -1
    return target.to(device=device, dtype=dtype if case.classes <= 255 else torch.int64)


def materialized(case: Case, maps: list[Tensor]) -> Tensor:
    """[B, K, (D,) H, W]: averaged probabilities, in the dtype of the maps."""
    flipped = case.flipped if isinstance(case.flipped, tuple) else (case.flipped,) * len(maps)
    weights = case.weights or (1.0,) * len(maps)
    total = torch.zeros((case.batch, case.classes, *case.size), dtype=maps[0].dtype, device=maps[0].device)
    if case.batch == 0:
        return total
    for z, mirrored, weight in zip(maps, flipped, weights, strict=True):
        if mirrored:
            z = z.flip(-1)
        mode = "trilinear" if z.ndim == 5 else "bilinear"
        z = F.interpolate(z, case.size, mode=mode, align_corners=case.align_corners)
        total += weight / sum(weights) * z.softmax(1)
    return total
