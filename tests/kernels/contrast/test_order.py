"""Order of the rows: the same on every backend; groups and ids may be any ranks that rise with the value."""

from __future__ import annotations

import pytest
import torch

from metricseg_kernels.contrast import op

FAMILY = "contrast"
DTYPES = (torch.uint8, torch.int32, torch.int64)


@pytest.mark.parametrize("sizes", [(67,), (50, 33), (1, 64), (0, 5), (5, 0), (0,)], ids=str)
@pytest.mark.parametrize("scale", [1, 2**40])
@pytest.mark.kernels
def test_order_of_rows(sizes: tuple[int, ...], scale: int, backend: str, device: str) -> None:
    generator = torch.Generator().manual_seed(sum(sizes))
    labels, ids = (
        [torch.randint(-3 * (scale > 1), 6, (n,), generator=generator) * scale for n in sizes] for _ in range(2)
    )
    if scale == 1:
        labels = [side.to(DTYPES[i]) for i, side in enumerate(labels)]
        ids = [side.to(DTYPES[1 - i]) for i, side in enumerate(ids)]
    weights = torch.randint(3, sizes[-1:], generator=generator).float()
    factors = torch.rand(sizes[0], generator=generator)
    for ignored in (3 * scale, 3 + 2**32, -1):
        found = op.sort_rows(
            [torch.zeros(n, 2, device=device) for n in sizes], [side.to(device) for side in labels],
            [side.to(device) for side in ids], ignored, backend, weights.to(device), factors.to(device),
        )  # fmt: skip
        groups, places = [], []
        for i, (rows, label) in enumerate(zip(found, labels, strict=True)):
            label = label.long()
            absent = label == ignored
            if i == 1:
                absent |= weights == 0
            expected = torch.argsort(torch.where(absent, torch.iinfo(torch.int64).min, label), stable=True)
            order = rows.order.cpu()
            assert torch.equal(order, expected)
            assert torch.equal(rows.groups.cpu() < 0, absent[order])
            groups.append((rows.groups.cpu(), torch.where(absent, -(2**60), label)[order]))
            places.append((rows.ids.cpu(), ids[i].long()[order]))
        for pairs in (groups, places):
            ranks, values = (torch.cat(side) for side in zip(*pairs, strict=True))
            assert torch.equal(ranks[:, None] < ranks, values[:, None] < values)
        assert torch.equal(found[-1].weights.cpu(), weights[found[-1].order.cpu()])
        assert torch.equal(found[0].factors.cpu(), factors[found[0].order.cpu()])
