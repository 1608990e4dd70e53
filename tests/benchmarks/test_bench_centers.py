"""The benchmark of the centers family, small: whoever is timed is right."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("pytest_benchmark")
from benchmarks import bench_centers as bench
from benchmarks.harness import entry, machine, memory, race, shapes


def small():
    return shapes.Centers("small", 2, 24, 7, (6, 10))


@pytest.mark.parametrize("loss", ["cosine", "soft_centers", "hard_centers", "cross_entropy"])
def test_every_contestant_is_right(loss: str) -> None:
    absent = {"torch.compile", "bare products"}
    entrants = [c for c in bench.contestants(loss, "cpu") if not c.missing and c.name not in absent]
    assert len(entrants) > 1
    for shape in (small(), replace(small(), layout="nhwc", labels=(13, 29)), replace(small(), own=True)):
        problem = bench.CentersProblem(shape, loss, "cpu")
        truth = problem.truth()
        for contestant in entrants:
            # a convolution has one set of weights; torch's loss labels at the features
            if not (shape.own and contestant.name == "convolution") and "linear" not in contestant.name:
                assert race.check(problem, contestant, truth)[1] <= 1e-5
    assert problem.output_bytes("step") > problem.output_bytes("forward")


def test_linear_cross_entropy_is_the_same_loss() -> None:
    problem = bench.CentersProblem(small(), "cross_entropy", "cpu")
    linear = next(c for c in bench.contestants("cross_entropy", "cpu") if "linear" in c.name)
    if linear.missing:
        pytest.skip(linear.missing)
    race.check(problem, linear, problem.truth())


def test_what_is_timed_has_the_gradient_that_is_checked() -> None:
    """The step's own gradient, given in the place of a loss."""
    for loss in ("cosine", "soft_centers"):
        problem = bench.CentersProblem(small(), loss, "cpu")
        _, truth = problem.truth()
        for contestant in bench.contestants(loss, "cpu"):
            if contestant.name in ("eager", "metricseg cpu"):
                race.make_step(problem, contestant, "step")()
                for leaf, exact in zip(problem.leaves, truth, strict=True):
                    assert race.relative_l2(leaf.grad, exact) < 1e-5
                race.forget_gradients(problem)


def test_bare_products_run_and_the_report_has_memory_over_outputs(tmp_path, monkeypatch) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks.harness import report

    limits = {"bytes_per_s": 1e10, "exp_per_s": 1e9, "exp_by": "torch.exp in cache", "flops_per_s": {"float32": 1e11}}
    monkeypatch.setattr(machine, "limits", lambda device: limits)
    rows = []
    for loss in ("cosine", "soft_centers"):
        problem = bench.CentersProblem(small(), loss, "cpu")
        entrants = [c for c in bench.contestants(loss, "cpu") if c.name in ("eager", "metricseg cpu", "bare products")]
        results = race.run(
            problem,
            entrants,
            "cpu",
            lambda _, phases: dict.fromkeys(phases, memory.Measured(3 << 20, 0.5)),
            laps=(1, 1),
        )
        for name, result in results.items():
            assert result.error is None, result.error
            figures = entry.report(problem, entrants, results, name, "step", "cpu")
            figures |= {"op": "centers", "shape": "small", "loss": loss, "dtype": "float32", "series": None}
            figures |= {"times_outputs": 1.25} if name != "bare products" else {}
            stats = {"median": result.median("step"), "min": 0.0, "rounds": 1}
            rows.append({"name": name, "extra_info": figures, "stats": stats})
    about = {"device": "cpu", "cpu": "test", "threads": 2, "torch": "2.11.0", "commit": "0", "limits": limits}
    report.write({"machine_info": about, "datetime": "2026-01-01T00:00:00", "benchmarks": rows}, tmp_path)
    page = (tmp_path / "centers.md").read_text()
    assert "memory over outputs and gradients" in page and "| 1.25x |" in page


def test_every_race_has_rows_of_ours_and_of_a_peer() -> None:
    for shape, loss, phases in bench.problems():
        entrants = bench.entrants(shape, loss)
        assert any(c.ours for c in entrants) and any(not c.ours and not c.bare for c in entrants) and "step" in phases
        assert str(shape) and isinstance(shape.pixels, int) and shape.label_pixels >= shape.pixels
