"""Every op under torch.compile with dynamic shapes: one graph serves all sizes of batch, cells, labels and rows."""

from __future__ import annotations

import importlib
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from metricseg_kernels.core.registry import FAMILIES

CALLS = {family: importlib.import_module(f"{family}_calls").SIZED for family in FAMILIES}


class Sizes(NamedTuple):
    """No two alike, and none a multiple of another: an equality that held for one would be taken for a rule."""

    batch: int
    cells: tuple[int, int]
    labels: tuple[int, int]
    rows: int
    bank: int


SIZES = Sizes(3, (7, 11), (13, 19), 23, 37), Sizes(4, (9, 10), (26, 15), 31, 29)
CLASSES, CHANNELS = 5, 8


class Inputs(NamedTuple):
    """Maps of cells, labels, and rows with a bank; see `make`."""

    logits: Tensor
    features: Tensor
    target: Tensor
    cells: Tensor  # labels of the cells
    rows: Tensor
    bank: Tensor
    row_labels: Tensor
    bank_labels: Tensor
    centers: Tensor
    classes: int


def make(sizes: Sizes, device: str) -> Inputs:
    rng = torch.Generator().manual_seed(sizes.rows)
    normal = lambda *shape: torch.randn(shape, generator=rng).to(device)  # noqa: E731
    labels = lambda *shape: torch.randint(CLASSES, shape, generator=rng).to(device)  # noqa: E731
    batch, cells, size, rows, bank = sizes
    return Inputs(
        normal(batch, CLASSES, *cells), normal(batch, CHANNELS, *cells), labels(batch, *size), labels(batch, *cells),
        normal(rows, CHANNELS), normal(bank, CHANNELS), labels(rows), labels(bank), normal(CLASSES, CHANNELS),
        CLASSES,
    )  # fmt: skip


def family_of(params: dict[str, str]) -> str:
    return params["family"]


@pytest.mark.kernels
@pytest.mark.parametrize("family, op", [(family, op) for family, calls in CALLS.items() for op in calls])
@torch._dynamo.config.patch(error_on_recompile=True)
def test_compile_once_for_all_sizes(family: str, op: str, backend: str, device: str) -> None:
    torch._dynamo.reset()
    call = CALLS[family][op]
    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    for sizes in SIZES:
        results = []
        for function in (compiled, call):
            inputs = make(sizes, device)
            leaves = [t.requires_grad_() for t in (inputs.logits, inputs.features, inputs.rows, inputs.bank)]
            found = function(inputs, backend)
            found = [found] if isinstance(found, Tensor) else list(found)
            learning = [t for t in found if t.requires_grad]
            loss = sum(t.sin().sum() for t in learning)
            grads = torch.autograd.grad(loss, leaves, allow_unused=True) if learning else ()
            results.append([*found, *grads])
        for ours, eager in zip(*results, strict=True):
            torch.testing.assert_close(ours, eager)
