"""Segments of pixels: spherical k-means on a grid, clusters split by label, and the mean of every segment."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..core import checks
from ..core.backends import choose
from ..core.labels import MOST_CLASSES, IgnoreIndex, check_labels, resolve_ignore_index
from ..core.library import ops
from ..core.unit import unit
from . import op, reference

MOST_CLUSTERS = 65536
MOST = 2**31 - 2  # segments, iterations


class Segments(NamedTuple):
    """Segments numbered by image, then cluster, then label.

    ids: [B, h, w] int64, -1 at pixels of no segment. labels: [capacity] int64, the label of each segment, -1 if unused.
    count: 0-d int64, the segments found, also those beyond the capacity.
    """

    ids: Tensor
    labels: Tensor
    count: Tensor  # type: ignore[assignment]  # tuple has a method of this name


def spherical_kmeans(
    embeddings: Tensor,
    *,
    grid: tuple[int, int] = (5, 5),
    init: Tensor | None = None,
    num_clusters: int | None = None,
    iterations: int = 10,
    location: bool | Tensor = True,
    valid: Tensor | None = None,
    size: tuple[int, int] | None = None,
    align_corners: bool = False,
    backend: str | None = None,
) -> Tensor:
    r"""Cluster the pixels of each image by direction, as SegSort does, without a copy of the embeddings.

        v_i = x_i / |x_i|,    q_i = [v_i; y_i; x_i] / |[v_i; y_i; x_i]|
        repeat `iterations` times:    m_k = normalize(sum_{i: z_i = k} q_i),    z_i = argmax_k <q_i, m_k>

    with (y, x) the location of a pixel, from 0 to 1 along each axis; q = v without location. z starts as a grid of
    blocks of ceil(H / rows) x ceil(W / columns) pixels, numbered row by row. A tie goes to the lowest cluster. An empty
    cluster is never chosen, and stays empty. Images are clustered apart from each other. No gradient.

    Args:
        embeddings: x, [B, D, h, w]; float64, float32, bfloat16 or float16; NCHW, channels-last or strided, read in
            place, once an iteration. Arithmetic is in float32 (float64 for float64).
        grid: (rows, columns) of blocks, at most 65536 in all; K = rows columns.
        init: [B, H, W] clusters to start from instead of the grid; uint8, int32 or int64, in [0, num_clusters), or -1
            for a pixel that counts for no first center.
        num_clusters: K; needed with `init`, and only with it.
        iterations: >= 0; 0 gives the first clusters.
        location: True for the grid's own coordinates; False for none; or coordinates [B, 2, H, W], floating (float64 if
            and only if embeddings are), such as those of the picture before augmentation.
        valid: [B, H, W] bool; other pixels take no part. None for all.
        size: (H, W), clusters the bilinear interpolation of embeddings to this size, which never exists. None: (h, w).
        align_corners: of the interpolation, as in `F.interpolate`.
        backend: "reference", "cpu", "triton", "cuda", or None for the first that can run.

    Returns:
        [B, H, W] int64 clusters in [0, K). -1 at pixels that are not valid, whose embedding or location holds a NaN, an
        infinity or a square that overflows, and where no cluster has a pixel. A pixel with an embedding of norm 0 has
        v = 0.

    Raises:
        TypeError, ValueError: an argument of wrong type, dtype, shape, device or value, named with what it got. A
            cluster of init out of range raises on the CPU; on CUDA it counts as -1, and with METRICSEG_VALIDATE=1 it
            raises there too.
        RuntimeError: a backend asked for by name can't run here.

    Source: Hwang et al., SegSort: Segmentation by Discriminative Sorting of Segments, ICCV 2019.
    """
    checks.tensor("embeddings", embeddings, 4, checks.FLOATS, "[B, D, h, w]")
    size = _check_size(embeddings, size)
    pixels = (embeddings.shape[0], *size)
    grid = _check_start(embeddings, grid, init, num_clusters, pixels)
    checks.integer("iterations", iterations, 0, MOST)
    checks.boolean("align_corners", align_corners)
    if isinstance(location, Tensor):
        checks.tensor("location", location, 4, checks.FLOATS, "[B, 2, H, W]")
        _check_place("location", location, embeddings, (pixels[0], 2, *size))
        if (location.dtype == torch.float64) != (embeddings.dtype == torch.float64):
            raise TypeError(
                f"location is {location.dtype}, embeddings {embeddings.dtype}; both must be float64, or neither"
            )
        location = location.detach()
    elif not isinstance(location, bool):
        raise TypeError(f"location must be a bool or a Tensor [B, 2, H, W], got {type(location).__name__}")
    if valid is not None:
        checks.tensor("valid", valid, 3, (torch.bool,), "[B, H, W]")
        _check_place("valid", valid, embeddings, pixels)
    given = location if isinstance(location, Tensor) else None
    arguments = (embeddings.detach(), given, valid, init, size, grid, iterations, location is True, align_corners)
    chosen = choose("segments", embeddings.device, embeddings.dtype, backend)
    if chosen != "reference":
        return ops.spherical_kmeans(*arguments, chosen)
    if init is not None and not torch.compiler.is_compiling():
        op.check_ids("init", init, grid[0] * grid[1], "cluster")
    return reference.kmeans(*arguments)


def split_by_label(
    ids: Tensor,
    labels: Tensor,
    *,
    capacity: int,
    num_classes: int | None = None,
    ignore_index: IgnoreIndex = "auto",
    backend: str | None = None,
) -> Segments:
    r"""Split clusters where labels change, and number the segments over the batch, without a host sync.

    A segment is the pixels of one image, cluster and label. Segments are numbered from 0 by image, then cluster, then
    label; connected or not.

    Args:
        ids: [B, h, w] clusters, uint8, int32 or int64, such as those of `spherical_kmeans`; a pixel with a negative one
            is in no segment.
        labels: [B, h, w]; uint8, int32 or int64, read as they are.
        capacity: segments that the result has room for. Those from number `capacity` on are dropped: their pixels
            get -1. `count` tells.
        num_classes: labels lie in [0, num_classes); None for 65536, which is the most.
        ignore_index: label of pixels that are in no segment; None for no label. "auto" is 255, unless num_classes is
            more.
        backend: "reference", "cpu", "triton", "cuda", or None for the first that can run.

    Returns:
        Segments(ids [B, h, w], labels [capacity], count []). No segment: count 0.

    Raises:
        TypeError, ValueError: an argument of wrong type, dtype, shape, device or value, named with what it got. A label
            that is neither ignore_index nor in [0, num_classes) raises on the CPU; on CUDA it counts as ignored, and
            with METRICSEG_VALIDATE=1 it raises there too.
        RuntimeError: a backend asked for by name can't run here.

    Source: Hwang et al., SegSort, ICCV 2019.
    """
    checks.tensor("ids", ids, 3, checks.LABELS, "[B, h, w]")
    checks.tensor("labels", labels, 3, checks.LABELS, "[B, h, w]")
    checks.same_device("labels", labels, "ids", ids)
    if labels.shape != ids.shape:
        raise ValueError(f"labels {tuple(labels.shape)} and ids {tuple(ids.shape)} differ in shape")
    checks.integer("capacity", capacity, 1, MOST)
    ignored = resolve_ignore_index(ignore_index, num_classes)
    num_classes = MOST_CLASSES if num_classes is None else num_classes
    checks.integer("num_classes", num_classes, 1, MOST_CLASSES)
    chosen = choose("segments", ids.device, ids.dtype, backend)
    if chosen != "reference":
        return Segments(*ops.split_by_label(ids, labels, capacity, num_classes, ignored, chosen))
    if not torch.compiler.is_compiling():
        check_labels(labels, num_classes, ignored, "labels")
    return Segments(*reference.split(ids, labels, capacity, num_classes, ignored))


def segment_mean(
    x: Tensor, ids: Tensor, num_segments: int, *, normalize: bool = True, backend: str | None = None
) -> Tensor:
    r"""The mean of every segment, or its direction: SegSort's prototypes.

        m_s = sum_{i in s} x_i / |sum_{i in s} x_i|    normalize=True
        m_s = sum_{i in s} x_i / |s|                   normalize=False

    x is taken as it is. For the mean of directions, give x of unit norm.

    Args:
        x: [B, D, h, w] or [N, D]; float64, float32, bfloat16 or float16; any strides, read in place, once. Sums are in
            float32 (float64 for float64).
        ids: [B, h, w] or [N] segments in [0, num_segments), over all images, or -1 for a pixel of none; uint8, int32 or
            int64.
        num_segments: S, >= 1.
        normalize: see above.
        backend: "reference", "cpu", "triton", "cuda", or None for the first that can run.

    Returns:
        [S, D] in the dtype of x. A segment without a pixel, or whose sum is 0, gives zeros, and a zero gradient; norms
        below 1e-12 count as 1e-12. A NaN stays in its segment. The gradient reaches every pixel of a segment, and has
        the memory format of x.

    Raises:
        TypeError, ValueError: an argument of wrong type, dtype, shape, device or value, named with what it got. An id
            out of range raises on the CPU; on CUDA every mean is NaN, and with METRICSEG_VALIDATE=1 it raises there
            too.
        RuntimeError: a backend asked for by name can't run here; double backward without backend="reference".

    Source: Hwang et al., SegSort, ICCV 2019.
    """
    flat = isinstance(x, Tensor) and x.ndim == 2
    checks.tensor("x", x, 2 if flat else 4, checks.FLOATS, "[B, D, h, w] or [N, D]")
    checks.tensor("ids", ids, 1 if flat else 3, checks.LABELS, "[N]" if flat else "[B, h, w]")
    _check_place("ids", ids, x, (x.shape[0],) if flat else (x.shape[0], *x.shape[2:]), "x")
    checks.integer("num_segments", num_segments, 1, MOST)
    checks.boolean("normalize", normalize)
    if flat:  # as one image of one row, a view
        x, ids = x.mT[None, :, None], ids[None, None]
    chosen = choose("segments", x.device, x.dtype, backend)
    if chosen != "reference":
        sums, mass = ops.segment_sums(x, ids, num_segments, chosen)
    else:
        if not torch.compiler.is_compiling():
            op.check_ids("ids", ids, num_segments, "segment")
        sums, mass = reference.segment_sums(x, ids, num_segments)
    if not checks.validates(x.device):
        sums = sums.masked_fill(((ids < -1) | (ids >= num_segments)).any(), torch.nan)
    mean = unit(sums, 1) if normalize else sums / mass.clamp(min=1)[:, None]
    return mean.to(x.dtype)


def _check_size(embeddings: Tensor, size: tuple[int, int] | None) -> tuple[int, int]:
    """(H, W)."""
    height, width = embeddings.shape[2:]
    if size is None:
        return height, width
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise ValueError(f"size must be (H, W), got {size!r}")
    for n in size:
        checks.integer("size", n, 1, MOST)
    if height * width == 0:
        raise ValueError(f"embeddings must hold a pixel to interpolate, got shape {tuple(embeddings.shape)}")
    return size[0], size[1]


def _check_start(
    embeddings: Tensor,
    grid: tuple[int, int],
    init: Tensor | None,
    num_clusters: int | None,
    pixels: tuple[int, int, int],
) -> tuple[int, int]:
    """(rows, columns), (num_clusters, 1) with `init`."""
    if init is None:
        if num_clusters is not None:
            raise ValueError(f"num_clusters goes with init; grid={grid!r} gives its own, got {num_clusters}")
        if not isinstance(grid, (tuple, list)) or len(grid) != 2:
            raise ValueError(f"grid must be (rows, columns), got {grid!r}")
        for n in grid:
            checks.integer("grid", n, 1, MOST_CLUSTERS)
        if grid[0] * grid[1] > MOST_CLUSTERS:
            raise ValueError(f"grid must have at most {MOST_CLUSTERS} blocks, got {grid!r}")
        return grid[0], grid[1]
    checks.tensor("init", init, 3, checks.LABELS, "[B, H, W]")
    _check_place("init", init, embeddings, pixels)
    if num_clusters is None:
        raise ValueError("num_clusters is needed with init, got None")
    checks.integer("num_clusters", num_clusters, 1, MOST_CLUSTERS)
    return num_clusters, 1


def _check_place(name: str, value: Tensor, other: Tensor, shape: tuple[int, ...], of: str = "embeddings") -> None:
    """A device and a shape that go with another argument."""
    checks.same_device(name, value, of, other)
    if value.shape != shape:
        raise ValueError(f"{name} must have shape {tuple(shape)} to go with {of}, got {tuple(value.shape)}")
