"""The Triton kernels of the predict family: rows that share cells, numbers in tuples, and counts without a histogram."""

from __future__ import annotations

import launches
import pytest
import torch
from predict_cases import CASES, make_maps, make_target

import metricseg_kernels as mk
from benchmarks.harness.memory import FreshProcesses
from metricseg_kernels.predict import op, reference

FAMILY, BACKENDS = "predict", ("triton",)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("rows", [2, 4, 8])
def test_rows_between_two_cells(
    rows: int, align_corners: bool, backend: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many at once as a larger map would have: all labels, those that lie on a row of cells too."""
    from metricseg_kernels.predict import triton

    monkeypatch.setattr(triton, "ENOUGH_PROGRAMS", 1)
    monkeypatch.setattr(triton, "ROWS", dict.fromkeys(triton.ROWS, (rows,)))
    z = torch.randn(1, 3, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(device)
    z[:, 2, 1] = -torch.inf
    for maps in (z, z[:, :, :1]):
        sizes = (3 * rows, 5 * rows + 1, 9)
        for height in sizes:
            got, expected = (
                mk.predict_labels(maps, (height, 20), align_corners=align_corners, backend=name)
                for name in (backend, "reference")
            )
            # where F.interpolate makes NaN of 0 * inf, the reference has another label
            known = (got != 2) & (expected != 2)
            assert torch.equal(got[known], expected[known]) and known.sum() >= got.numel() // 4


@pytest.mark.parametrize("histogram", [True, False])
def test_labels_out_of_range(histogram: bool, backend: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their number and the largest; counts by a histogram of each program, and without."""
    from metricseg_kernels.predict import triton

    if not histogram:
        monkeypatch.setattr(triton, "MOST_BINS", 0)
    rng = torch.Generator().manual_seed(0)
    inputs = op.Inputs([torch.randn(1, 4, 3, 5, generator=rng).to(device)], [False], [1.0], False)
    for bad in ([], [-7, -3], [-7, 4, 2**40]):
        target = torch.randint(0, 4, (1, 3, 300), generator=rng)
        target.view(-1)[[299 * i + 5 for i in range(len(bad))]] = torch.tensor(bad, dtype=torch.int64)
        counts, found = op._confusion_outputs(inputs.maps)
        op.kernels(backend).confusion_kernel(inputs, target.to(device), -1, counts, found)
        expected = reference.confusion(inputs, target.to(device), -1)
        assert torch.equal(counts, expected[0]) and torch.equal(found, expected[1])


def test_scores_and_counts_of_two_maps(backend: str, device: str) -> None:
    """Two tiles of each row; one map is flipped, and they weigh differently."""
    case = CASES["two-maps"]._replace(size=(3, 140), batch=1, flipped=(True, False), weights=(1.0, 2.0))
    maps, target = make_maps(case, device=device), make_target(case, device=device)
    scores, counts = [], []
    for name in (backend, "reference"):
        counts.append(mk.confusion_matrix(maps, target, **case.options(), backend=name))
        scores.append(
            mk.predict_labels(
                maps, case.size, **case.options(), return_confidence=True, return_entropy=True, backend=name
            )
        )
    assert torch.equal(counts[0], counts[1]) and torch.equal(scores[0][0], scores[1][0].to(scores[0][0].dtype))
    torch.testing.assert_close(scores[0][1:], scores[1][1:], rtol=1e-10, atol=1e-12)


# Image sizes of one ratio and as many rows of a program.
CELLS = [(128, 256), (133, 162), (96, 320), (117, 131), (217, 93), (64, 416)]


def launch_all() -> None:
    for h, w in CELLS:
        for maps in (1, 2):
            sizes = [(h + 7 * i, w + 5 * i) for i in range(maps)]
            logits = [torch.empty((8, 5, *size), device="meta") for size in sizes]
            inputs = op.Inputs(logits, [i == 1 for i in range(maps)], [(i + 1) / 3 for i in range(maps)], False)
            op._predict(*inputs, [4 * h, 4 * w], torch.uint8, False, False, "triton")
            op._confusion(*inputs, torch.empty((8, 4 * h, 4 * w), dtype=torch.uint8, device="meta"), 255, "triton")


def test_numbers_of_a_call_cause_no_compilation(fresh_processes: FreshProcesses) -> None:
    """Sizes, strides, flags and weights are run-time arguments."""
    assert launches.compiled_by(fresh_processes, launch_all) == {"best_logit": 2, "best_probability": 2}
