"""Private ops of the segments family: schemas, allocation, fakes, autograd. Derivation: docs/kernels/segments.md.

Kernels (one per backend, same signature) fill tensors that this file allocates, so launcher and fake cannot differ.
  spherical_kmeans_kernel   embeddings -> ids, all images and all iterations in one call
  split_by_label_kernel     ids and labels -> segments, numbered over the batch
  segment_sums_fwd_kernel   sums of the pixels of each segment, and their number
  segment_sums_bwd_kernel   each pixel takes the gradient of the sum of its segment
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core import backends, checks
from ..core.labels import check_labels
from ..core.library import define_op, ops

kernels = functools.partial(backends.kernels, "segments")  # (backend) -> module


def check_ids(name: str, ids: Tensor, count: int, of: str) -> None:
    """Raise ValueError for numbers that are neither -1 nor in [0, count), if that needs no host sync or
    METRICSEG_VALIDATE=1."""
    if checks.validates(ids.device) and ids.numel():
        low, high = (int(bound) for bound in torch.aminmax(ids))
        if low < -1 or high >= count:
            got = low if low < -1 else high
            raise ValueError(f"{name} must hold -1 or the number of a {of} in [0, {count}), got {got}")


# --- spherical k-means ---------------------------------------------------------------------------------------------


class KmeansInputs(NamedTuple):
    """Inputs of a kernel. rows, columns: blocks of the first clusters, or their number and 1 with `init`."""

    embeddings: Tensor
    location: Tensor | None
    valid: Tensor | None
    init: Tensor | None
    rows: int
    columns: int
    iterations: int
    coordinated: bool  # the location is the grid's own
    align_corners: bool


def _ids(embeddings: Tensor, size: Any) -> Tensor:
    return embeddings.new_empty((embeddings.shape[0], *size), dtype=torch.int64)


def _kmeans(
    embeddings: Tensor,
    location: Tensor | None,
    valid: Tensor | None,
    init: Tensor | None,
    size: list[int],
    grid: list[int],
    iterations: int,
    coordinated: bool,
    align_corners: bool,
    backend: str,
) -> Tensor:
    if init is not None:
        check_ids("init", init, grid[0] * grid[1], "cluster")
    ids = _ids(embeddings, size)
    rows, columns = grid
    inputs = KmeansInputs(embeddings, location, valid, init, rows, columns, iterations, coordinated, align_corners)
    kernels(backend).spherical_kmeans_kernel(inputs, ids)
    return ids


define_op(
    "spherical_kmeans(Tensor embeddings, Tensor? location, Tensor? valid, Tensor? init, SymInt[] size, int[] grid, "
    "int iterations, bool coordinated, bool align_corners, str backend) -> Tensor",
    _kmeans,
    lambda embeddings, location, valid, init, size, *_: _ids(embeddings, size),
)


# --- segments ------------------------------------------------------------------------------------------------------


def _split_outputs(ids: Tensor, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
    dense, labels, count = (ids.new_empty(shape, dtype=torch.int64) for shape in (ids.shape, (capacity,), ()))
    return dense, labels, count


def _split(
    ids: Tensor, labels: Tensor, capacity: int, num_classes: int, ignore_index: int, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    check_labels(labels, num_classes, ignore_index, "labels")
    dense, found, count = _split_outputs(ids, capacity)
    kernels(backend).split_by_label_kernel(ids, labels, num_classes, ignore_index, dense, found, count)
    return dense, found, count


define_op(
    "split_by_label(Tensor ids, Tensor labels, SymInt capacity, int num_classes, int ignore_index, str backend) "
    "-> (Tensor, Tensor, Tensor)",
    _split,
    lambda ids, labels, capacity, *_: _split_outputs(ids, capacity),
)


# --- sums of segments ----------------------------------------------------------------------------------------------


def _sums_outputs(x: Tensor, num_segments: int) -> tuple[Tensor, Tensor]:
    acc = checks.accumulator(x.dtype)
    return x.new_empty((num_segments, x.shape[1]), dtype=acc), x.new_empty((num_segments,), dtype=acc)


def _sums(x: Tensor, ids: Tensor, num_segments: int, backend: str) -> tuple[Tensor, Tensor]:
    check_ids("ids", ids, num_segments, "segment")
    sums, mass = _sums_outputs(x, num_segments)
    kernels(backend).segment_sums_fwd_kernel(x, ids, sums, mass)
    return sums, mass


def _sums_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, ids, _, ctx.backend = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(ids)
    ctx.size, ctx.dtype = x.shape, x.dtype
    ctx.channels_last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _sums_autograd(ctx: Any, grad_sums: Tensor | None, _: Any) -> tuple[Any, ...]:
    grad = None
    if grad_sums is not None:
        (ids,) = ctx.saved_tensors
        grad = ops.segment_sums_backward(grad_sums, ids, ctx.size, ctx.dtype, ctx.channels_last, ctx.backend)
    return grad, None, None, None


def _gradient(grad_sums: Tensor, size: Any, dtype: torch.dtype, channels_last: bool) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(size, dtype=dtype, device=grad_sums.device, memory_format=layout)


def _sums_backward(
    grad_sums: Tensor, ids: Tensor, size: list[int], dtype: torch.dtype, channels_last: bool, backend: str
) -> Tensor:
    grad = _gradient(grad_sums, size, dtype, channels_last)
    kernels(backend).segment_sums_bwd_kernel(grad_sums, ids, grad)
    return grad


define_op(
    "segment_sums(Tensor x, Tensor ids, SymInt num_segments, str backend) -> (Tensor, Tensor)",
    _sums,
    lambda x, ids, num_segments, _: _sums_outputs(x, num_segments),
    _sums_setup,
    _sums_autograd,
)
define_op(
    "segment_sums_backward(Tensor grad_sums, Tensor ids, SymInt[] size, ScalarType dtype, bool channels_last, "
    "str backend) -> Tensor",
    _sums_backward,
    lambda grad_sums, ids, size, dtype, channels_last, _: _gradient(grad_sums, size, dtype, channels_last),
)
