"""The benchmark of the retrieval family, small: whoever is timed is right."""

from __future__ import annotations

import pytest

pytest.importorskip("pytest_benchmark")
from benchmarks import bench_retrieval as bench
from benchmarks.harness import race, shapes


def test_every_contestant_is_right_and_a_missed_neighbor_is_refused() -> None:
    problem = bench.RetrievalProblem(shapes.Bank("small", 50, 2000, 7, 5), "topk", "cpu")
    truth = problem.truth()
    entrants = [c for c in bench.contestants("topk", "cpu") if not c.missing]
    assert len(entrants) > 1
    for contestant in entrants:
        assert race.check(problem, contestant, truth)[1] <= 1e-5
    missed = (problem.queries @ problem.bank.T).topk(6)[0][:, 1:]
    cheat = race.Contestant("cheat", lambda p: missed, checked=lambda p: p.weighed(missed))
    with pytest.raises(race.WrongResult):
        race.check(problem, cheat, truth)
