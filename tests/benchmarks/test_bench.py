"""The benchmarks' own machinery: a wrong result gets no time, the meter measures what is known, the report renders."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import metricseg_kernels as mk
from metricseg.utils.memory import why_not_resident

pytest.importorskip("pytest_benchmark")
from benchmarks import bench_contrast, bench_focal
from benchmarks.harness import entry, memory, peers, race, shapes
from benchmarks.harness.kernels import Kernel


@pytest.fixture
def small():
    """A problem of the focal family that takes milliseconds, and its peers."""
    shape = shapes.CITYSCAPES.smaller(1 / 16)
    return bench_focal.FocalProblem(shape, "cross_entropy", "cpu"), bench_focal


def eager(problem) -> Tensor:
    return peers.cross_entropy(problem.logits, problem.target, 255, problem.weight)


@pytest.mark.parametrize(
    "distort",
    [
        lambda loss: loss * 1.001,
        lambda loss: loss.detach() + 0.99 * (loss - loss.detach()),
        lambda loss: loss * torch.nan,
    ],
    ids=["loss", "gradient", "nan"],
)
def test_wrong_result_gets_no_time(small, distort) -> None:
    problem, _ = small
    right, wrong = race.Contestant("right", eager), race.Contestant("wrong", lambda p: distort(eager(p)))
    results = race.run(problem, [wrong, right], "cpu", budget=0)
    assert isinstance(results["wrong"].error, race.WrongResult) and not results["wrong"].times
    assert results["right"].error is None and len(results["right"].times["step"]) >= race.LAPS["cpu"][0]


@pytest.mark.parametrize("loss", ["focal", "cross_entropy", "sigmoid_focal", "ohem"])
def test_every_contestant_is_right(small, loss: str) -> None:
    problem = small[1].FocalProblem(small[0].shape, loss, "cpu")
    truth = problem.truth()
    entrants = [c for c in small[1].contestants(loss, "cpu") if c.missing is None and c.name != "torch.compile"]
    assert entrants
    for contestant in entrants:
        race.check(problem, contestant, truth)


def test_banded_truth_is_the_reference(small) -> None:
    problem, _ = small
    loss, (gradient,) = problem.truth()
    logits = problem.logits.detach().double().requires_grad_()
    whole = mk.cross_entropy(logits, problem.target, weight=problem.weight, backend="reference")
    whole.backward()
    torch.testing.assert_close(loss, whole.detach())
    torch.testing.assert_close(gradient, logits.grad)


@pytest.mark.parametrize(
    ("loss", "bank"),
    [("nca", 301), ("balanced", None), *itertools.product(["negatives", "all", "margin", "hinge"], [None, 301])],
)
def test_every_contestant_of_contrast_is_right(loss: str, bank: int | None) -> None:
    problem = bench_contrast.ContrastProblem(shapes.Rows("small", 200, 16, bank=bank, classes=5), loss, "cpu")
    truth = problem.truth()
    with_bank = ("eager", "metricseg cpu")  # the others have no bank
    entrants = [
        c for c in bench_contrast.contestants(loss, "cpu") if not (c.missing or c.bare or c.name == "torch.compile")
    ]
    entrants = [c for c in entrants if bank is None or c.name in with_bank]
    assert entrants
    for contestant in (race.Contestant("reference", bench_contrast.ours("reference")), *entrants):
        race.check(problem, contestant, truth)
    if loss == "negatives":
        problem.sample = torch.tensor([3, 150, 8])
        total, (gradient,) = problem.truth()
        sets = problem.anchors.detach().double().requires_grad_(), problem.labels
        sets = (*sets, None if bank is None else problem.bank.double(), problem.bank_labels)
        rows = mk.pixel_contrast_loss(*sets, base_temperature=0.07, reduction="none", backend="reference")
        rows[problem.sample].sum().backward()
        torch.testing.assert_close(total, rows[problem.sample].sum().detach())
        torch.testing.assert_close(gradient, sets[0].grad)
        if len(entrants) > 1:
            race.check(problem, entrants[1], (total, (gradient,)))


def test_bare_products_are_a_limit_and_no_loss() -> None:
    problem = bench_contrast.ContrastProblem(shapes.Rows("small", 200, 16, classes=5), "negatives", "cpu")
    entrants = [c for c in bench_contrast.contestants("negatives", "cpu") if c.name != "torch.compile"]
    results = race.run(problem, entrants, "cpu", phases=("step",), laps=(1, 1))
    assert all(len(result.times["step"]) == 1 for result in results.values() if result.error is None)
    figures = entry.report(problem, entrants, results, "metricseg cpu", "step", "cpu")
    assert set(figures["times_bare"]) == {"bare products"} and set(figures["times_as_fast_as"]) == {"eager"}
    assert entry.report(problem, entrants, results, "bare products", "step", "cpu")["bare"]
    results["metricseg cpu"].kernels["step"] = [Kernel("products", 2, 1e-3), Kernel("fill", 1, 5e-4)]
    figures = entry.report(problem, entrants, results, "metricseg cpu", "step", "cpu")
    assert figures["device_ms"] == pytest.approx(1.5) and figures["launches"] == 3
    assert figures["kernels_ms"] == {"products": 1.0, "fill": 0.5}


def test_memory_meter_measures_a_known_allocation() -> None:
    if (reason := why_not_resident()) is not None:
        pytest.skip(reason)
    measured = memory.FreshProcesses(preload=["benchmarks.harness.memory"]).peak(memory.hold, 64)
    assert measured == pytest.approx(2 * 64 * 2**20, rel=0.03)


def test_race_reaches_pytest_benchmark_and_the_report(small, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks.harness import report

    rows = []
    for size, name in (("32x64", "a"), ("64x128", "b"), ("128x256", "c")):
        for contestant, ours, ms in (("eager", False, 40.0), ("metricseg cpu", True, 5.0)):
            info = {
                "op": "focal", "shape": f"cityscapes-1x19x8x16-{size}-fp32", "loss": "focal", "phase": "step",
                "contestant": contestant, "ours": ours, "dtype": "float32", "series": "cityscapes",
                "size": 2048 * 4 ** len(rows), "size_label": size, "title": "a title", "floor_mib": 1.0,
                "size_name": "label size", "floor_name": "the logits",
                "peak_mib": 20.0 if not ours else 2.0, "gb_per_s": 1.0,
                "gexp_per_s": 0.5, "limit_ms": 2.0, "times_limit": ms / 2, "loss_error": 1e-8, "gradient_error": 1e-7,
            }  # fmt: skip
            if ours:
                info |= {"times_as_fast_as": {"eager": 8.0}, "memory_of": {"eager": 10.0}}
                info |= {"device_ms": 1.5, "launches": 3}
            stats = {"median": ms / 1e3, "min": ms / 1.1e3, "rounds": 7}
            rows.append({"name": name, "extra_info": info, "stats": stats})
    about = {"device": "cpu", "cpu": "test", "threads": 2, "torch": "2.11.0", "commit": "0", "python": "3.12"}
    about["limits"] = {"bytes_per_s": 1e10, "exp_per_s": 1e9, "exp_by": "torch.exp in cache"}
    about["limits"]["flops_per_s"] = {"float32": 1e11}
    written = report.write({"machine_info": about, "datetime": "2026-01-01T00:00:00", "benchmarks": rows}, tmp_path)
    kept = json.loads((tmp_path / "focal.json").read_text())
    assert len(kept["rows"]) == 6 and kept["rows"][1]["times_as_fast_as"] == {"eager": 8.0}
    assert "| 5.00 | 1.50 | 3 | 2.00 | 8.00x | 10.0x | 2.50x |" in (tmp_path / "focal.md").read_text()
    assert {path.suffix for path in written} == {".json", ".md", ".png"} and all(p.stat().st_size for p in written)
