"""The benchmark of the anchors family, small: whoever is timed is right."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("pytest_benchmark")
from benchmarks import bench_anchors as bench
from benchmarks.harness import race, shapes


@pytest.mark.parametrize("loss", ["sample_anchors", "gather_pixels"])
def test_every_contestant_is_right(loss: str) -> None:
    problem = bench.AnchorsProblem(shapes.Maps("small", 3, 6, 5, (48, 64)), loss, "cpu")
    truth = problem.truth()
    entrants = [c for c in bench.contestants(loss, "cpu") if not (c.missing or c.name == "torch.compile")]
    assert len(entrants) > 1
    for contestant in entrants:
        assert race.check(problem, contestant, truth)[1] <= (0 if loss == "sample_anchors" else 1e-5)


def test_a_wrong_choice_is_refused() -> None:
    """A pixel twice; a pixel of the other group."""
    problem = bench.AnchorsProblem(shapes.Maps("small", 3, 6, 5, (48, 64)), "sample_anchors", "cpu")
    truth, (index, _, count) = problem.truth(), problem.choice("reference")
    right = problem.predictions.flatten() == problem.labels.flatten()
    spare = torch.ones_like(right)
    spare[index[: int(count)]] = False
    swapped = (spare & right & (problem.labels.flatten() == problem.labels.flatten()[index[0]])).nonzero()[0]
    for replacement in (index[1:2], swapped):
        cheat = race.Contestant(
            "cheat", problem.weighed, checked=lambda p, r=replacement: p.weighed(torch.cat([r, index[1:]]))
        )
        with pytest.raises(race.WrongResult):
            race.check(problem, cheat, truth)
