"""The maps that the segments family is held against, and its jobs written out as loops."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from tolerances import lay_out
from torch import Tensor


class Case(NamedTuple):
    id: str
    shape: tuple[int, int, int, int]  # [B, D, h, w]
    grid: tuple[int, int] = (5, 5)
    iterations: int = 4
    location: Any = True  # True, False, "given"
    layout: str = "plain"  # plain, nhwc, strided, expanded
    values: str = "noise"  # noise, regions
    valid: float | None = None  # share of valid pixels
    size: tuple[int, int] | None = None
    align_corners: bool = False
    init: bool = False  # random first clusters, some of them -1, instead of the grid
    whole: bool = False  # the first image has no valid pixel


CASES = [
    Case("even", (2, 8, 20, 25)),
    Case("primes", (3, 13, 29, 31), (3, 7)),
    Case("regions", (2, 19, 24, 40), values="regions", iterations=10),
    Case("no-location", (2, 11, 17, 23), location=False),
    Case("given-location", (2, 11, 17, 23), location="given"),
    Case("channels-last", (2, 33, 14, 15), layout="nhwc"),
    Case("channels-last-few", (2, 5, 14, 15), layout="nhwc"),
    Case("strided", (2, 6, 12, 14), layout="strided"),
    Case("expanded", (3, 6, 12, 14), layout="expanded"),
    Case("masked", (2, 9, 16, 18), valid=0.6),
    Case("image-ignored", (3, 9, 16, 18), valid=0.9, whole=True),
    Case("fewer-pixels-than-clusters", (2, 7, 3, 4), (5, 5)),
    Case("few-valid", (2, 7, 12, 13), valid=0.03),
    Case("one-pixel", (2, 7, 1, 1)),
    Case("one-row", (2, 7, 1, 67), (1, 9)),
    Case("one-column", (2, 7, 83, 1), (4, 2)),
    Case("one-cluster", (2, 7, 9, 10), (1, 1)),
    Case("one-channel", (2, 1, 19, 21)),
    Case("many-channels", (1, 300, 11, 12), (3, 3)),
    Case("many-clusters", (2, 12, 31, 33), (13, 12)),
    Case("a-block-per-pixel", (1, 6, 9, 10), (9, 10), iterations=2),
    Case("no-iteration", (2, 6, 13, 14), iterations=0),
    Case("init", (2, 9, 13, 14), init=True),
    Case("init-masked", (2, 9, 13, 14), init=True, valid=0.5, location=False),
    Case("larger", (2, 6, 7, 9), size=(20, 31)),
    Case("larger-corners", (2, 6, 7, 9), size=(19, 30), align_corners=True, layout="nhwc"),
    Case("smaller", (2, 6, 23, 29), size=(9, 12), valid=0.8),
    Case("larger-strided", (2, 6, 7, 9), size=(14, 9), layout="strided", location="given"),
    Case("empty-batch", (0, 6, 7, 9)),
    Case("no-pixels", (2, 6, 0, 9)),
    Case("no-channels", (2, 0, 6, 7), iterations=0),
]
NAMED = {c.id: c for c in CASES}
# Triton kernels in their interpreter: cases, and the tests that take them or others as small
INTERPRETED = ("one-column", "larger-strided", "no-channels")
INTERPRETED_TESTS = {
    "test_clusters_are_the_published_ones", "test_every_iteration_takes_the_nearest_center", "test_no_cluster_has_a_pixel",
    "test_huge_clusters_and_ignored_labels", "test_segments_of_every_integer",
    "test_means_are_those_of_a_loop", "test_double_backward", "test_degenerate_segments", "test_empty_maps",
    "test_what_is_not_finite_stays_in_its_segment", "test_ids_of_any_size_are_ranked",
}  # fmt: skip
# Triton kernels compiled: cases in dtypes other than fp32
IN_EVERY_DTYPE = {"primes", "channels-last", "masked", "many-channels", "larger-strided", "smaller"}


def make(case: Case, dtype: torch.dtype = torch.float64, device: str = "cpu") -> dict[str, Any]:
    """The arguments of `spherical_kmeans`."""
    rng = torch.Generator().manual_seed(sum(map(ord, case.id)))
    batch, channels, height, width = case.shape
    size = case.size or (height, width)
    x = torch.randn(case.shape, generator=rng, dtype=torch.float64)
    if case.values == "regions":
        coarse = torch.randn(batch, channels, 4, 5, generator=rng, dtype=torch.float64)
        x = 3 * F.interpolate(coarse, (height, width)) + x
    x = x.to(dtype)
    x = x[:1].expand(case.shape) if case.layout == "expanded" else lay_out(x, case.layout)
    options: dict[str, Any] = {"iterations": case.iterations, "location": case.location}
    if case.location == "given":
        options["location"] = torch.rand(batch, 2, *size, generator=rng, dtype=torch.float64).to(dtype).to(device)
    if case.valid is not None:
        options["valid"] = torch.rand(batch, *size, generator=rng) < case.valid
        if case.whole:
            options["valid"][0] = False
        options["valid"] = options["valid"].to(device)
    if case.init:
        options["num_clusters"] = case.grid[0] * case.grid[1]
        init = torch.randint(-1, options["num_clusters"] - 3, (batch, *size), generator=rng)
        options["init"] = init.to(device)
    else:
        options["grid"] = case.grid
    if case.size is not None:
        options |= {"size": case.size, "align_corners": case.align_corners}
    return {"embeddings": x.to(device), **options}


def first_ids(arguments: dict[str, Any]) -> Tensor:
    """[B, H, W] clusters before any iteration, -1 where a pixel takes no part."""
    x = arguments["embeddings"]
    height, width = arguments.get("size", x.shape[2:])
    if "init" in arguments:
        ids = arguments["init"].cpu().clone()
    else:
        rows, columns = arguments["grid"]
        ids = torch.zeros(x.shape[0], height, width, dtype=torch.int64)
        for i in range(height):
            for j in range(width):
                ids[:, i, j] = (i // -(-height // rows)) * columns + j // -(-width // columns)
    return ids.masked_fill(~arguments["valid"].cpu(), -1) if "valid" in arguments else ids


def points(arguments: dict[str, Any], image: int) -> Tensor:
    """[H, W, J] of an image in fp64: its embeddings and locations, normalized as the paper does."""
    x = arguments["embeddings"][image].double().cpu()
    size = arguments.get("size", x.shape[1:])
    if size != x.shape[1:]:
        x = F.interpolate(x[None], size, mode="bilinear", align_corners=arguments.get("align_corners", False))[0]
    points = F.normalize(x.permute(1, 2, 0), dim=2)
    location = arguments["location"]
    if location is False:
        return points
    if location is True:
        y, x = (torch.linspace(0, 1, n, dtype=torch.float64) for n in size)
        at = torch.stack(torch.meshgrid(y, x, indexing="ij"), 2)
    else:
        at = location[image].double().cpu().permute(1, 2, 0)
    return F.normalize(torch.cat([points, at], 2), dim=2)


def published_kmeans(arguments: dict[str, Any]) -> Tensor:
    """[B, H, W]: SegSort's clustering, image by image, cluster by cluster; an empty cluster is left out."""
    ids = first_ids(arguments)
    for b in range(len(ids)):
        valid = arguments["valid"][b].cpu() if "valid" in arguments else torch.ones(ids.shape[1:], dtype=torch.bool)
        chosen, z = points(arguments, b)[valid], ids[b][valid]
        for _ in range(arguments["iterations"]):
            present = [k for k in z.unique().tolist() if k >= 0]
            if not present:
                break
            prototypes = torch.stack([F.normalize(chosen[z == k].sum(0), dim=0) for k in present])
            best = (chosen @ prototypes.T).argmax(1)
            z = torch.tensor([present[k] for k in best.tolist()])
        ids[b][valid] = z
    return ids


def assert_nearest(ids: Tensor, before: Tensor, arguments: dict[str, Any], tolerance: float) -> None:
    """Every pixel of `ids` is in a cluster as near as any, by the centers of the clusters `before`, in fp64."""
    for b in range(len(ids)):
        at, now, then = points(arguments, b).flatten(0, 1), ids[b].flatten().cpu(), before[b].flatten().cpu()
        present = [k for k in then.unique().tolist() if k >= 0]
        if not present:
            continue
        prototypes = torch.stack([F.normalize(at[then == k].sum(0), dim=0) for k in present])
        scores = (at @ prototypes.T)[now >= 0]  # [N, K]
        column = torch.tensor([present.index(k) for k in now[now >= 0].tolist()], dtype=torch.int64)
        assert (scores.gather(1, column[:, None])[:, 0] >= scores.amax(1) - tolerance).all()


def written_out_split(ids: Tensor, labels: Tensor, capacity: int, ignore_index: int) -> tuple[Tensor, Tensor, int]:
    """(ids, labels, count) of `split_by_label`, in loops."""
    keys: list[list[tuple[int, int]]] = []
    for image_ids, image_labels in zip(ids.tolist(), labels.tolist(), strict=True):
        flat = [
            (k, label)
            for row, row_labels in zip(image_ids, image_labels, strict=True)
            for k, label in zip(row, row_labels, strict=True)
        ]
        keys.append([(-1, -1) if k < 0 or label == ignore_index else (k, label) for k, label in flat])
    segments = [(b, *key) for b, row in enumerate(keys) for key in sorted(set(row) - {(-1, -1)})]
    number = {segment: i if i < capacity else -1 for i, segment in enumerate(segments)}
    dense = [[number.get((b, *key), -1) for key in row] for b, row in enumerate(keys)]
    found = ([label for _, _, label in segments] + [-1] * capacity)[:capacity]
    return torch.tensor(dense, dtype=torch.int64).reshape(ids.shape), torch.tensor(found), len(segments)
