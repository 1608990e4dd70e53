"""The benchmark of the segments family, small: whoever is timed is right."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("pytest_benchmark")
from benchmarks import bench_segments as bench
from benchmarks.harness import race, shapes

SMALL = shapes.Maps("small", 3, 6, 5, (48, 64))


@pytest.mark.parametrize("loss", bench.PHASES)
def test_every_contestant_is_right(loss: str) -> None:
    problem = bench.SegmentsProblem(SMALL, loss, "cpu")
    truth = problem.truth()
    entrants = [c for c in bench.contestants(loss, "cpu") if not (c.missing or c.bare or c.name == "torch.compile")]
    assert len(entrants) > 1
    for contestant in entrants:
        assert race.check(problem, contestant, truth)[1] <= {"split_by_label": 0, "segment_mean": 1e-5}.get(loss, 1e-4)


def test_other_clusters_are_refused() -> None:
    """A pixel in a thousand in another cluster; an iteration less."""
    problem = bench.SegmentsProblem(SMALL, "spherical_kmeans", "cpu")
    truth, right = problem.truth(), bench.peers.segsort_kmeans(problem.x, bench.GRID, bench.ITERATIONS)
    moved = torch.where(torch.arange(right.numel()).view(right.shape) % 1000 == 0, (right + 1) % 25, right)
    for clusters in (moved, bench.peers.segsort_kmeans(problem.x, bench.GRID, 2)):
        cheat = race.Contestant("cheat", lambda p: p.x, checked=lambda p, c=clusters: p.resultants(c))
        with pytest.raises(race.WrongResult):
            race.check(problem, cheat, truth)
