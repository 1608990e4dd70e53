"""The benchmark of the refine family, small: whoever is timed is right."""

from __future__ import annotations

import pytest

pytest.importorskip("pytest_benchmark")
import torch.nn.functional as F

from benchmarks import bench_refine as bench
from benchmarks.harness import race, shapes


@pytest.mark.parametrize("loss", ["refined", "flow"])
def test_every_contestant_is_right_and_plain_upsampling_is_refused(loss: str) -> None:
    problem = bench.RefineProblem(shapes.Upsampling("small", 2, 9, (5, 7), (11, 20)), loss, "cpu")
    truth = problem.truth()
    entrants = [c for c in bench.contestants(loss, "cpu") if not c.missing and c.name != "torch.compile"]
    assert len(entrants) > 1
    for contestant in entrants:
        assert race.check(problem, contestant, truth)[1] <= 1e-4
    plain = lambda p: (F.interpolate(p.leaves[0], (11, 20), mode="bilinear") * p.weights).sum()  # noqa: E731
    with pytest.raises(race.WrongResult):
        race.check(problem, race.Contestant("cheat", plain), truth)
