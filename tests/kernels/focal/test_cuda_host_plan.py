"""The launch geometry of the focal walk on CUDA against every other tiling, by a schedule of its blocks on the host."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

import cuda_host
import pytest

pytestmark = pytest.mark.slow

COLUMNS = 128  # label columns of a chunk, at up to 20 classes
# Instructions of a thread at 20 classes: of a chunk, of an interval of cell rows, of a label row. Counted on SASS for
# sm_90, over tiles of different heights and ratios.
COSTS = {True: (1500, 1150, 540), False: (1650, 440, 350)}


def first_label(cell: int, cells: int, labels: int) -> int:
    """The first label at or after a cell, as in csrc/common/resize.h."""
    return 0 if cell <= 0 else max(0, min(labels, -(-(2 * labels * cell - (cells - labels)) // (2 * cells))))


def chunks_of(w: int, W: int, tile_x: int, halo: int) -> list[int]:
    starts = range(0, w, tile_x)
    spans = [first_label(min(x + tile_x, w), w, W) - first_label(x - halo, w, W) for x in starts]
    return [max(1, -(-span // COLUMNS)) for span in spans]


def schedule(batch: int, h: int, H: int, tile_y: int, chunks: list[int], grad: bool, slots: int) -> float:
    """When the last block ends, if each goes to the slot that is free first."""
    chunk, interval, row = COSTS[grad]
    free = [0.0] * slots
    for y in list(range(0, h, tile_y)) * batch:
        top, bottom = max(y - grad, 0), min(y + tile_y, h)
        rows = first_label(bottom, h, H) - first_label(top, h, H)
        time = chunk + interval * (bottom - top) + row * rows
        for count in chunks:
            heapq.heapreplace(free, free[0] + count * time)
    return max(free)


def tilings(h: int, w: int, W: int, halo: int) -> Iterator[tuple[int, int]]:
    for tile_y in (1, 2, 4, 8, 16, 32):
        for wanted in (1, 2, 4, 8):
            if tile_y <= h:
                yield tile_y, max(1, min(wanted * COLUMNS * w // W - halo, w))


@pytest.mark.parametrize("multiprocessors", [108, 132], ids=["a100", "h100"])
@pytest.mark.parametrize("grad", [True, False], ids=["gradient", "forward"])
@pytest.mark.parametrize(
    ("batch", "h", "w", "ratio"),
    [(8, 128, 256, 4), (8, 64, 128, 8), (2, 128, 256, 4), (8, 90, 120, 4), (16, 128, 128, 4)],
    ids=["cityscapes", "cityscapes-8", "cityscapes-b2", "camvid", "ade"],
)
def test_near_the_best_tiling(batch: int, h: int, w: int, ratio: int, grad: bool, multiprocessors: int) -> None:
    shim = cuda_host.require("focal")
    H, W = h * ratio, w * ratio
    shim.configure(multiprocessors, cuda_host.SHARED, 0)
    tile_y, tile_x, slots, chunks, _ = shim.walk_geometry(batch, 19, h, w, H, W, grad)
    assert chunks == chunks_of(w, W, tile_x, grad)
    best = min(schedule(batch, h, H, y, chunks_of(w, W, x, grad), grad, slots) for y, x in tilings(h, w, W, grad))
    assert schedule(batch, h, H, tile_y, chunks, grad, slots) <= 1.2 * best


@pytest.mark.parametrize("classes", [3, 19, 60, 171, 600])
def test_several_chunks_have_their_memory(classes: int) -> None:
    """Tiles of one column of cells, of which the second takes more chunks than all others, among them."""
    shim = cuda_host.require("focal")
    alone = 0
    for multiprocessors in (64, 108, 132):
        shim.configure(multiprocessors, cuda_host.SHARED, 0)
        for ratio in (2, 4, 8, 16, 64):
            for w in (3, 4, 8, 16, 64):
                *_, chunks, chunked = shim.walk_geometry(2, classes, w, w, w * ratio, w * ratio, True)
                assert chunked or max(chunks) == 1, (multiprocessors, ratio, w, chunks)
                alone += chunks[1:2] == [2] and sum(chunks) == len(chunks) + 1
    assert alone or classes not in (3, 171, 600)
